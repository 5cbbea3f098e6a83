"""`status` of an OptimizedModel, and the operator's part of the status of its revisions."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.status import Condition, ConditionStatus, ConditionType
from lathe_api.targets import ScaleOn, Target
from lathe_operator.plan import names
from lathe_operator.plan.columns import columns
from lathe_operator.plan.facts import NEEDED, Fact, Part, conditions_of, judged
from lathe_operator.plan.observed import Json, Observed, dig, find, name_of
from lathe_operator.plan.rollout import Rollout
from lathe_operator.settings import Settings

LONGEST_SUMMARY: Final = 1024
_PROVED: Final = (ConditionType.OPTIMIZED, ConditionType.GATES_PASSED, ConditionType.PUBLISHED)
"""Conditions of a ModelRevision; how it is served is its model's affair."""
_RESULT: Final = (
    "state",
    "artifact",
    "repository",
    "sizeRatio",
    "latencyRatio",
    "quality",
    "originalQuality",
    "qualityDrop",
    "message",
)


def status(
    model: OptimizedModel,
    revision_name: str,
    facts: Sequence[Fact],
    summary: str,
    rollout: Rollout,
    observed: Observed,
    settings: Settings,
    now: datetime,
) -> Json:
    """The whole status, but for `best`.

    Args:
        model: resolved.
        revision_name: of the revision that belongs to its spec.
        facts: of all steps.
        summary: for the one column.
        rollout: of all targets.
        observed: what is there.
        settings: of the operator.
        now: for conditions that change.
    """
    raw = observed.model
    generation = int(raw["metadata"].get("generation", 0))
    revision = find(observed.revisions, revision_name)
    found: Json = {
        "summary": summary[:LONGEST_SUMMARY],
        "observedGeneration": generation,
        "conditions": _dump(judged(conditions_of(raw), facts, NEEDED, generation, now)),
        "columns": columns(model, revision),
        "observedRevision": revision_name,
        "targets": [_target(t, revision, rollout, observed, settings) for t in model.spec.targets],
    }
    searched = dig(revision, "status", "search") if revision is not None else None
    if searched is not None:
        found["search"] = searched
    serving = _serving(rollout, dig(raw, "status", "servingRevision"))
    if serving is not None:
        found |= {"servingRevision": serving, "traffic": [{"revision": serving, "weight": 100}]}
    url = next((t["url"] for t in found["targets"] if "url" in t), None)
    if url is not None:
        found["url"] = url
    return found


def revision_status(revision: Json, parts: Sequence[Part], summary: str, now: datetime) -> Json:
    """The operator's part of the status of the revision that belongs to the spec.

    What may pass by itself is Unknown there: False is final, and remembered when the Job is long gone.
    """
    facts = [_settled(fact, part) for part in parts for fact in part.facts if fact.kind in _PROVED]
    generation = int(revision["metadata"].get("generation", 0))
    return {
        "summary": summary[:LONGEST_SUMMARY],
        "observedGeneration": generation,
        "conditions": _dump(judged(conditions_of(revision), facts, _PROVED, generation, now)),
    }


def left_behind(revision_name: str, observed: Observed) -> dict[str, Json]:
    """Status of revisions that nobody waits for any more, by name."""
    return {
        name_of(r): {"summary": f"Superseded by {revision_name}", "observedGeneration": r["metadata"]["generation"]}
        for r in observed.revisions
        if name_of(r) != revision_name and dig(r, "status", "finishedAt") is None
    }


def _settled(fact: Fact, part: Part) -> Fact:
    passing = fact.status is ConditionStatus.FALSE and not part.final
    return replace(fact, status=ConditionStatus.UNKNOWN) if passing else fact


def _dump(conditions: Sequence[Condition]) -> list[Json]:
    return [c.model_dump(mode="json", by_alias=True) for c in conditions]


def _serving(rollout: Rollout, before: str | None) -> str | None:
    """The revision behind the first target's Service, once one of its servers has been ready."""
    for served in rollout.served.values():
        if served.revision is None:
            continue
        answers = served.moving is not None or (served.state is not None and served.state.ready)
        if answers or served.revision == before:
            return served.revision
    return None


def _target(target: Target, revision: Json | None, rollout: Rollout, observed: Observed, settings: Settings) -> Json:
    name = target.name
    found: Json = {"name": name, "hardware": target.hardware.value}
    served = rollout.served.get(name)
    behind = find(observed.revisions, served.revision) if served and served.revision else None
    result = _result(revision, name) or _result(behind, name)
    found |= {key: result[key] for key in _RESULT if result.get(key) is not None}
    if served is None:
        return found
    if target.serving.replicas.scale_on not in (None, ScaleOn.CPU):
        scale = target.serving.replicas.scale_on
        found["message"] = f"This version does not scale on {scale}: replicas.min servers run"
    if served.state is not None:
        found |= {"replicas": served.state.replicas, "readyReplicas": served.state.ready_replicas}
        if served.state.served is not None:
            found["serving"] = served.state.served
    if served.revision is not None:
        meta = observed.model["metadata"]
        host = f"{names.service(meta['name'], name)}.{meta['namespace']}.svc.{settings.cluster_domain}"
        found["url"] = f"http://{host}"
    return found


def _result(revision: Json | None, target: str) -> Json:
    entries: list[Json] = dig(revision, "status", "targets", default=[])
    return next((t for t in entries if t.get("name") == target), {})
