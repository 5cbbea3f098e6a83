"""Gates: what a result must prove before it goes on."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lathe_api.base import ApiModel, Decimal, Name, NonNegative, Share


class GateMetric(StrEnum):
    """What a gate measures. Ratios are original / result, so that larger is better."""

    ACCURACY = "accuracy"
    MACRO_F1 = "macroF1"
    RMSE = "rmse"
    MAE = "mae"
    R2 = "r2"
    SIZE_RATIO = "sizeRatio"
    PARAMETER_RATIO = "parameterRatio"
    LATENCY_RATIO = "latencyRatio"
    INT8_COVERAGE = "int8Coverage"


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
    """Fewer evaluation samples than this give Inconclusive."""
    stages: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    """After which stages the gate is judged; by default after the last, or after each for baseline Previous."""
    on_fail: OnFail = OnFail.STOP
    """What happens when the bound is broken."""
    on_inconclusive: OnInconclusive = OnInconclusive.STOP
    """What happens when the measurement cannot decide."""
