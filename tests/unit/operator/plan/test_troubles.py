"""Whatever can go wrong is said in one line, explained in a condition, and does not take down what serves."""

from copy import deepcopy

import pytest
from support.world import World

from lathe_operator.plan.observed import name_of
from lathe_operator.settings import Settings

SOURCE = {"uri": "pvc://sets/train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}
INT8 = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
SPEC = {
    "model": {"uri": "pvc://files/teacher.pt2", "format": "Pt2"},
    "data": {"train": SOURCE, "evaluation": SOURCE},
    "objective": {"task": "Classification", "metric": "accuracy"},
    "recipe": {"stages": [INT8]},
    "targets": [{"name": "cpu", "hardware": "X86Vnni"}],
    "rollout": {"strategy": "BlueGreen"},
}
SETTINGS = Settings(store_uri="pvc://store/")
PULL = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
KILLED = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-31T12:00:00Z"}}
BAD = {
    "terminated": {"exitCode": 2, "message": "spec.data.train: x has 9 columns", "finishedAt": "2026-01-31T12:00:00Z"}
}


@pytest.fixture
def world():
    return World(SPEC, SETTINGS)


def container(**state):
    return [{"name": "optimizer", "image": "registry.example/optimizer:1", "state": state}]


def unscheduled(message):
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
    }


