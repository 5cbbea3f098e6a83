"""The servers: which revision each target serves, and what is started, changed in place or stopped for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.rollout import RolloutStrategy
from lathe_api.status import ConditionStatus, ConditionType
from lathe_api.summary import TargetState
from lathe_api.targets import Hardware, Target
from lathe_api.wiring import LABEL_REVISION, LABEL_TARGET
from lathe_operator.plan import names
from lathe_operator.plan.facts import TROUBLE_SECONDS, Fact, Part, false, troubled, true, unknown
from lathe_operator.plan.failures import Trouble
from lathe_operator.plan.objects.serving import KSERVE_LABEL, inference_service, service
from lathe_operator.plan.observed import Json, Observed, Ref, dig, find, label, name_of, ref_of
from lathe_operator.plan.servers import ServerState, pods_of, server_state

KSERVE_SECONDS: Final = 10.0
"""Next look for KServe where it is missing."""
STARTING_SECONDS: Final = 2.0
"""Next question to a server that is about to start."""
SERVING_SECONDS: Final = 30.0
"""Next question to a server that serves: what it answers shows in no watch."""
_KIND: Final = ConditionType.ROLLED_OUT
_AT_ONCE: Final = frozenset({RolloutStrategy.CANARY, RolloutStrategy.SHADOW})
_PASSING: Final = frozenset({"ServersStarting", "NoAnswer"})
"""Troubles that pass by themselves while servers start."""


@dataclass(frozen=True)
class Served:
    """What is decided of one target."""

    target: str
    revision: str | None
    """Name of the revision that answers under the target's Service; None before the first."""
    state: ServerState | None
    """Its servers."""
    moving: str | None = None
    """What the target waits for to get to the newest revision; None once it is there."""
    trouble: Trouble | None = None
    objects: tuple[Json, ...] = ()
    deletions: tuple[Ref, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """What is decided of all targets."""

    part: Part
    served: Mapping[str, Served] = field(default_factory=dict)
    """By target."""


def roll_out(model: OptimizedModel, revision: Json | None, observed: Observed) -> Rollout:
    """What is to be done so that each target serves the newest revision that is built for it.

    Args:
        model: resolved.
        revision: the ModelRevision whose stages are done; None while there is none: what serves is kept as it is.
        observed: what is there.
    """
    if not observed.kserve:
        text = (
            "The cluster does not know InferenceServices (serving.kserve.io/v1beta1). Install KServe; "
            "the rollout goes on by itself"
        )
        fact = false(_KIND, "KServeMissing", text)
        return Rollout(Part((fact,), "Waiting for KServe", requeue_after=KSERVE_SECONDS))
    decided = {t.name: _target(t, model, revision, observed) for t in _servable(model)}
    served = {name: s for name, s in decided.items() if s is not None}
    gone = _of_removed_targets(model, observed) if revision is not None else ()
    fact, summary = _conclusion(model, revision, tuple(served.values()))
    part = Part(
        (fact,),
        summary,
        done=fact.status is ConditionStatus.TRUE,
        objects=tuple(o for s in served.values() for o in s.objects),
        deletions=(*(d for s in served.values() for d in s.deletions), *gone),
        requeue_after=_next_look(tuple(served.values())),
    )
    return Rollout(part, served)


def built(revision: Json | None, target: str) -> Json | None:
    """What the status of a revision tells of a target that it built; None where it did not."""
    for found in dig(revision, "status", "targets", default=[]):
        if found.get("name") == target and found.get("state") == TargetState.BUILT and found.get("repository"):
            return dict(found)
    return None


def serving_revision(target: str, model: Json, observed: Observed) -> str | None:
    """Name of the revision that a target's Service points at."""
    found = find(observed.services, names.service(name_of(model), target))
    return None if found is None else label(found, LABEL_REVISION)


def _servable(model: OptimizedModel) -> tuple[Target, ...]:
    return tuple(t for t in model.spec.targets if t.hardware is not Hardware.EDGE)


def _target(target: Target, model: OptimizedModel, revision: Json | None, observed: Observed) -> Served | None:
    before = serving_revision(target.name, observed.model, observed)
    serving = find(observed.revisions, before) if before else None
    here = [i for i in observed.inference_services if label(i, LABEL_TARGET) == target.name]
    begun = any(label(i, LABEL_REVISION) == name_of(revision) for i in here) if revision else False
    newest = revision if built(revision, target.name) and (begun or not model.spec.suspend) else None
    wanted = newest or (serving if built(serving, target.name) else None)
    if wanted is None:
        return None
    try:
        servers = _servers(target, wanted, observed)
    except ValueError as error:
        text = f"Namespace {dig(observed.model, 'metadata', 'namespace')}: {error}, as KServe needs short names. "
        trouble = Trouble("NameTooLong", text + "Use a namespace with a shorter name", "Namespace name too long")
        return Served(target.name, before, None, trouble=trouble)
    state = server_state(servers, str((built(wanted, target.name) or {}).get("artifact")), observed)
    others = [i for i in here if name_of(i) != name_of(servers)]
    front = service(target, observed.model, servers)
    if before == name_of(wanted):
        stale = tuple(ref_of(i) for i in others)
        return Served(target.name, before, state, trouble=state.trouble, objects=(servers, front), deletions=stale)
    if model.spec.rollout.strategy is RolloutStrategy.RECREATE:
        return _recreate(target, before, state, (servers, front), others, observed)
    kept = () if serving is None or not built(serving, target.name) else (_servers(target, serving, observed),)
    moves = state.ready or before is None
    return Served(
        target.name,
        before,
        state,
        moving=f"Starting {target.name}",
        trouble=state.trouble,
        objects=(*kept, servers, *((front,) if moves else ())),
    )


def _recreate(
    target: Target,
    before: str | None,
    state: ServerState,
    objects: tuple[Json, ...],
    others: Sequence[Json],
    observed: Observed,
) -> Served:
    """The serving revision stops entirely before the next one starts, so that resources never double."""
    if others or any(pods_of(name, observed.pods) for name in _others_of(target, objects[0], observed)):
        stop = tuple(ref_of(i) for i in others)
        return Served(target.name, before, None, moving=f"Stopping {target.name} of {before}", deletions=stop)
    return Served(target.name, before, state, moving=f"Starting {target.name}", trouble=state.trouble, objects=objects)


def _others_of(target: Target, servers: Json, observed: Observed) -> set[str]:
    """Names of other InferenceServices of a target that pods are left of."""
    mine = {p["metadata"]["labels"].get(KSERVE_LABEL) for p in observed.pods if label(p, LABEL_TARGET) == target.name}
    return {str(name) for name in mine if name and name != name_of(servers)}


def _servers(target: Target, revision: Json, observed: Observed) -> Json:
    """The InferenceService of a revision, with those parts of the target as of today that are changed in place."""
    recorded = next(t for t in revision["spec"]["targets"] if t["name"] == target.name)
    then = Target.model_validate(recorded, by_alias=True, by_name=False)
    today = {"replicas": target.serving.replicas, "resources": target.serving.resources}
    now = then.model_copy(update={"pool": target.pool, "serving": then.serving.model_copy(update=today)})
    repository = (built(revision, target.name) or {})["repository"]
    return inference_service(now, revision, observed.model, repository)


def _of_removed_targets(model: OptimizedModel, observed: Observed) -> tuple[Ref, ...]:
    kept = {t.name for t in _servable(model)}
    children = (*observed.inference_services, *observed.services)
    return tuple(ref_of(o) for o in children if label(o, LABEL_TARGET) not in kept)


def _conclusion(model: OptimizedModel, revision: Json | None, served: Sequence[Served]) -> tuple[Fact, str]:
    for one in served:
        if one.trouble is not None and one.trouble.reason not in _PASSING:
            return troubled(_KIND, one.trouble), one.trouble.summary
    counts = ", ".join(f"{s.target} {s.state.ready_replicas}/{s.state.replicas}" for s in served if s.state is not None)
    if revision is None:
        return unknown(_KIND, "NotReached", "An earlier step is not done"), f"Serving {counts}" if counts else ""
    if not served:
        return _nothing_to_serve(model, revision)
    waits = next((s for s in served if s.moving or s.trouble), None)
    if waits is not None:
        words = waits.trouble.message if waits.trouble else str(waits.moving)
        return unknown(_KIND, "ServersStarting", words), f"Starting {counts}" if counts else str(waits.moving)
    behind = [s.target for s in served if s.revision != name_of(revision)]
    if behind:
        text = f"Revision {name_of(revision)} was not built for {', '.join(behind)}: an earlier one serves there"
        return false(_KIND, "EarlierRevisionServes", text), f"Serving {counts}"
    text = f"Revision {name_of(revision)} gets all traffic"
    if model.spec.rollout.strategy in _AT_ONCE:
        text += f"; strategy {model.spec.rollout.strategy} moves it at once in this version, as BlueGreen does"
    return true(_KIND, "Serving", text), f"Serving {counts}"


def _nothing_to_serve(model: OptimizedModel, revision: Json) -> tuple[Fact, str]:
    edges = [t.name for t in model.spec.targets if built(revision, t.name)]
    if edges:
        return true(_KIND, "NothingToServe", f"{', '.join(edges)}: built for devices"), f"Built {', '.join(edges)}"
    found = [
        f"{t['name']}: {t.get('message') or t.get('state')}" for t in dig(revision, "status", "targets", default=[])
    ]
    text = "No target that can be served was built. " + "; ".join(found)
    return false(_KIND, "NothingToServe", text), "Nothing to serve"


def _next_look(served: Sequence[Served]) -> float | None:
    if any(s.moving or (s.trouble and s.trouble.reason in _PASSING) for s in served):
        return STARTING_SECONDS
    if any(s.trouble for s in served):
        return TROUBLE_SECONDS
    return SERVING_SECONDS if served else None
