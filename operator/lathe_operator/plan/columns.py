"""What `kubectl get om` shows beside the summary: short words for people."""

from collections.abc import Sequence
from typing import Final

from lathe_api.data import Metric
from lathe_api.optimizedmodel import OptimizedModel
from lathe_operator.plan import names
from lathe_operator.plan.observed import Json, dig
from lathe_operator.plan.rollout import built

_SHARES: Final = frozenset({Metric.ACCURACY, Metric.MACRO_F1})
_PERCENT: Final = 100.0


def columns(model: OptimizedModel, revision: Json | None) -> Json:
    """`status.columns`: of the first target that is built, else of the newest stage that has been measured."""
    if revision is None:
        return {}
    found: Json = {"revision": names.short_revision(revision["spec"]["hash"])}
    done = next((b for t in model.spec.targets if (b := built(revision, t.name))), None) or _so_far(revision)
    metric = model.spec.objective.metric
    if done.get("quality") is not None and done.get("originalQuality") is not None:
        found["quality"] = f"{_value(done['originalQuality'], metric)} → {_value(done['quality'], metric)}" + (
            " %" if metric in _SHARES else ""
        )
    if done.get("sizeRatio") is not None:
        found["size"] = times(float(done["sizeRatio"]))
    if done.get("latencyRatio") is not None:
        found["speedup"] = times(float(done["latencyRatio"]))
    return found


def times(ratio: float) -> str:
    """`10.3x`."""
    return f"{ratio:.1f}x"


def _so_far(revision: Json) -> Json:
    """Before the end: the import against the newest stage."""
    stages: Sequence[Json] = dig(revision, "status", "stages", default=[])
    measured = [s for s in stages if s.get("quality") is not None]
    sized = [s for s in stages if s.get("sizeBytes")]
    found: Json = {}
    if len(measured) > 1:
        found |= {"originalQuality": measured[0]["quality"], "quality": measured[-1]["quality"]}
    if len(sized) > 1:
        found["sizeRatio"] = sized[0]["sizeBytes"] / sized[-1]["sizeBytes"]
    return found


def _value(decimal: str, metric: Metric) -> str:
    number = float(decimal)
    return f"{number * _PERCENT:.1f}" if metric in _SHARES else f"{number:.4g}"
