"""Gates: what a result must prove before it goes on."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Decimal, Name, NonNegative, Share
from lathe_api.findings import Finding, exactly_one, refuse


class GateMetric(StrEnum):
    """What a gate measures. Ratios are original / result, so that larger is better."""

    ACCURACY = "accuracy"
    MACRO_F1 = "macroF1"
    RMSE = "rmse"
    MAE = "mae"
    R2 = "r2"
    ECE = "ece"
    """Expected calibration error: how far confidence is from accuracy, over 15 bins of confidence."""
    WORST_SLICE_DROP = "worstSliceDrop"
    """The largest loss among the slices of the evaluation set (`data.slices`)."""
    SIZE_RATIO = "sizeRatio"
    PARAMETER_RATIO = "parameterRatio"
    LATENCY_RATIO = "latencyRatio"
    INT8_COVERAGE = "int8Coverage"


QUALITY_METRICS: Final = frozenset(
    {GateMetric.ACCURACY, GateMetric.MACRO_F1, GateMetric.RMSE, GateMetric.MAE, GateMetric.R2, GateMetric.ECE}
)
"""Metrics of the answers, as opposed to those of the file and its speed."""
DROP_METRICS: Final = QUALITY_METRICS | {GateMetric.WORST_SLICE_DROP}
"""Metrics that can be bounded by `maxDrop`."""
SHARE_METRICS: Final = frozenset({GateMetric.ACCURACY, GateMetric.MACRO_F1, GateMetric.INT8_COVERAGE, GateMetric.ECE})
"""Metrics that lie between 0 and 1."""


class Baseline(StrEnum):
    """What a result is compared with."""

    ORIGINAL = "Original"
    PREVIOUS = "Previous"


class DropType(StrEnum):
    """How a loss is counted: in the metric's own unit, or as a share of the baseline's value."""

    ABSOLUTE = "Absolute"
    RELATIVE = "Relative"


class OnFail(StrEnum):
    """What happens when the gate is not passed."""

    STOP = "Stop"
    REVERT = "Revert"
    FALLBACK = "Fallback"


class OnInconclusive(StrEnum):
    """What happens when the measurement cannot decide."""

    STOP = "Stop"
    CONTINUE = "Continue"


class Gate(ApiModel):
    """One bound on one metric."""

    name: Name
    """Unique within the document."""
    metric: GateMetric
    """What is measured."""
    baseline: Baseline = Baseline.ORIGINAL
    """What the result is compared with. Previous judges every stage against the one before it."""
    min: Decimal | None = None
    """The value must be at least this."""
    max: Decimal | None = None
    """The value must be at most this."""
    max_drop: NonNegative | None = None
    """The value may be worse than the baseline's by at most this."""
    drop_type: DropType = DropType.ABSOLUTE
    """How `maxDrop` is counted."""
    confidence: Share = "0.95"
    """Certainty with which the bound must hold (one-sided)."""
    min_samples: Annotated[int, Field(ge=1, le=100_000_000)] = 100
    """Fewer evaluation samples than this give Inconclusive; of worstSliceDrop: smaller slices are not judged."""
    stages: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    """After which stages the gate is judged; by default after the last, or after each for baseline Previous."""
    on_fail: OnFail = OnFail.STOP
    """What happens when the bound is broken."""
    on_inconclusive: OnInconclusive = OnInconclusive.STOP
    """What happens when the measurement cannot decide."""

    @model_validator(mode="after")
    def _one_possible_bound(self) -> "Gate":
        bounds = {"min": self.min, "max": self.max, "maxDrop": self.max_drop}
        given = {name: value for name, value in bounds.items() if value is not None}
        findings = exactly_one((), given, bounds)
        if self.max_drop is not None and self.metric not in DROP_METRICS:
            example = 'min: "0.9"' if self.metric is GateMetric.INT8_COVERAGE else 'min: "2.0"'
            findings.append(Finding(("maxDrop",), f"a drop of {self.metric}", f"write {example}: it has no drop"))
        if self.max_drop is None and given and self.metric is GateMetric.WORST_SLICE_DROP:
            remedy = 'write maxDrop: "0.05": the metric is a loss'
            findings.append(Finding((next(iter(given)),), f"a bound on {self.metric}", remedy))
        for name, value in given.items():
            relative = name == "maxDrop" and self.drop_type is DropType.RELATIVE
            if (relative or self.metric in SHARE_METRICS) and not 0 <= float(value) <= 1:
                example = f'"{float(value) / 100:.12g}"' if 1 < float(value) <= 100 else '"0.02"'  # noqa: PLR2004
                what = "a relative drop" if relative else self.metric.value
                remedy = f"write {example}: {what} is a share from 0 to 1"
                findings.append(Finding((name,), f'"{value}"', remedy))
        refuse("gate", findings)
        return self
