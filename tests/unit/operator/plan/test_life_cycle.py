"""From a document to a served model, and what a change of the document does, decided step by step."""

from copy import deepcopy

import pytest
from support.world import DIGEST, World

from lathe_api.wiring import LABEL_REVISION
from lathe_operator.plan.observed import label, name_of
from lathe_operator.settings import Settings

SOURCE = {"uri": "file:build/train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}
SLIM = {
    "name": "slim",
    "type": "Prune",
    "prune": {"method": "StructuredMagnitude", "parameters": "0.5", "finetune": {"epochs": 1}},
    "resources": {"cpu": "2", "memory": "2Gi"},
}
INT8 = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
SPEC = {
    "model": {"uri": "file:build/teacher.pt2", "format": "Pt2"},
    "data": {"train": SOURCE, "evaluation": {**SOURCE, "uri": "pvc://sets/test.npz"}},
    "objective": {"task": "Classification", "metric": "accuracy"},
    "recipe": {"stages": [INT8]},
    "targets": [{"name": "cpu", "hardware": "X86Vnni", "serving": {"replicas": {"min": 2}}}],
    "rollout": {"strategy": "BlueGreen"},
}
SETTINGS = Settings(store_uri="pvc://store/", files_uri="pvc://files/models")


@pytest.fixture
def world():
    return World(SPEC, SETTINGS)


def serve(world):
    world.optimizes()
    world.kserve_reconciles()
    world.settle()


def test_a_document_becomes_a_revision_a_job_and_servers(world):
    world.settle()
    revision = world.the("ModelRevision")
    assert revision["spec"]["model"]["uri"] == "pvc://files/models/build/teacher.pt2"
    assert revision["spec"]["store"]["uri"] == "pvc://store/"
    assert world.summary == "Optimizing int8 (1 of 2)"
    assert world.condition("Ready") == ("False", "NotRead")
    assert not world.all("InferenceService")

    world.optimizes()
    assert world.summary == "Starting cpu 0/0"
    world.kserve_reconciles(ready=False)
    world.settle()
    assert world.summary == "Starting cpu 0/2"
    assert world.condition("Ready")[0] == "False"

    world.kserve_reconciles()
    world.settle()
    status = world.model["status"]
    assert world.summary == "Serving cpu 2/2"
    assert world.condition("Ready") == ("True", "AllConditionsHold")
    assert status["columns"] == {
        "revision": name_of(revision)[-10:-4],
        "quality": "99.6 → 99.4 %",
        "size": "27.4x",
        "speedup": "4.9x",
    }
    assert status["url"] == "http://digits-cpu.vision.svc.cluster.local"
    assert status["traffic"] == [{"revision": name_of(revision), "weight": 100}]
    assert status["targets"][0]["serving"] == DIGEST
    assert status["best"]["revision"] == name_of(revision)


def test_each_thing_is_made_once(world):
    serve(world)
    world.settle()
    assert len(world.created) == len(set(world.created))


def test_what_happened_is_told_once(world):
    serve(world)
    told = [e.reason for e in world.events]
    assert told == [
        "RevisionCreated",
        "Resolved",
        "JobCreated",
        "Read",
        "StagesDone",
        "NoGates",
        "Stored",
        "Serving",
    ]


def test_stages_with_other_resources_get_a_job_of_their_own_one_after_the_other(world):
    world.change(recipe={"stages": [SLIM, INT8]})
    world.settle()
    first = world.the("Job")
    assert first["spec"]["template"]["spec"]["containers"][0]["command"][-1] == "slim"
    revision = world.the("ModelRevision")
    done = [{"name": n, "state": "Succeeded"} for n in ("import", "cpu.slim")]
    world.reports(revision, stages=done)
    world.settle()
    assert len(world.all("Job")) == 1, "the first one has not ended yet"
    world.ends(first)
    world.settle()
    assert [label(j, "lathe.dev/segment") for j in world.all("Job")] == ["0", "1"]
    assert world.summary == "Optimizing int8 (2 of 3)"


@pytest.mark.parametrize(
    ("stage", "words"),
    {
        "with a percentage": ({"percent": 41, "etaSeconds": 118}, "Optimizing int8 41 % (2m)"),
        "without an end in sight": ({"percent": 0}, "Optimizing int8 0 %"),
        "just begun": ({}, "Optimizing int8 (1 of 2)"),
        "of a target": ({"name": "cpu.int8", "percent": 7, "etaSeconds": 9}, "Optimizing int8 7 % (9s)"),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_progress_shows_in_one_line(world, stage, words):
    world.settle()
    world.reports(world.the("ModelRevision"), stages=[{"name": "int8", "state": "Running", **stage}])
    world.settle()
    assert world.summary == words


def test_a_queue_gets_the_job_suspended_and_decides_when_it_starts(world):
    world.change(jobs={"queueName": "gpus"})
    world.settle()
    job = world.the("Job")
    assert job["spec"]["suspend"] is True
    assert world.summary == "Queued in gpus"
    job["spec"]["suspend"] = False
    world.settle()
    assert world.the("Job")["spec"]["suspend"] is False
    assert world.summary == "Optimizing int8 (1 of 2)"


def test_a_new_spec_stops_the_job_of_the_old_one_and_keeps_what_serves(world):
    serve(world)
    before = world.selected()
    world.change(seed=1)
    world.settle()
    world.change(seed=2)
    world.settle()
    newest = world.model["status"]["observedRevision"]
    running = [j for j in world.all("Job") if "status" not in j]
    assert [label(j, LABEL_REVISION) for j in running] == [newest]
    assert world.selected() == before
    assert world.summary == "Optimizing int8 (1 of 2); serving cpu 2/2"
    assert world.condition("RolledOut")[0] == "Unknown"
    left = [r["status"]["summary"] for r in world.all("ModelRevision") if r["spec"].get("seed") == 1]
    assert left == [f"Superseded by {newest}"]


def test_the_service_moves_when_the_new_servers_are_really_there(world):
    serve(world)
    old = world.selected()
    world.change(seed=1)
    world.optimizes()
    assert len(world.all("InferenceService")) == 2
    assert world.selected() == old
    assert world.model["status"]["servingRevision"] != world.model["status"]["observedRevision"]
    world.kserve_reconciles()
    world.settle()
    (left,) = world.all("InferenceService")
    assert world.selected() == name_of(left) != old
    assert world.model["status"]["servingRevision"] == world.model["status"]["observedRevision"]


def test_recreate_stops_the_old_servers_before_the_new_ones_start(world):
    world.change(rollout={"strategy": "Recreate"})
    serve(world)
    old = world.the("InferenceService")
    world.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "server",
                "labels": {"lathe.dev/target": "cpu", "serving.kserve.io/inferenceservice": name_of(old)},
            },
        }
    )
    world.change(seed=1)
    world.optimizes()
    assert not world.all("InferenceService"), "its pod still holds memory"
    assert world.summary.startswith("Stopping cpu")
    del world.objects["Pod", "server"]
    world.kserve_reconciles()
    world.settle()
    assert name_of(world.the("InferenceService")) == world.selected() != name_of(old)


