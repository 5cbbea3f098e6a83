"""Online learning: a served model that learns from labelled requests, and when that becomes a new revision.

OnlineGradientDescent takes one step per example. HedgeBackpropagation (Sahoo, Pham, Lu, Hoi, "Online Deep Learning",
IJCAI 2018, arXiv:1711.03705) puts a head on every layer and weights the heads by how well they did, so that the depth
of the network need not be chosen beforehand. Forgetting is held back by replay, and found by a frozen hold-out set.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, CronSchedule, Duration, FieldName, Name, Positive, Samples, Share, UnitDecimal
from lathe_api.findings import Finding, duplicates, exactly_one, refuse
from lathe_api.objects import SecretRef


class LearningMethod(StrEnum):
    """How weights follow the stream."""

    ONLINE_GRADIENT_DESCENT = "OnlineGradientDescent"
    HEDGE_BACKPROPAGATION = "HedgeBackpropagation"


class LearningScope(StrEnum):
    """Which weights move."""

    HEAD = "Head"
    """A head on frozen features: cheap, and the optimised network stays as it was proved."""
    ALL = "All"


class HeadRate(StrEnum):
    """Learning rate of the heads of HedgeBackpropagation."""

    FULL = "Full"
    """Every head learns at the full rate: far better on short streams."""
    WEIGHTED = "Weighted"
    """As published: a head's rate is scaled by its weight."""


class InputHead(StrEnum):
    """Whether a linear head on the input takes part in HedgeBackpropagation."""

    INCLUDE = "Include"
    OMIT = "Omit"


class ReplayLocation(StrEnum):
    """Where remembered examples are kept."""

    SERVER = "Server"
    DEVICE = "Device"


class GuardOnFail(StrEnum):
    """What happens when learning made the model worse."""

    ROLLBACK = "Rollback"
    """Back to the last good snapshot; learning goes on."""
    FREEZE = "Freeze"
    """Back to the last good snapshot; learning stops until it is resumed."""


class TriggerType(StrEnum):
    """What starts a new revision."""

    SAMPLES = "Samples"
    SCHEDULE = "Schedule"
    DRIFT = "Drift"
    QUALITY = "Quality"


class Hedge(ApiModel):
    """Settings of HedgeBackpropagation."""

    layers: Annotated[int, Field(ge=1, le=64)] = 4
    """Hidden layers."""
    units: Annotated[int, Field(ge=1, le=8192)] = 100
    """Units of each hidden layer."""
    discount: Share = "0.99"
    """A head's weight is multiplied by this to the power of its loss (beta in the paper)."""
    smoothing: Share = "0.2"
    """Floor that all heads' weights share (s in the paper), so that none is forgotten for good."""
    head_rate: HeadRate = HeadRate.FULL
    """Learning rate of the heads."""
    input_head: InputHead = InputHead.INCLUDE
    """Whether a linear head on the input takes part."""


class Replay(ApiModel):
    """Examples that are remembered and learnt again. This stores data of users: see `retention` and `location`."""

    size: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Examples that are kept, a uniform sample of the stream, balanced over classes."""
    per_update: Annotated[int, Field(ge=1, le=1024)] = 8
    """Remembered examples in each update."""
    retention: Duration = "24h"
    """An example is forgotten after this long."""
    location: ReplayLocation = ReplayLocation.SERVER
    """Where they are kept; they never leave it."""


class Snapshots(ApiModel):
    """States of the learner that one can go back to."""

    every: Samples = 1000
    """Updates between two snapshots."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many are kept; the last good one always is."""


class Guard(ApiModel):
    """What a learner must not lose, measured on the evaluation set at every snapshot."""

    max_drop: UnitDecimal = "0.02"
    """Largest loss of the objective's metric against the revision that learning started from, as a share of it."""
    min_samples: Samples = 100
    """Fewer evaluation samples than this decide nothing."""
    on_fail: GuardOnFail = GuardOnFail.ROLLBACK
    """What happens when more is lost."""


class SamplesTrigger(ApiModel):
    """So many new labelled examples."""

    count: Samples
    """New labelled examples since the last revision."""


class ScheduleTrigger(ApiModel):
    """Points in time."""

    cron: CronSchedule
    """When, in UTC."""


class DriftTrigger(ApiModel):
    """Live data that differs from the reference."""

    tests: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    """Names of `monitoring.tests`; by default any of them."""


class QualityTrigger(ApiModel):
    """A model that got worse on live data."""

    max_drop: UnitDecimal
    """Loss of the objective's metric on labelled requests, as a share of its value on the evaluation set."""
    min_samples: Samples = 100
    """Fewer labelled requests than this decide nothing."""


class Trigger(ApiModel):
    """What starts a new revision from all that was learnt: `type` says which block is filled."""

    name: Name
    """Unique within the document."""
    type: TriggerType
    """What starts it."""
    samples: SamplesTrigger | None = None
    """Settings of Samples."""
    schedule: ScheduleTrigger | None = None
    """Settings of Schedule."""
    drift: DriftTrigger | None = None
    """Settings of Drift."""
    quality: QualityTrigger | None = None
    """Settings of Quality."""
    cooldown: Duration = "1h"
    """It does not start another revision before this long."""

    @model_validator(mode="after")
    def _one_block(self) -> "Trigger":
        given = [t.lower() for t in TriggerType if getattr(self, t.lower()) is not None]
        refuse("trigger", exactly_one((), given, (self.type.lower(),)))
        return self


class Learning(ApiModel):
    """Learning behind the endpoint `/learn`."""

    method: LearningMethod
    """How weights follow the stream."""
    scope: LearningScope = LearningScope.HEAD
    """Which weights move."""
    features: FieldName | None = None
    """Head: module path or tensor whose values the head sees; by default what the last layer sees."""
    learning_rate: Positive = "0.01"
    """Step size."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """New examples per update."""
    clip_norm: Positive = "1"
    """Longer gradients are shortened to this Euclidean norm."""
    hedge: Hedge | None = None
    """Settings of HedgeBackpropagation; by default all have their defaults."""
    replay: Replay | None = None
    """What is remembered; by default nothing is."""
    snapshots: Snapshots = Snapshots()
    """States that one can go back to."""
    guard: Guard = Guard()
    """What must not be lost."""
    max_updates_per_second: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Examples beyond this rate are refused, so that learning never starves answering."""
    access: SecretRef | None = None
    """Secret with the `token` that callers of `/learn` must send; by default nobody outside the namespace may call."""
    triggers: Annotated[tuple[Trigger, ...], Field(max_length=16)] = ()
    """What starts a new revision, through the same gates."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> "Learning":
        findings = duplicates((t.name for t in self.triggers), "triggers")
        if self.hedge is not None and self.method is not LearningMethod.HEDGE_BACKPROPAGATION:
            remedy = "remove it, or write method: HedgeBackpropagation"
            findings.append(Finding(("hedge",), f"a block beside method: {self.method}", remedy))
        if self.features is not None and self.scope is LearningScope.ALL:
            remedy = "remove it, or write scope: Head"
            findings.append(Finding(("features",), "a setting of Head beside scope: All", remedy))
        refuse("learning", findings)
        return self
