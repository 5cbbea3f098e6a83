"""Judges gates. Pure: measurements in, verdict with number, bound and reason out.

A bound on a measured quantity is a one-sided test at the gate's confidence. It is Passed when the whole interval is on
the right side of the bound, Failed when the whole interval is on the wrong side, and Inconclusive between: more samples
or a quieter machine could still decide either way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lathe_api.data import Metric
from lathe_api.gates import Baseline, Gate, GateMetric
from lathe_api.manifest import LatencyRatio, StageMetrics
from lathe_api.summary import GateResult, Verdict
from lathe_optimizers import quality, remedies, slices
from lathe_optimizers.quality import Answered
from lathe_optimizers.statistics import Interval, mcnemar_exact

QUALITY: Final = {m.value: m for m in Metric}
SHARES: Final = frozenset({Metric.ACCURACY, Metric.MACRO_F1})
"""Metrics that people read in percentage points."""
SHOWN_SLICES: Final = 8


@dataclass(frozen=True)
class StageQuality:
    """How good one stage's result is, for finding the stage that lost the most."""

    name: str
    type: str
    value: float


@dataclass(frozen=True)
class Side:
    """One artifact of a comparison."""

    metrics: StageMetrics
    answered: Callable[[Metric], Answered]
    """Judges the artifact's answers by a metric."""


@dataclass(frozen=True)
class Evidence:
    """What is known when a gate is judged after a stage."""

    result: Side
    original: Side
    previous: Side
    path: tuple[StageQuality, ...]
    """The stages up to the one that is judged."""
    latency_counts: tuple[bool, str]
    """Whether a latency measured here says something about the target, and why not."""
    seed: int
    metric: Metric = Metric.ACCURACY
    """Of the objective."""
    slices: tuple[str, ...] = ()
    """Slice of each evaluation sample, where a gate asks for it."""


@dataclass(frozen=True)
class Ruling:
    """A verdict before it has a remedy."""

    verdict: Verdict
    interval: Interval | None
    bound: str
    reason: str


def judge(gate: Gate, *, target: str, stage: str, evidence: Evidence) -> GateResult:
    """The verdict of one gate on the result of one stage."""
    if gate.metric.value in QUALITY:
        ruling = _quality(gate, QUALITY[gate.metric.value], evidence)
    elif gate.metric is GateMetric.WORST_SLICE_DROP:
        ruling = _worst_slice(gate, evidence)
    elif gate.metric is GateMetric.LATENCY_RATIO:
        ruling = _latency(gate, evidence)
    else:
        ruling = _exact(gate, evidence)
    passed = ruling.verdict is Verdict.PASSED
    interval = ruling.interval
    return GateResult(
        gate=gate.name,
        target=target,
        stage=stage,
        metric=gate.metric,
        verdict=ruling.verdict,
        value=interval.value if interval is not None else None,
        low=interval.low if interval is not None else None,
        high=interval.high if interval is not None else None,
        bound=ruling.bound,
        reason=ruling.reason,
        remedy=None if passed else remedies.remedy(gate, ruling.verdict, evidence.path),
    )


def _quality(gate: Gate, metric: Metric, evidence: Evidence) -> Ruling:
    own = evidence.result.answered(metric)
    samples, confidence = len(own.contributions), float(gate.confidence)
    baseline = evidence.original if gate.baseline is Baseline.ORIGINAL else evidence.previous
    if gate.max_drop is not None:
        interval = quality.drop(
            baseline.answered(metric),
            own,
            kind=gate.drop_type,
            confidence=confidence,
            two_sided=False,
            seed=evidence.seed,
        )
        limit, larger, bound = float(gate.max_drop), False, f"drop <= {gate.max_drop} {gate.drop_type.lower()}"
        noun = f"the drop of {metric} against the {gate.baseline.lower()}"
    else:
        interval = quality.value_interval(own, confidence, evidence.seed)
        limit, larger, bound = _limit(gate)
        noun = str(metric)
    shown = _shown(interval)
    if samples < gate.min_samples:
        reason = (
            f"the evaluation set has {samples} samples, the gate wants {gate.min_samples}; {noun} is {shown} on them"
        )
        return Ruling(Verdict.INCONCLUSIVE, interval, bound, reason)
    verdict = _verdict(interval, limit, larger=larger)
    reason = (
        f"{noun} is {shown} at {confidence:.0%} confidence on {samples} samples, {_words(verdict)} the bound {limit:g}"
    )
    if verdict is Verdict.INCONCLUSIVE:
        reason += _samples_needed(interval, limit, samples)
    if gate.max_drop is not None and metric is Metric.ACCURACY:
        pairs = quality.pairs(baseline.answered(metric), own)
        chance = mcnemar_exact(pairs.first, pairs.second)
        reason += f"; {pairs.first} answers became wrong and {pairs.second} right (exact McNemar p = {chance:.2g})"
    return Ruling(verdict, interval, bound, reason)


