"""`lathe run` as a user types it: results, cache, resuming, two runs at once."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from support.projects import EXPORT, PRUNE, STATIC, make_project, train

pytestmark = pytest.mark.e2e

STAGES = [PRUNE, STATIC, EXPORT]


@pytest.fixture(scope="session")
def trained_cnn(save_network):
    import torch
    from support.networks import residual_cnn

    torch.manual_seed(0)
    return save_network("trained_cnn", train(residual_cnn(width=8)), torch.rand(2, 1, 16, 16), "image")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    """One store for the tests that do not care whether a stage is cached."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def project(tmp_path, shared_store, trained_cnn):
    return make_project(tmp_path / "project", shared_store, trained_cnn, STAGES)


def test_a_run_leaves_a_served_model_that_is_still_right(project):
    import onnxruntime

    summary = project.summary()
    (target,) = summary["targets"]
    assert target["state"] == "Built"
    assert [s["name"] for s in target["stages"]] == ["import", "slim", "int8", "onnx"]
    overall = target["overall"]
    assert overall["sizeRatio"] > 2
    assert overall["drop"] < 0.05
    assert overall["int8Coverage"] == 1.0
    assert overall["latency"]["rounds"] > 1

    out = project.folder / "out"
    assert json.loads((out / "summary.json").read_text()) == summary
    assert "<html" in (out / "report.html").read_text()
    session = onnxruntime.InferenceSession(out / target["modelFile"])
    with np.load(project.folder / "test.npz") as test:
        answers = session.run(None, {"image": test["x"]})[0].argmax(1)
        assert np.mean(answers == test["y"]) == pytest.approx(overall["final"], abs=1e-9)
    config = (out / target["repository"] / "patterns" / "config.pbtxt").read_text()
    assert 'name: "image"' in config
    for stage in target["stages"]:
        record = json.loads((out / stage["record"]).read_text())
        assert record["key"] == stage["key"]
        assert record["reproduce"]


def test_a_second_run_is_cached_and_gives_the_same_artifact(project):
    first = project.summary()
    again = project.summary()
    assert again["stagesRun"] == 0
    assert again["cacheHits"] == 4
    assert all(s["cached"] for s in again["targets"][0]["stages"])
    assert again["targets"][0]["artifact"] == first["targets"][0]["artifact"]
    assert again["revision"] == first["revision"]
    plain = project.run("--plain")
    assert plain.stdout.count("cached") >= 4


def test_the_same_seed_gives_the_same_bytes_in_another_store_and_process(project, tmp_path):
    first = project.summary()
    project.store = tmp_path / "other-store"
    project.environment = {"PYTHONHASHSEED": "12345"}
    second = project.summary()
    assert second["stagesRun"] == 4
    digests = [[s["artifact"] for s in run["targets"][0]["stages"]] for run in (first, second)]
    assert digests[0] == digests[1]


def test_another_seed_is_another_revision(project):
    assert project.summary()["revision"] != project.summary("--seed", "1", "--until", "import")["revision"]


def test_until_ends_early_and_says_so(project):
    summary = project.summary("--until", "slim")
    (target,) = summary["targets"]
    assert target["state"] == "Partial"
    assert [s["name"] for s in target["stages"]] == ["import", "slim"]
    assert target["artifact"] is None


def test_a_dry_run_does_nothing(project, tmp_path):
    project.store = tmp_path / "empty-store"
    done = project.run("--dry-run")
    assert done.returncode == 0
    for name in ("import", "slim", "int8", "onnx"):
        assert name in done.stdout
    assert "out" not in project.left
    assert not list(project.store.glob("stages/*"))


def test_a_stage_that_is_killed_goes_on_from_its_last_epoch(project, tmp_path):
    whole = project.summary("--until", "slim")
    project.store = tmp_path / "killed-store"
    shutil.rmtree(project.folder / "out")

    process = project.start("--json", "--until", "slim")
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "StageProgress" and event["id"] == "slim" and event.get("epoch") == 1:
            os.kill(_stage_process(process.pid), signal.SIGKILL)
            break
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search("SIGKILL", rest)
    assert "out" not in project.left

    process = project.start("--json", "--until", "slim")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    events = [e for e in map(json.loads, err.splitlines()) if e.get("id") == "slim"]
    assert [e["resumed"] for e in events if e["event"] == "StageStarted"] == [True]
    assert 0 not in [e["epoch"] for e in events if e["event"] == "StageProgress" and "epoch" in e]
    resumed, full = (s["targets"][0]["stages"][-1]["artifact"] for s in (json.loads(out), whole))
    assert resumed == full


def _stage_process(parent: int) -> int:
    """The child that does the stage."""
    from pathlib import Path

    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(p) for p in children if b"lathe_optimizers.child" in Path(f"/proc/{p}/cmdline").read_bytes())


def test_two_runs_at_once_do_the_work_once(project, tmp_path, trained_cnn):
    store = tmp_path / "common-store"
    projects = [make_project(tmp_path / name, store, trained_cnn, STAGES) for name in ("one", "two")]
    processes = [p.start("--json") for p in projects]
    summaries = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        summaries.append(json.loads(out))
    assert sum(s["stagesRun"] for s in summaries) == 4
    assert sum(s["cacheHits"] for s in summaries) == 4
    assert len({s["targets"][0]["artifact"] for s in summaries}) == 1


def test_two_runs_into_one_folder_leave_one_whole_result(project):
    processes = [project.start("--json") for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert json.loads((project.folder / "out" / "summary.json").read_text())["verdict"] == "Passed"
    assert not [name for name in project.left if name.startswith(".")]


def test_a_target_of_other_hardware_is_skipped_with_the_reason(project):
    project.change(
        targets=[{"name": "cpu", "hardware": "X86Vnni"}, {"name": "gpu", "hardware": "Cuda"}],
    )
    targets = {t["name"]: t for t in project.summary()["targets"]}
    assert targets["cpu"]["state"] == "Built"
    assert targets["gpu"]["state"] == "Skipped"
    assert "Cuda" in targets["gpu"]["reason"]


def test_the_recorded_command_repeats_a_stage_byte_for_byte(project):
    import subprocess
    import sys

    summary = project.summary()
    stage = summary["targets"][0]["stages"][2]
    record = json.loads((project.folder / "out" / stage["record"]).read_text())
    done = subprocess.run(
        [sys.executable, *record["reproduce"][1:]], capture_output=True, text=True, check=False, cwd=project.folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bytes" in done.stdout
