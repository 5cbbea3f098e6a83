"""What GitOps tools see of what the operator decides: Argo CD by its Lua checks, Flux by the rules of kstatus."""

from pathlib import Path

import lupa
import pytest
from support.world import World, finished

from lathe_operator.settings import Settings

FOLDER = Path(__file__).parents[2] / "gitops" / "argocd" / "lathe.dev"
SOURCE = {"uri": "pvc://sets/train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}
SPEC = {
    "model": {"uri": "pvc://files/teacher.pt2", "format": "Pt2"},
    "data": {"train": SOURCE, "evaluation": SOURCE},
    "objective": {"task": "Classification", "metric": "accuracy"},
    "recipe": {"stages": [{"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}]},
    "targets": [{"name": "cpu", "hardware": "X86Vnni"}],
}


def health(obj):
    """Status and message, as Argo CD runs the check: with `obj` as a global."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    found = lua.execute((FOLDER / obj["kind"] / "health.lua").read_text())
    return found["status"], found["message"]


def fresh():
    return World(SPEC, Settings(store_uri="pvc://store/"))


def running():
    world = fresh()
    world.settle()
    return world


def served():
    world = fresh()
    world.optimizes()
    world.kserve_reconciles()
    world.settle()
    return world


def starting():
    world = fresh()
    world.optimizes()
    world.kserve_reconciles(ready=False)
    world.settle()
    return world


def refused():
    world = running()
    revision = world.the("ModelRevision")
    gate = {"name": "cpu.onnx.size", "metric": "sizeRatio", "verdict": "Failed", "bound": "min 3", "reason": "2.1"}
    target = {"name": "cpu", "hardware": "X86Vnni", "state": "Refused"}
    world.reports(revision, gates=[gate], targets=[target], finishedAt="2026-01-31T12:05:00Z")
    world.settle()
    return world


def failed():
    world = running()
    world.ends(world.the("Job"), "Failed", "BackoffLimitExceeded")
    world.settle()
    return world


def suspended():
    world = fresh()
    world.change(suspend=True)
    world.settle()
    return world


def changed():
    world = served()
    world.change(seed=1)
    return world


def without_kserve():
    world = fresh()
    world.kserve = False
    world.optimizes()
    return world


def swapped():
    world = served()
    for name in world.served:
        world.served[name] = "sha256:" + "b" * 64
    world.settle()
    return world


MODELS = {
    "just applied": (fresh, "Progressing", "Waiting for the operator"),
    "being optimised": (running, "Progressing", "Optimizing int8 (1 of 2)"),
    "starting": (starting, "Progressing", "Starting cpu 0/1"),
    "served": (served, "Healthy", "Serving cpu 1/1"),
    "changed a moment ago": (changed, "Progressing", "newest spec"),
    "refused by a gate": (refused, "Degraded", "Refused by gate size"),
    "with a Job that failed": (failed, "Degraded", "failed"),
    "without KServe": (without_kserve, "Degraded", "Install KServe"),
    "serving another artifact": (swapped, "Degraded", "sha256:bbb"),
    "suspended": (suspended, "Suspended", "Suspended"),
}


@pytest.mark.parametrize(("make", "status", "words"), MODELS.values(), ids=MODELS)
def test_argo_cd_tells_how_a_model_is(make, status, words):
    found = health(make().model)
    assert found[0] == status
    assert words in found[1]


def superseded():
    world = running()
    world.change(seed=1)
    world.settle()
    world.objects = {k: o for k, o in world.objects.items() if o.get("spec", {}).get("seed") == 0}
    return world


REVISIONS = {
    "being optimised": (running, "Progressing", "Optimizing"),
    "done": (served, "Healthy", "Published"),
    "refused by a gate": (refused, "Degraded", "Refused by gate size"),
    "with a Job that failed": (failed, "Degraded", "failed"),
    "superseded": (superseded, "Suspended", "Superseded by"),
}


@pytest.mark.parametrize(("make", "status", "words"), REVISIONS.values(), ids=REVISIONS)
def test_argo_cd_tells_how_a_revision_is(make, status, words):
    found = health(make().the("ModelRevision"))
    assert found[0] == status
    assert words in found[1]


def test_flux_can_rely_on_generations_and_on_ready_from_the_first_status_on():
    """kstatus: the status is current when observedGeneration is, and Ready decides."""
    world = fresh()
    steps = [
        world.step,
        world.settle,
        lambda: world.reports(world.the("ModelRevision"), **finished(world.the("ModelRevision"))),
        world.settle,
        world.kserve_reconciles,
        world.settle,
        lambda: world.change(seed=4),
        world.settle,
    ]
    seen = []
    for step in steps:
        step()
        if step not in (world.step, world.settle):
            continue
        status = world.model["status"]
        assert status["observedGeneration"] == world.model["metadata"]["generation"]
        (ready,) = [c for c in status["conditions"] if c["type"] == "Ready"]
        assert ready["status"] in ("True", "False")
        assert ready["observedGeneration"] == world.model["metadata"]["generation"]
        seen.append(ready["status"])
    assert seen == ["False", "False", "False", "True", "False"]
