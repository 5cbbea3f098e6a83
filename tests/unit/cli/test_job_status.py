"""What a Job says of its revision, for every event and every end; always what the API takes."""

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from support import summaries
from support.summaries import digest

from lathe_api.events import (
    GateJudged,
    Notice,
    RunPlanned,
    StageFinished,
    StageProgress,
    StageRef,
    StageStarted,
    StageWaiting,
    TrialFinished,
    TrialStarted,
)
from lathe_api.modelrevision import ModelRevisionStatus
from lathe_api.searchresult import TrialCheck, TrialState, TrialValue
from lathe_api.summary import TargetState, Verdict
from lathe_cli.jobstatus import JobStatus, decimal, is_final

REFS = (
    StageRef(id="import", name="import", type="Import", targets=("cpu", "arm")),
    StageRef(id="slim", name="slim", type="Prune", targets=("cpu", "arm")),
    StageRef(id="int8@X86Vnni", name="int8", type="Quantize", targets=("cpu", "big")),
    StageRef(id="int8@Arm64", name="int8", type="Quantize", targets=("arm",)),
)
INPUTS = {"spec.model": digest("1"), "spec.data.train": digest("2")}
SOURCES = {"spec.model": "pvc://files/model.pt2", "spec.data.train": "s3://data/train"}
PLANNED = RunPlanned(name="digits", revision="digits-1", stages=REFS, inputs=INPUTS)
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def job(*own, sources=None):
    """A Job of these stages; every look at the clock takes a second."""
    ticks = count()
    return JobStatus(own, "digits-1-0", sources, lambda: START + timedelta(seconds=next(ticks)))


def stages(found):
    value = found.value()
    ModelRevisionStatus.model_validate(value, by_alias=True, by_name=False)
    return {s["name"]: s for s in value.get("stages", [])}


def started(*ids, own=("import", "slim", "int8")):
    found = job(*own)
    found.see(PLANNED)
    for name in ids:
        assert found.see(StageStarted(id=name))
    return found


def test_the_first_segment_tells_when_it_began_and_what_went_in():
    found = job("import", "slim", sources=SOURCES)
    assert found.see(PLANNED)
    assert found.value() == {
        "startedAt": "2026-01-31T12:00:00Z",
        "inputs": [
            {"field": "model", "uri": "pvc://files/model.pt2", "digest": digest("1")},
            {"field": "data.train", "uri": "s3://data/train", "digest": digest("2")},
        ],
    }


def test_a_later_segment_tells_neither_that_nor_of_stages_of_others():
    found = job("int8")
    assert found.see(PLANNED)
    assert not found.see(StageStarted(id="slim"))
    assert not found.see(StageFinished(id="slim", result=summaries.stage()))
    assert found.value() == {}


def test_a_stage_runs_and_succeeds():
    found = started("slim")
    assert stages(found)["slim"] == {
        "name": "slim",
        "type": "Prune",
        "state": "Running",
        "job": "digits-1-0",
        "percent": 0,
        "startedAt": "2026-01-31T12:00:00Z",
    }
    assert found.see(
        StageProgress(id="slim", percent=41.9, step="train", epoch=3, epochs=8, loss=0.12345678, eta_seconds=118.4)
    )
    assert (
        stages(found)["slim"] | {"percent": 41, "epoch": 3, "epochs": 8, "loss": "0.123457", "etaSeconds": 118}
        == (stages(found)["slim"])
    )
    assert stages(found)["slim"]["step"] == "train"
    assert found.see(StageFinished(id="slim", result=summaries.stage(warnings=("It is small.", "Look at it."))))
    end = stages(found)["slim"]
    assert (end["state"], end["percent"], end["quality"], end["sizeBytes"]) == ("Succeeded", 100, "0.96", 250_000)
    assert end["message"] == "It is small. Look at it."
    assert end["finishedAt"] > end["startedAt"]
    assert not {"step", "etaSeconds"} & end.keys()


def test_the_same_progress_is_nothing_new():
    found = started("slim")
    assert found.see(StageProgress(id="slim", percent=10.1, step="train"))
    assert not found.see(StageProgress(id="slim", percent=10.9, step="train"))


def test_a_stored_result_is_told_as_such():
    found = started()
    found.see(StageFinished(id="slim", result=summaries.stage(cached=True)))
    assert stages(found)["slim"]["state"] == "Cached"


def test_waiting_for_another_job_is_told():
    found = started()
    assert found.see(StageWaiting(id="slim"))
    assert "Another Job does this stage" in stages(found)["slim"]["message"]
    found.see(StageStarted(id="slim"))
    found.see(StageProgress(id="slim", percent=1, step="train"))
    assert "message" not in stages(found)["slim"]


def test_a_stage_that_is_done_per_hardware_has_an_entry_for_each_target():
    found = started("import", "int8@X86Vnni", "int8@Arm64")
    found.see(StageProgress(id="int8@Arm64", percent=50, step="calibrate"))
    assert {name: s.get("percent") for name, s in stages(found).items()} == {
        "import": 0,
        "cpu.int8": 0,
        "big.int8": 0,
        "arm.int8": 50,
    }
    assert "type" not in stages(found)["import"]