WAITING = {
    "an image that cannot be pulled": (
        {"phase": "Pending", "containerStatuses": container(waiting=PULL)},
        "Cannot pull image registry.example/optimizer:1",
        "ImagePull",
        "Check its name",
    ),
    "a claim that does not exist": (
        unscheduled('persistentvolumeclaim "files" not found'),
        "Waiting for claim files",
        "ClaimMissing",
        "Create it",
    ),
    "no node that fits": (
        unscheduled("0/3 nodes are available: 3 Insufficient memory."),
        "Waiting for a node that fits",
        "NoNode",
        "Insufficient memory",
    ),
    "a volume that is not there": (
        {
            "phase": "Pending",
            "containerStatuses": container(
                waiting={"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}
            ),
        },
        'Pod not made: secret "keys" not found',
        "PodConfig",
        "keys",
    ),
}


@pytest.mark.parametrize(("pod", "summary", "reason", "words"), WAITING.values(), ids=WAITING)
def test_a_job_that_cannot_start_says_what_it_waits_for(world, pod, summary, reason, words):
    if reason == "NoNode":
        for name in ("files", "sets", "store"):
            world.put({"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "status": {"phase": "Bound"}})
    world.settle()
    world.pod_of(world.the("Job"), **pod)
    plan = world.settle()
    assert world.summary == summary
    assert world.condition("Optimized") == ("False", reason)
    assert world.condition("Ready") == ("False", reason)
    assert words in world.message("Optimized")
    assert plan.requeue_after is not None
    del world.objects["Pod", name_of(world.the("Job")) + "-x"]
    world.optimizes()
    assert world.condition("Optimized")[0] == "True", "what passes by itself is not remembered"


def test_a_claim_that_is_not_bound_is_named(world):
    for name in ("files", "sets"):
        world.put({"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "status": {"phase": "Bound"}})
    world.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "store"}, "status": {"phase": "Pending"}})
    world.settle()
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    world.pod_of(world.the("Job"), **unscheduled(message))
    world.settle()
    assert world.summary == "Waiting for claim store"
    assert world.condition("Optimized") == ("False", "ClaimNotBound")


FAILED = {
    "bad input": ("PodFailurePolicy", BAD, "Refused: spec.data.train: x has 9 columns", "BadInput", "9 columns"),
    "too little memory": (
        "BackoffLimitExceeded",
        KILLED,
        "Stage int8 ran out of memory",
        "OutOfMemory",
        "resources.memory",
    ),
    "too little memory of its own": (
        "BackoffLimitExceeded",
        {
            "terminated": {
                "exitCode": 137,
                "message": "stage int8: it used 300 MiB",
                "finishedAt": "2026-01-31T12:00:00Z",
            }
        },
        "Stage int8 ran out of memory",
        "OutOfMemory",
        "300 MiB",
    ),
    "too little time": ("DeadlineExceeded", {}, "Stage int8 ran out of time", "DeadlineExceeded", "timeout"),
    "anything else": (
        "BackoffLimitExceeded",
        {"terminated": {"exitCode": 1, "message": "no space left\nmore", "finishedAt": "2026-01-31T12:00:00Z"}},
        "Stage int8 failed: no space left",
        "StageFailed",
        "no space left",
    ),
}


@pytest.mark.parametrize(("why", "state", "summary", "reason", "words"), FAILED.values(), ids=FAILED)
def test_a_failed_job_is_explained_remembered_and_not_repeated(world, why, state, summary, reason, words):
    world.settle()
    job = world.the("Job")
    world.reports(world.the("ModelRevision"), stages=[{"name": "import", "state": "Succeeded"}])
    world.pod_of(job, phase="Failed", containerStatuses=container(**state))
    world.ends(job, "Failed", why)
    world.settle()
    assert world.summary == summary
    assert world.condition("Optimized") == ("False", reason)
    assert words in world.message("Ready")
    assert "delete ModelRevision" in world.message("Ready")
    made = list(world.created)
    del world.objects["Job", name_of(job)]
    world.settle()
    assert (world.created, world.summary) == (made, summary)
    world.objects.pop(("ModelRevision", name_of(world.the("ModelRevision"))))
    world.settle()
    assert world.summary == "Optimizing int8 (1 of 2)"


def test_a_pod_that_died_is_told_of_while_the_job_tries_again(world):
    world.settle()
    job = world.the("Job")
    job["status"] = {"failed": 1}
    world.reports(world.the("ModelRevision"), stages=[{"name": "import", "state": "Succeeded"}])
    world.pod_of(job, phase="Failed", containerStatuses=container(**KILLED))
    world.settle()
    assert world.summary == "Stage int8 ran out of memory"
    world.optimizes()
    assert world.condition("Optimized")[0] == "True"


def test_a_job_of_a_deleted_revision_is_not_taken_for_a_new_one(world):
    world.settle()
    world.the("Job")["metadata"]["ownerReferences"][0]["uid"] = "another"
    world.settle()
    assert world.summary == "Cleaning up"


def refused(revision, verdict):
    gate = {
        "name": "cpu.onnx.accuracy",
        "metric": "accuracy",
        "verdict": verdict,
        "bound": "at most 0.02 below the original",
        "reason": "0.03 below (0.01 to 0.05)",
    }
    target = {"name": "cpu", "hardware": "X86Vnni", "state": "Refused", "message": "Try more epochs"}
    return {"gates": [gate], "targets": [target], "verdict": verdict, "finishedAt": "2026-01-31T12:05:00Z"}


@pytest.mark.parametrize(
    ("verdict", "summary", "reason"),
    [
        ("Failed", "Refused by gate accuracy", "GateFailed"),
        ("Inconclusive", "Gate accuracy is inconclusive", "GateInconclusive"),
    ],
)
def test_a_gate_that_does_not_pass_is_named_with_number_bound_and_advice(world, verdict, summary, reason):
    world.settle()
    world.reports(world.the("ModelRevision"), **refused(world.the("ModelRevision"), verdict))
    world.settle()
    assert world.summary == summary
    assert world.condition("GatesPassed") == ("False", reason)
    for words in ("0.03 below", "at most 0.02", "Try more epochs"):
        assert words in world.message("GatesPassed")
    assert not world.all("InferenceService")


def test_a_refused_revision_leaves_the_serving_one_alone(world):
    world.optimizes()
    world.kserve_reconciles()
    world.settle()
    before = world.selected()
    world.change(seed=7)
    world.settle()
    newest = next(r for r in world.all("ModelRevision") if r["spec"].get("seed") == 7)
    world.reports(newest, **refused(newest, "Failed"))
    world.settle()
    assert world.selected() == before
    assert world.summary == "Refused by gate accuracy; serving cpu 1/1"
    assert world.condition("Ready")[0] == "False"


DOCUMENTS = {
    "a relative path without a place to start": (
        {"model": {"uri": "file:teacher.pt2", "format": "Pt2"}},
        "InputsResolved",
        "UnreachablePath",
        "spec.model: file:teacher.pt2",
    ),
    "a path of one machine": (
        {"model": {"uri": "file:///home/me/teacher.pt2", "format": "Pt2"}},
        "InputsResolved",
        "UnreachablePath",
        "pvc://claim/path",
    ),
    "a path that leaves its volume": (
        {"model": {"uri": "pvc://files/../teacher.pt2", "format": "Pt2"}},
        "InputsResolved",
        "UnreachablePath",
        "spec.model",
    ),
    "a recipe that is not there": (
        {"recipe": {"ref": {"name": "nowhere"}}},
        "RecipeValid",
        "Refused",
        "nowhere",
    ),
    "a rule that only the loader knows": (
        {"gates": [{"name": "g", "metric": "rmse", "max": "1"}]},
        "RecipeValid",
        "Refused",
        "write accuracy or macroF1",
    ),
}


@pytest.mark.parametrize(("spec", "kind", "reason", "words"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_that_cannot_be_run_is_refused_in_words(world, spec, kind, reason, words):
    world.model["spec"] |= deepcopy(spec)
    world.settle()
    assert world.condition(kind) == ("False", reason)
    assert words in world.message("Ready")
    assert not world.created


def test_a_refused_document_keeps_what_serves(world):
    world.optimizes()
    world.kserve_reconciles()
    world.settle()
    before = deepcopy(world.model["status"])
    world.change(model={"uri": "file:teacher.pt2", "format": "Pt2"})
    world.settle()
    after = world.model["status"]
    assert world.all("InferenceService")
    for field in ("servingRevision", "url", "targets", "traffic"):
        assert after[field] == before[field]
    assert world.condition("RolledOut")[0] == "Unknown"


def test_without_a_store_the_operator_asks_for_one():
    world = World(SPEC, Settings())
    world.settle()
    assert world.condition("InputsResolved") == ("False", "NoStore")
    assert "store.uri" in world.message("Ready")


def test_a_server_that_cannot_start_is_explained(world):
    world.optimizes()
    world.kserve_reconciles(ready=False)
    name = name_of(world.the("InferenceService"))
    world.put(
        {
            "kind": "Pod",
            "metadata": {"name": "server", "labels": {"serving.kserve.io/inferenceservice": name}},
            "status": {"phase": "Pending", "containerStatuses": container(waiting=PULL)},
        }
    )
    world.settle()
    assert world.summary == "Cannot pull image registry.example/optimizer:1"
    assert world.condition("RolledOut") == ("False", "ImagePull")


def test_a_namespace_with_too_long_a_name_is_refused_in_words(world):
    world.model["metadata"]["namespace"] = "n" * 60
    world.optimizes()
    assert world.condition("RolledOut") == ("False", "NameTooLong")


CRASHES = {
    "waiting for its next start": {"state": {"waiting": {"reason": "CrashLoopBackOff"}}},
    "running for the moment": {"state": {"running": {}}},
}


@pytest.mark.parametrize("state", CRASHES.values(), ids=CRASHES)
def test_a_server_that_crashes_stays_one_between_two_starts(world, state):
    world.optimizes()
    world.kserve_reconciles(ready=False)
    name = name_of(world.the("InferenceService"))
    last = {"terminated": {"exitCode": 1, "message": "no such file: model.onnx"}}
    status = {"name": "kserve-container", "restartCount": 2, "ready": False, "lastState": last, **state}
    world.put(
        {
            "kind": "Pod",
            "metadata": {"name": "server", "labels": {"serving.kserve.io/inferenceservice": name}},
            "status": {"phase": "Running", "containerStatuses": [status]},
        }
    )
    world.settle()
    assert world.summary == "Server crashes"
    assert "no such file: model.onnx" in world.message("RolledOut")