def _worst_slice(gate: Gate, evidence: Evidence) -> Ruling:
    # The average over classes says nothing within one class.
    metric = Metric.ACCURACY if evidence.metric is Metric.MACRO_F1 else evidence.metric
    baseline = evidence.original if gate.baseline is Baseline.ORIGINAL else evidence.previous
    confidence = float(gate.confidence)
    found = slices.worst_slice(
        baseline.answered(metric),
        evidence.result.answered(metric),
        evidence.slices,
        kind=gate.drop_type,
        confidence=confidence,
        min_samples=gate.min_samples,
        seed=evidence.seed,
    )
    bound = f"drop of every slice <= {gate.max_drop} {gate.drop_type.lower()}"
    left_out = (
        f"; not judged, with fewer than {gate.min_samples} samples: {_listed(found.small)}" if found.small else ""
    )
    if found.worst is None:
        reason = f"no slice of the evaluation set has {gate.min_samples} samples{left_out}"
        return Ruling(Verdict.INCONCLUSIVE, None, bound, reason)
    limit = float(gate.max_drop or "nan")
    verdict = _verdict(found.interval, limit, larger=False)
    reason = (
        f"of {found.judged} slices {found.worst.name} ({found.worst.samples} samples) lost the most of {metric}; the "
        f"largest drop against the {gate.baseline.lower()} is {_shown(found.interval)} at {confidence:.0%} confidence, "
        f"{_words(verdict)} the bound {limit:g}{left_out}"
    )
    return Ruling(verdict, found.interval, bound, reason)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN_SLICES} more" if len(names) > SHOWN_SLICES else ""
    return ", ".join(names[:SHOWN_SLICES]) + more


def _latency(gate: Gate, evidence: Evidence) -> Ruling:
    limit, larger, bound = _limit(gate)
    counts, why = evidence.latency_counts
    ratio = _ratio(gate, evidence)
    if ratio is None:
        return Ruling(Verdict.INCONCLUSIVE, None, bound, "no latency was measured")
    interval = Interval(ratio.value, ratio.low, ratio.high)
    noise = f"noise floor {ratio.noise_floor:.3f}"
    measured = f"{gate.baseline.lower()} / result is {_shown(interval)} over {ratio.rounds} paired rounds, {noise}"
    if not counts:
        return Ruling(Verdict.INCONCLUSIVE, interval, bound, f"{measured}; it does not count: {why}")
    # What the baseline differs from itself by is no difference of the model's.
    floor = ratio.noise_floor * ratio.value
    widened = Interval(ratio.value, min(ratio.low, ratio.value - floor), max(ratio.high, ratio.value + floor))
    verdict = _verdict(widened, limit, larger=larger)
    words = _words(verdict)
    if verdict is Verdict.INCONCLUSIVE and _verdict(interval, limit, larger=larger) is not verdict:
        words = "nearer than that to"
    return Ruling(verdict, interval, bound, f"{measured}, {words} the bound {limit:g}")


def _ratio(gate: Gate, evidence: Evidence) -> LatencyRatio | None:
    """Time of the baseline / time of the result.

    Both were timed against the original only: against the stage before it is the quotient of both ratios, with the
    bounds of the worst case.
    """
    own, before = evidence.result.metrics.latency, evidence.previous.metrics.latency
    if gate.baseline is Baseline.ORIGINAL or own is None or before is None:
        return own
    return own.model_copy(
        update={
            "value": own.value / before.value,
            "low": own.low / before.high,
            "high": own.high / before.low,
            "noise_floor": own.noise_floor + before.noise_floor,
        }
    )


def _exact(gate: Gate, evidence: Evidence) -> Ruling:
    limit, larger, bound = _limit(gate)
    result = evidence.result.metrics
    base = (evidence.original if gate.baseline is Baseline.ORIGINAL else evidence.previous).metrics
    match gate.metric:
        case GateMetric.SIZE_RATIO:
            value, how = base.size_bytes / result.size_bytes, f"{base.size_bytes} / {result.size_bytes} bytes"
        case GateMetric.PARAMETER_RATIO:
            value, how = (
                base.parameters / max(result.parameters, 1),
                f"{base.parameters} / {result.parameters} parameters",
            )
        case GateMetric.INT8_COVERAGE:
            kernels = result.kernels
            value, how = kernels.coverage, f"{kernels.int8} of {kernels.int8 + kernels.float32} matrix kernels"
        case _:
            return Ruling(Verdict.INCONCLUSIVE, None, bound, f"{gate.metric} is not measured in this version")
    interval = Interval(value, value, value)
    verdict = _verdict(interval, limit, larger=larger)
    return Ruling(
        verdict, interval, bound, f"{gate.metric} is {value:.3f} ({how}), {_words(verdict)} the bound {limit:g}"
    )


def _limit(gate: Gate) -> tuple[float, bool, str]:
    """The bound, whether values above it are right, and the bound in words."""
    if gate.min is not None:
        return float(gate.min), True, f"{gate.metric} >= {gate.min}"
    return float(gate.max or "nan"), False, f"{gate.metric} <= {gate.max}"


def _verdict(interval: Interval, limit: float, *, larger: bool) -> Verdict:
    low, high = (interval.low, interval.high) if larger else (-interval.high, -interval.low)
    edge = limit if larger else -limit
    if not all(math.isfinite(v) for v in (low, high)) and math.isnan(interval.value):
        return Verdict.INCONCLUSIVE
    if low >= edge:
        return Verdict.PASSED
    return Verdict.FAILED if high < edge else Verdict.INCONCLUSIVE


def _words(verdict: Verdict) -> str:
    return {
        Verdict.PASSED: "all of it within",
        Verdict.FAILED: "all of it beyond",
        Verdict.INCONCLUSIVE: "on both sides of",
    }[verdict]


def _shown(interval: Interval) -> str:
    if interval.low == interval.high == interval.value:
        return f"{interval.value:.4f}"
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _samples_needed(interval: Interval, limit: float, samples: int) -> str:
    """How many samples would decide, if the value stayed: an interval shrinks with the root of their number."""
    distance = abs(interval.value - limit)
    half = interval.high - interval.value if interval.value <= limit else interval.value - interval.low
    if distance == 0 or half <= 0 or not math.isfinite(half):
        return ""
    return f"; about {math.ceil(samples * (half / distance) ** 2)} samples would decide it"