def test_gates_and_notices_are_told_at_the_end_only():
    found = started()
    assert not found.see(Notice(message="look"))
    assert not found.see(GateJudged(result=summaries.gate()))


def test_a_failure_marks_the_stage_at_work():
    found = started("import", "slim")
    found.see(StageFinished(id="import", result=summaries.original()))
    found.fail("stage slim: " + "no memory " * 200)
    assert stages(found)["import"]["state"] == "Succeeded"
    failed = stages(found)["slim"]
    assert failed["state"] == "Failed"
    assert failed["message"].startswith("stage slim: no memory")
    assert len(failed["message"]) == 1024


def test_the_last_segment_tells_the_verdict_of_everything():
    found = started("int8@X86Vnni", own=("int8",))
    cpu = summaries.target(artifact=digest("c"), gates=(summaries.gate(),))
    gates = (
        summaries.gate("size", Verdict.FAILED, target="arm"),
        summaries.gate("speed", Verdict.FAILED, target="arm"),
    )
    arm = summaries.target(name="arm", state=TargetState.REFUSED, reason="gate size after slim: Failed", gates=gates)
    summary = summaries.summary(cpu, arm, summaries.skipped())
    found.finish(summary, {"cpu": "pvc://store/repositories/digits-1/cpu"}, "pvc://store/reports/digits-1/report.html")
    value = found.value()
    ModelRevisionStatus.model_validate(value, by_alias=True, by_name=False)
    assert value["verdict"] == summary.verdict
    assert value["report"] == "pvc://store/reports/digits-1/report.html"
    assert [(g["name"], g["verdict"], g["value"]) for g in value["gates"]] == [
        ("cpu.slim.accuracy", "Passed", "0.01"),
        ("arm.slim.size", "Failed", "0.01"),
        ("arm.slim.speed", "Failed", "0.01"),
    ]
    told = {t["name"]: t for t in value["targets"]}
    assert told["cpu"]["repository"] == "pvc://store/repositories/digits-1/cpu"
    assert told["cpu"]["artifact"] == digest("c")
    assert told["arm"]["message"] == ("gate size after slim: Failed. Try: the remedy of size; the remedy of speed")
    assert told["gpu"]["state"] == "Skipped"
    assert "artifact" not in told["gpu"]


@pytest.mark.parametrize(
    ("states", "last", "final"),
    [
        pytest.param(["BUILT", "BUILT"], True, True, id="built"),
        pytest.param(["BUILT", "REFUSED"], True, True, id="one built"),
        pytest.param(["PARTIAL"], False, False, id="more to do"),
        pytest.param(["PARTIAL", "REFUSED"], False, False, id="more to do for one"),
        pytest.param(["REFUSED", "SKIPPED"], False, True, id="no target goes on"),
        pytest.param(["PARTIAL"], True, False, id="stopped early by hand"),
    ],
)
def test_the_end_is_told_once_nothing_is_left_to_do(states, last, final):
    targets = [summaries.target(name=f"t{i}", state=TargetState[s]) for i, s in enumerate(states)]
    assert is_final(summaries.summary(*targets), last=last) is final


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0000001, "0"),
        (-0.25, "-0.25"),
        (10.0, "10"),
        (1 / 3, "0.333333"),
        (999_999_999.0, "999999999"),
        (1e9, None),
        (999_999_999.9999999, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_a_number_is_written_as_the_api_takes_it(value, text):
    assert decimal(value) == text


def test_a_search_tells_how_far_it_is_and_in_the_end_the_front_with_the_chosen_trial():
    found = job("import", "slim", sources=SOURCES)
    values = (TrialValue(stage="slim", field="prune.parameters", value="0.5"),)
    found.see(RunPlanned(name="digits", revision="digits-1", stages=(), inputs=INPUTS))
    assert found.see(TrialStarted(number=3, most=40, values=values))
    stages(found)
    assert found.value()["search"] == {
        "trials": 2,
        "maxTrials": 40,
        "stopped": 0,
        "trying": "slim.prune.parameters 0.5",
    }
    front = tuple(summaries.trial(n, goals=(float(n), float(-n)), values=values, best=True) for n in range(1, 41))
    stopped = summaries.trial(41, state=TrialState.STOPPED, check=TrialCheck.QUALITY, values=values)
    assert found.see(TrialFinished(trial=stopped))
    assert found.value()["search"]["stopped"] == 1
    found.finish(summaries.summary(search=summaries.search((*front, stopped), chosen=20)), {}, None)
    stages(found)
    told = found.value()["search"]
    assert told["chosen"] == "trial-20"
    assert (told["trials"], told["stopped"], len(told["best"])) == (41, 1, 16)
    names = [p["name"] for p in told["best"]]
    assert {"trial-1", "trial-20", "trial-40"} <= set(names)
    assert told["best"][0]["latencyRatio"] == "2"