def test_replicas_change_in_place(world):
    serve(world)
    target = deepcopy(SPEC["targets"][0])
    target["serving"]["replicas"] = {"min": 3}
    world.change(targets=[target])
    world.settle()
    assert world.the("InferenceService")["spec"]["predictor"]["minReplicas"] == 3
    assert len(world.all("ModelRevision")) == 1


def test_a_target_that_is_gone_from_the_document_is_gone_from_the_cluster(world):
    world.change(targets=[*SPEC["targets"], {"name": "old", "hardware": "X86Avx2"}])
    serve(world)
    assert len(world.all("Service")) == 2
    world.change(targets=SPEC["targets"])
    serve(world)
    assert name_of(world.the("Service")) == "digits-cpu"
    assert len(world.all("InferenceService")) == 1


def test_an_old_spec_comes_back_without_a_new_job(world):
    serve(world)
    first = world.model["status"]["observedRevision"]
    world.change(seed=1)
    serve(world)
    made = len(world.created)
    world.change(seed=0)
    world.settle()
    world.kserve_reconciles()
    world.settle()
    assert world.model["status"]["servingRevision"] == first
    assert [kind for kind, _ in world.created[made:]] == ["InferenceService"]


def test_suspended_nothing_new_starts_and_what_runs_is_finished(world):
    world.change(suspend=True)
    world.settle()
    assert not world.all("Job")
    assert world.summary == "Suspended"
    world.change(suspend=False)
    world.settle()
    world.change(suspend=True)
    world.settle()
    assert len(world.all("Job")) == 1
    world.change(suspend=False)
    serve(world)
    assert world.summary == "Serving cpu 2/2"


def test_without_kserve_it_waits_and_goes_on_by_itself(world):
    world.kserve = False
    world.optimizes()
    assert world.summary == "Waiting for KServe"
    assert world.condition("RolledOut") == ("False", "KServeMissing")
    assert world.settle().requeue_after == 10
    world.kserve = True
    world.settle()
    world.kserve_reconciles()
    world.settle()
    assert world.condition("Ready")[0] == "True"


def test_a_swapped_artifact_is_noticed(world):
    serve(world)
    world.served[name_of(world.the("InferenceService"))] = "sha256:" + "b" * 64
    world.settle()
    assert world.condition("RolledOut") == ("False", "WrongArtifact")
    assert world.condition("Ready") == ("False", "WrongArtifact")
    assert "sha256:bbbb" in world.message("Ready")


def test_history_keeps_what_serves_the_best_and_the_newest(world):
    world.change(revisionHistoryLimit=1)
    kept = []
    for seed, drop in enumerate(("0.001", "0.003", "0.004", "0.002")):
        world.change(seed=seed)
        kept.append(name_of(world.optimizes(drop=drop)))
        world.kserve_reconciles()
        world.settle()
        world.settle()
    assert {name_of(r) for r in world.all("ModelRevision")} == {kept[0], kept[2], kept[3]}
    assert world.model["status"]["best"]["revision"] == kept[0]


def test_an_object_that_is_being_deleted_is_left_alone(world):
    serve(world)
    world.model["metadata"]["deletionTimestamp"] = "2026-01-31T13:00:00Z"
    plan = world.plan()
    assert (plan.objects, plan.deletions, plan.status) == ((), (), {})
