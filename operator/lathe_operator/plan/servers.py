"""Whether the servers of a revision are really there: KServe's own status can say so while the old pods answer.

Evidence: the Deployment has seen its newest spec, all its pods are of it and available, its pods mount the wanted
repository, and the server that answers reports the promised digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lathe_api.wiring import LABEL_TARGET
from lathe_operator.plan.failures import Trouble, pods_trouble
from lathe_operator.plan.objects.serving import KSERVE_LABEL, STORAGE_ANNOTATION
from lathe_operator.plan.observed import Json, Observed, dig, find, label, name_of


@dataclass(frozen=True)
class ServerState:
    """How far the servers of one InferenceService are."""

    ready: bool
    replicas: int
    ready_replicas: int
    served: str | None
    """Digest that the server reports."""
    trouble: Trouble | None
    """What stands in the way, or what is waited for; None when ready."""


def server_state(wanted: Json, promised: str, observed: Observed) -> ServerState:
    """State of the servers of a wanted InferenceService.

    Args:
        wanted: the InferenceService as it is applied.
        promised: sha256 of the artifact, by the revision's status.
        observed: what is there.
    """
    name = name_of(wanted)
    deployment = find(observed.deployments, f"{name}-predictor")
    served = observed.served.get(name)
    if deployment is None:
        refused = _refused_by_kserve(find(observed.inference_services, name))
        waiting = refused or _waiting("Starting servers")
        return ServerState(ready=False, replicas=0, ready_replicas=0, served=served, trouble=waiting)
    replicas = int(dig(deployment, "spec", "replicas", default=1))
    if replicas == 0:
        # Nothing can be asked; what is stored was proved before it was published.
        return ServerState(ready=True, replicas=0, ready_replicas=0, served=None, trouble=None)
    available = int(dig(deployment, "status", "availableReplicas", default=0))
    trouble = _first(
        _rolled_out(deployment, replicas, wanted, observed),
        _right_artifact(name, served, promised),
    )
    return ServerState(
        ready=trouble is None, replicas=replicas, ready_replicas=available, served=served, trouble=trouble
    )


def _rolled_out(deployment: Json, replicas: int, wanted: Json, observed: Observed) -> Trouble | None:
    status = dig(deployment, "status", default={})
    seen = status.get("observedGeneration") == dig(deployment, "metadata", "generation")
    counts = [int(status.get(key, 0)) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    uri = dig(deployment, "spec", "template", "metadata", "annotations", STORAGE_ANNOTATION)
    mounted = uri == dig(wanted, "spec", "predictor", "model", "storageUri")
    if seen and mounted and counts == [replicas] * 3:
        return None
    pods = pods_of(name_of(wanted), observed.pods)
    target = label(wanted, LABEL_TARGET)
    words = f"Starting {target} {counts[2]}/{replicas}"
    return pods_trouble(pods, observed.claims) or _waiting(words)


def _right_artifact(name: str, served: str | None, promised: str) -> Trouble | None:
    if served == promised:
        return None
    if served is None:
        text = f"No server of InferenceService {name} answers for the model yet"
        return Trouble("NoAnswer", text, "Waiting for the server's answer")
    text = (
        f"The server of InferenceService {name} serves {served}, the revision promised {promised}. "
        "Somebody changed the model repository: restore it, or delete the ModelRevision to build it anew"
    )
    return Trouble("WrongArtifact", text, "The server serves another artifact")


def pods_of(inference_service: str, pods: Sequence[Json]) -> tuple[Json, ...]:
    """The pods of an InferenceService."""
    return tuple(p for p in pods if label(p, KSERVE_LABEL) == inference_service)


def _refused_by_kserve(found: Json | None) -> Trouble | None:
    failure = dig(found, "status", "modelStatus", "lastFailureInfo", "message")
    if failure is None:
        return None
    return Trouble("KServeRefused", f"KServe says: {failure}", f"KServe refuses: {failure}"[:1024])


def _waiting(words: str) -> Trouble:
    return Trouble("ServersStarting", words, words)


def _first(*troubles: Trouble | None) -> Trouble | None:
    return next((t for t in troubles if t is not None), None)
