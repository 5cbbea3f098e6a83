"""What a search did: its trials, which are best in something, and which one was taken."""

from enum import StrEnum

from lathe_api.base import ApiModel
from lathe_api.search import Sampler


class TrialCheck(StrEnum):
    """What a trial must pass, cheapest first."""

    STAGES = "Stages"
    """Every stage can be done."""
    STRUCTURE = "Structure"
    """Gates that the file alone decides: size, parameters, share of integer kernels."""
    PARITY = "Parity"
    """A few answers have the right shape and are finite."""
    SAMPLE = "Sample"
    """A small sample of the evaluation set shows no hopeless loss."""
    QUALITY = "Quality"
    """Gates on the quality, on the whole evaluation set."""
    LATENCY = "Latency"
    """Gates on the paired latency."""


class TrialState(StrEnum):
    """What became of a trial."""

    PASSED = "Passed"
    """No gate stands in its way: it may be taken."""
    STOPPED = "Stopped"
    """It failed a check, and what comes after that was saved."""


class TrialValue(ApiModel):
    """What one setting was tried with."""

    stage: str
    field: str
    value: str


class TrialMeasures(ApiModel):
    """What a finished trial measures for one target."""

    target: str
    metric: str
    quality: float
    size_ratio: float
    """Bytes of the original / bytes of the result."""
    parameter_ratio: float
    int8_coverage: float
    latency_ratio: float | None
    """Time of the original / time of the result."""
    noise_floor: float | None = None
    """Share by which the ratio of two equal models may differ from 1."""


class Trial(ApiModel):
    """One combination that was tried."""

    number: int
    """From 1, in the order of the search."""
    values: tuple[TrialValue, ...]
    state: TrialState
    check: TrialCheck | None = None
    """Where it was stopped."""
    reason: str
    """Why this state, with the numbers."""
    missed_by: float | None = None
    """How far the first bound that stopped it was missed, as a share of the bound."""
    seconds: float
    """What it cost; stages of earlier trials are free."""
    spent: dict[TrialCheck, float] = {}
    """Of that, on each check."""
    measures: tuple[TrialMeasures, ...] = ()
    """Of each target; none where it was stopped before all was measured."""
    goals: tuple[float, ...] = ()
    """Value of each goal, the worst of all targets."""
    best: bool = False
    """Whether no other trial that passed is at least as good in every goal."""


class SearchResult(ApiModel):
    """The search of a run."""

    sampler: Sampler
    combinations: int
    """That the choices allow."""
    possible: int | None
    """Of these, those that are possible recipes; none where there are too many to look at each."""
    impossible: tuple[str, ...] = ()
    """Why the others are not, each reason once."""
    goals: tuple[str, ...]
    """In words, such as `Maximize latencyRatio`."""
    trials: tuple[Trial, ...]
    chosen: int | None
    """Number of the trial that was taken; none where no trial passed."""
    nearest: int | None = None
    """Number of the trial that came nearest, where none passed."""
    reason: str
    """Why this one, in a sentence."""
    ended: str
    """Why no more was tried."""
    resumed: int = 0
    """Trials that an earlier, interrupted run had done."""
    seconds: float
    """What all trials cost, in all runs."""
