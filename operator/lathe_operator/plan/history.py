"""Revisions over time: which was the best, and which are old enough to go."""

from collections.abc import Collection, Sequence
from typing import Final

from lathe_api.data import Metric
from lathe_api.optimizedmodel import OptimizedModel
from lathe_operator.plan.observed import Json, Observed, Ref, dig, name_of, ref_of
from lathe_operator.plan.rollout import built

SMALLER_IS_BETTER: Final = frozenset({Metric.RMSE, Metric.MAE})


def best(model: OptimizedModel, observed: Observed) -> Json | None:
    """`status.best`: of all revisions judged on the same evaluation set by the same metric the one of highest quality.

    Of equal quality the faster one, then the smaller one.
    """
    found = [entry for r in observed.revisions if _comparable(r, model) for entry in _entries(r, model)]
    if not found:
        return None
    sign = -1.0 if model.spec.objective.metric in SMALLER_IS_BETTER else 1.0

    def rank(entry: Json) -> tuple[float, float, float, str]:
        speed, size = float(entry.get("latencyRatio", 0)), float(entry.get("sizeRatio", 0))
        return sign * float(entry["value"]), speed, size, entry["revision"]

    return max(found, key=rank)


def outdated(model: OptimizedModel, observed: Observed, kept: Collection[str]) -> tuple[Ref, ...]:
    """Revisions beyond `spec.revisionHistoryLimit`, oldest first; those that are to be kept do not count."""
    others = sorted((r for r in observed.revisions if name_of(r) not in kept), key=_age)
    surplus = max(0, len(others) - model.spec.revision_history_limit)
    return tuple(ref_of(r) for r in others[:surplus])


def _comparable(revision: Json, model: OptimizedModel) -> bool:
    spec = model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    same_goal: bool = dig(revision, "spec", "objective") == spec["objective"]
    same_data: bool = dig(revision, "spec", "data", "evaluation") == spec["data"]["evaluation"]
    return same_goal and same_data


def _entries(revision: Json, model: OptimizedModel) -> Sequence[Json]:
    targets = (built(revision, t.name) for t in model.spec.targets)
    return [
        {
            "revision": name_of(revision),
            "metric": model.spec.objective.metric.value,
            "value": t["quality"],
            **{key: t[key] for key in ("sizeRatio", "latencyRatio") if t.get(key) is not None},
        }
        for t in targets
        if t is not None and t.get("quality") is not None
    ]


def _age(revision: Json) -> tuple[str, str]:
    return str(dig(revision, "metadata", "creationTimestamp", default="")), name_of(revision)
