"""Numbers and names as people read them."""

import math
import re
from typing import Final

from lathe_api.data import Metric
from lathe_api.gates import SHARE_METRICS, GateMetric
from lathe_api.manifest import LatencyRatio
from lathe_api.summary import GateResult

NONE: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_RATIOS: Final = frozenset({GateMetric.SIZE_RATIO, GateMetric.PARAMETER_RATIO, GateMetric.LATENCY_RATIO})
_METRICS: Final = {
    "accuracy": "Accuracy",
    "macroF1": "Macro F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "ece": "Calibration error (ECE)",
    "worstSliceDrop": "Largest loss of a slice",
    "sizeRatio": "Size ratio",
    "parameterRatio": "Parameter ratio",
    "latencyRatio": "Latency ratio",
    "int8Coverage": "int8 coverage",
}
_CAMEL: Final = re.compile(r"[a-z][a-z0-9]*(?:[A-Z][a-z0-9]*)*")


def metric_name(metric: str) -> str:
    """A metric as people write it."""
    return _METRICS.get(metric, metric)


def in_sentence(metric: str) -> str:
    """A metric inside a sentence."""
    return metric_name(metric).lower() if metric == Metric.ACCURACY else metric_name(metric)


def is_share(metric: str) -> bool:
    """Whether people read a metric in percent."""
    return metric in {m.value for m in SHARE_METRICS}


def larger_is_better(metric: str) -> bool:
    """Whether a larger value of a task metric is better."""
    return metric not in {Metric.RMSE.value, Metric.MAE.value, Metric.ECE.value}


def number(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits, thousands separated."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == int(value) and abs(value) < 1e15:  # noqa: PLR2004 (whole numbers up to there are exact)
        shown = f"{int(value):,}"
    elif abs(value) >= 10**digits:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:.{digits}g}"
    return shown.replace("-", MINUS)


def percent(value: float, digits: int = 2) -> str:
    """A share in percent."""
    if not math.isfinite(value):
        return number(value)
    return f"{value * 100:.{0 if value in {0, 1} else digits}f}%".replace("-", MINUS)


def quality(metric: str, value: float) -> str:
    """A value of a metric of the answers."""
    return percent(value) if is_share(metric) else number(value)


def change(metric: str, value: float) -> str:
    """A difference of a metric without its unit; of a share in percentage points."""
    return _points(value) if is_share(metric) else number(value, 3)


def unit_of_change(metric: str) -> str:
    """What `change` counts, with the space before it."""
    return " points" if is_share(metric) else ""


def between(low: str, high: str) -> str:
    """An interval."""
    return f"{low} to {high}"


def times(ratio: float) -> str:
    """A ratio with three significant digits and the sign for times."""
    if not math.isfinite(ratio):
        return number(ratio) + TIMES if math.isinf(ratio) else NONE
    digits = 2 if abs(ratio) < 10 else 1 if abs(ratio) < 100 else 0  # noqa: PLR2004 (three significant digits)
    return f"{ratio:,.{digits}f}{TIMES}".replace("-", MINUS)


def compared(ratio: float, better: str, worse: str) -> tuple[str, str]:
    """A ratio as (number, word): above 1 with the word for better, below with the one for worse."""
    if not math.isfinite(ratio) or ratio <= 0:
        return times(ratio), better
    if times(ratio) == times(1):
        return times(1), "unchanged"
    return (times(ratio), better) if ratio > 1 else (times(1 / ratio), worse)


def too_noisy(latency: LatencyRatio) -> bool:
    """Whether the noise floor leaves open if the result is faster or slower."""
    floor = latency.noise_floor * latency.value
    low, high = min(latency.low, latency.value - floor), max(latency.high, latency.value + floor)
    return not (low > 1 or high < 1)


def noise(latency: LatencyRatio) -> str:
    """The noise floor as a share of the ratio."""
    return f"±{percent(latency.noise_floor, 1 if latency.noise_floor < 1 else 0)}"


def gate_value(gate: GateResult, value: float) -> str:
    """A value on the scale of a gate."""
    if gate.bound.startswith("drop"):
        if "relative" in gate.bound:
            return percent(value)
        return f"{_points(value)} points" if is_share(gate.metric) else number(value)
    if gate.metric in _RATIOS:
        return times(value)
    return quality(gate.metric, value)


def size(count: float) -> str:
    """Bytes in decimal units."""
    if not math.isfinite(count):
        return number(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:  # noqa: PLR2004 (would be shown as 1000)
            return f"{number(count, 3)} {unit}"
        count /= 1000
    return f"{number(count, 3)} TB"


def duration(seconds: float) -> str:
    """Wall time."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plural(count: int, noun: str, several: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def field_label(key: str) -> str:
    """The key of a record as a label: `parametersBefore` as `Parameters before`; names of layers stay as they are."""
    if not _CAMEL.fullmatch(key):
        return key
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()
    return spaced[0].upper() + spaced[1:]


def sentence(words: str) -> str:
    """A sentence with a capital, unless it starts with a name such as `sizeRatio`."""
    first = words.partition(" ")[0]
    return words[:1].upper() + words[1:] if first.isalpha() and first.islower() else words


def short(name: str, limit: int = 14) -> str:
    """A name for a narrow place."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _points(value: float) -> str:
    return f"{value * 100:.2f}".replace("-", MINUS) if math.isfinite(value) else number(value)
