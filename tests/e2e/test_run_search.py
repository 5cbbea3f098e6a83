"""`lathe run` of a document that searches: early stops, the result, a killed search that goes on."""

import json
import os
import signal

import pytest
from support.projects import make_project, train

pytestmark = pytest.mark.e2e

SPARSE = {"name": "sparse", "type": "Prune", "prune": {"method": "MagnitudeUnstructured", "sparsity": "0.3"}}
INT8 = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
EXPORT = {"name": "onnx", "type": "Export", "export": {"opset": 20}}
CHOICES = [
    {"stage": "sparse", "field": "prune.sparsity", "values": ["0.3", "0.98"]},
    {"stage": "int8", "field": "quantize.method", "values": ["Static", "Dynamic"]},
]
GATES = [
    {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.1"},
    {"name": "size", "metric": "sizeRatio", "min": "1.5"},
]
SEARCH = {"choices": CHOICES, "goals": [{"metric": "sizeRatio"}, {"metric": "accuracy"}], "maxTrials": 10}


@pytest.fixture(scope="module")
def trained(save_network):
    import torch
    from support.networks import residual_cnn

    torch.manual_seed(0)
    return save_network("searched_cnn", train(residual_cnn(width=8)), torch.rand(2, 1, 16, 16), "image")


@pytest.fixture
def project(tmp_path, trained):
    made = make_project(tmp_path / "project", tmp_path / "store", trained, [SPARSE, INT8, EXPORT])
    made.change(gates=GATES, search=SEARCH)
    return made


def test_a_search_builds_the_best_and_a_killed_one_goes_on_where_it_was(project):
    counted = json.loads(project.run("--dry-run", "--json").stdout)
    assert (counted["search"]["total"], counted["search"]["possible"]) == (4, 4)

    process = project.start("--json")
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "TrialStarted" and event["number"] == 3:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=120)
    assert "out" not in project.left

    process = project.start("--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    events = [json.loads(line) for line in err.splitlines()]
    assert [e["number"] for e in events if e["event"] == "TrialStarted"] == [3, 4]

    summary = json.loads(out)
    search = summary["search"]
    assert search["resumed"] == 2
    assert search["ended"] == "every possible combination was tried"
    trials = {tuple(v["value"] for v in t["values"]): t for t in search["trials"]}
    assert len(trials) == 4
    assert {values: t["check"] for values, t in trials.items() if t["state"] == "Stopped"} == {
        ("0.3", "Dynamic"): "Stages",
        ("0.98", "Dynamic"): "Stages",
        ("0.98", "Static"): "Quality",
    }
    assert "Latency" not in trials["0.98", "Static"]["spent"]
    assert trials["0.3", "Static"]["best"]
    assert search["chosen"] == trials["0.3", "Static"]["number"]

    (target,) = summary["targets"]
    assert target["state"] == "Built"
    assert [g["verdict"] for g in target["gates"]] == ["Passed", "Passed"]
    built = json.loads((project.folder / "out" / target["stages"][2]["record"]).read_text())
    assert built["config"]["quantize"]["method"] == "Static"
    assert "Trials of the search" in (project.folder / "out" / "report.html").read_text()

    again = project.summary()
    assert again["stagesRun"] == 0
    assert again["search"]["resumed"] == 4
    assert again["targets"][0]["artifact"] == target["artifact"]


def test_a_search_that_finds_nothing_tells_what_came_nearest(project):
    project.change(
        gates=GATES,
        search=SEARCH
        | {
            "choices": [{"stage": "sparse", "field": "prune.sparsity", "values": ["0.3", "0.98"]}],
            "constraints": [{"metric": "accuracy", "min": "0.999"}],
            "sampler": "Grid",
        },
    )
    summary = project.summary(status=3)
    assert summary["search"]["chosen"] is None
    assert summary["search"]["nearest"] == 1
    assert "none of 2 trials passes every gate" in summary["search"]["reason"]
    assert summary["targets"][0]["state"] == "Refused"
    assert "model.onnx" not in str(list((project.folder / "out").rglob("*")))


def test_what_no_combination_can_reach_is_refused_before_any_work(project):
    project.change(gates=[{"name": "size", "metric": "sizeRatio", "min": "9"}])
    done = project.run("--plain")
    assert done.returncode == 2
    assert "spec.search.choices: none of the 4 combinations is possible" in done.stderr
    assert "Static keeps 8 of 32 bits, at most 4x" in done.stderr
    assert not list(project.store.glob("stages/*"))
