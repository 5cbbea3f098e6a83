"""What the operator writes into `status`. Numbers are decimal strings; unknown ones are left out, never 0.

Lists are maps by their first field, so that several writers can own single entries by server-side apply.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lathe_api.base import ApiModel, Decimal, Digest, Name, Percent, SubdomainName, Text, Timestamp, Uri
from lathe_api.data import Metric
from lathe_api.gates import GateMetric
from lathe_api.recipe import StageType
from lathe_api.rollout import RolloutMetric
from lathe_api.summary import TargetState, Verdict
from lathe_api.targets import Hardware

Revision = SubdomainName
"""Name of a ModelRevision."""
Generation = Annotated[int, Field(ge=0, le=2**62)]
Bytes = Annotated[int, Field(ge=0, le=2**62)]
Count = Annotated[int, Field(ge=0, le=2**53)]
CamelWord = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", min_length=1, max_length=128)]
"""One word in CamelCase, for machines."""


class ConditionType(StrEnum):
    """What can be true of an object; always so that True is good."""

    READY = "Ready"
    """Everything that was asked for is there. The one to wait for."""
    INPUTS_RESOLVED = "InputsResolved"
    """Model and data are readable and have a digest."""
    RECIPE_VALID = "RecipeValid"
    """The recipe is known and its stages are in a possible order."""
    OPTIMIZED = "Optimized"
    """All stages are done."""
    GATES_PASSED = "GatesPassed"
    PUBLISHED = "Published"
    """The model repository is stored under its digest."""
    PREFLIGHT_PASSED = "PreflightPassed"
    """The server that will serve the artifact gave the recorded answers."""
    ROLLED_OUT = "RolledOut"
    """The newest revision gets all traffic."""
    STABLE = "Stable"
    """Live data is like the reference, and quality is held."""
    LEARNING = "Learning"
    """The endpoint takes examples, and the guard holds."""
    PARITY_PROVED = "ParityProved"
    """Devices gave the recorded answers."""
    QUORUM_REACHED = "QuorumReached"
    """Enough clients took part in the newest round."""
    COMPLETED = "Completed"
    """All rounds of a federation are done."""


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One observation about an object, for machines."""

    type: ConditionType
    """What is observed."""
    status: ConditionStatus
    """Whether it holds."""
    reason: CamelWord
    """Why, in one word that does not change between versions."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, for people; the same for the same cause."""
    observed_generation: Generation
    """Generation of `spec` that was looked at."""
    last_transition_time: Timestamp
    """When `status` last changed."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16)]


class TrafficShare(ApiModel):
    """How much of the traffic a revision gets."""

    revision: Revision
    """The revision."""
    weight: Percent
    """Percent of the requests."""


class StageState(StrEnum):
    """Where a stage is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    CACHED = "Cached"
    """A stored result was used."""
    FAILED = "Failed"
    REVERTED = "Reverted"
    """A gate dropped the stage."""


class StageStatus(ApiModel):
    """One stage of a run, written by the Job that runs it."""

    name: Annotated[str, Field(min_length=1, max_length=127)]
    """Name of the stage, or `<target>.<name>` for a stage that belongs to one target."""
    state: StageState
    """Where it is."""
    type: StageType | None = None
    """What it does; absent for the import."""
    percent: Percent | None = None
    """How far it is."""
    step: Annotated[str | None, Field(max_length=63)] = None
    """What is being done, such as `train`."""
    epoch: Count | None = None
    """Epochs that are done."""
    epochs: Count | None = None
    """Epochs there are."""
    loss: Decimal | None = None
    """Mean loss of the newest epoch."""
    eta_seconds: Count | None = None
    """Expected time that is left."""
    key: Digest | None = None
    """Cache key: sha256 over everything that decides the result."""
    artifact: Digest | None = None
    """sha256 of the stage's ONNX file."""
    quality: Decimal | None = None
    """Value of the objective's metric on the evaluation set."""
    size_bytes: Bytes | None = None
    """Bytes of the ONNX file."""
    started_at: Timestamp | None = None
    """When the work began."""
    finished_at: Timestamp | None = None
    """When it ended."""
    job: SubdomainName | None = None
    """Job that runs it."""
    message: Text | None = None
    """What a person should know."""


class GateStatus(ApiModel):
    """What a gate said."""

    name: Annotated[str, Field(min_length=1, max_length=191)]
    """`<target>.<stage>.<gate>`."""
    metric: GateMetric
    """What was measured."""
    verdict: Verdict
    """Passed, Failed or Inconclusive."""
    value: Decimal | None = None
    """The number."""
    low: Decimal | None = None
    """Lower end of its confidence interval."""
    high: Decimal | None = None
    """Upper end of its confidence interval."""
    bound: Text
    """The bound in words."""
    reason: Text
    """Why this verdict."""


class TargetStatus(ApiModel):
    """One target: what was made for it, and how it is served."""

    name: Name
    """Name of the target."""
    hardware: Hardware
    """Kind of machine."""
    state: TargetState | None = None
    """What became of it in the newest run."""
    artifact: Digest | None = None
    """sha256 of the file that is to be served."""
    serving: Digest | None = None
    """sha256 that the server which answers reports."""
    repository: Uri | None = None
    """Where the model repository is."""
    size_ratio: Decimal | None = None
    """Bytes of the original / bytes of the artifact."""
    latency_ratio: Decimal | None = None
    """Time of the original / time of the artifact."""
    quality: Decimal | None = None
    """Value of the objective's metric on the evaluation set."""
    original_quality: Decimal | None = None
    """Value of that metric for the original."""
    quality_drop: Decimal | None = None
    """Loss of it against the original, positive when worse."""
    replicas: Count | None = None
    """Servers that exist."""
    ready_replicas: Count | None = None
    """Servers that answer."""
    url: Uri | None = None
    """Where the target answers."""
    devices: Count | None = None
    """Edge: devices that reported."""
    proved_devices: Count | None = None
    """Edge: devices that gave the recorded answers."""
    message: Text | None = None
    """Why this state."""


class SearchPoint(ApiModel):
    """A trial that is best in something, or the one that is taken."""

    name: Annotated[str, Field(pattern=r"^trial-[0-9]{1,4}$", max_length=10)]
    """`trial-<number>`."""
    values: Text
    """What its settings are, such as `slim.prune.parameters 0.5, int8.quantize.method Static`."""
    quality: Decimal | None = None
    """Value of the objective's metric on the evaluation set, of the target that is slowest."""
    size_ratio: Decimal | None = None
    """Bytes of the original / bytes of the result."""
    latency_ratio: Decimal | None = None
    """Time of the original / time of the result."""


class SearchStatus(ApiModel):
    """How far a search is, and what it found."""

    trials: Count
    """Trials that are done."""
    max_trials: Count
    """Trials that the budget allows."""
    stopped: Count = 0
    """Trials that failed a check early."""
    trying: Text | None = None
    """What is being tried."""
    chosen: Annotated[str | None, Field(max_length=10)] = None
    """The trial that is taken, as `trial-<number>`."""
    message: Text | None = None
    """Why that one; or which came nearest, where none passed."""
    best: Annotated[tuple[SearchPoint, ...], Field(max_length=16)] = ()
    """The Pareto front by the goals, thinned where it is longer."""


class Best(ApiModel):
    """The best revision so far."""

    revision: Revision
    """The revision."""
    metric: Metric
    """Metric of the objective."""
    value: Decimal
    """Its value on the evaluation set."""
    size_ratio: Decimal | None = None
    """Bytes of the original / bytes of the artifact."""
    latency_ratio: Decimal | None = None
    """Time of the original / time of the artifact."""


class CheckStatus(ApiModel):
    """What a check of a rollout said last."""

    metric: RolloutMetric
    """What was measured."""
    verdict: Verdict
    """Passed, Failed or Inconclusive."""
    value: Decimal | None = None
    """The number."""
    requests: Count = 0
    """Requests it was measured on."""
    reason: Text = ""
    """Why this verdict."""


class RolloutState(StrEnum):
    """Where a rollout is."""

    PREFLIGHT = "Preflight"
    PROGRESSING = "Progressing"
    HOLDING = "Holding"
    AWAITING_PROMOTION = "AwaitingPromotion"
    COMPLETED = "Completed"
    ROLLED_BACK = "RolledBack"


class RolloutStatus(ApiModel):
    """The rollout that is going on, or the newest one."""

    revision: Revision
    """The revision that takes over."""
    state: RolloutState
    """Where it is."""
    step: Count = 0
    """Canary: steps that are done."""
    since: Timestamp
    """When the step began."""
    checks: Annotated[tuple[CheckStatus, ...], Field(max_length=16)] = ()
    """What the checks said last."""
    message: Text = ""
    """Why this state."""


class DriftStatus(ApiModel):
    """What a test of live data said last."""

    name: Name
    """Name of the test."""
    verdict: Verdict
    """Passed is no drift."""
    effect: Decimal | None = None
    """Largest effect over the fields, in the unit of the method's statistic."""
    p_value: Decimal | None = None
    """Its p-value after correction."""
    field: Annotated[str | None, Field(max_length=253)] = None
    """Field with the largest effect."""
    samples: Count = 0
    """Live requests that were compared."""
    alarms: Count = 0
    """Alarms since the revision serves."""
    dummy_alarms: Count = 0
    """Alarms that a detector without eyes would have given in the same time."""
    checked_at: Timestamp
    """When."""


class SliceStatus(ApiModel):
    """A group of samples that the model is bad at."""

    description: Annotated[str, Field(min_length=1, max_length=512)]
    """Its conditions, such as `class = 3 and answer = 8`."""
    samples: Count
    """How many."""
    value: Decimal
    """The objective's metric in the slice."""
    serving: Decimal | None = None
    """The same for the revision that served before."""


class SnapshotStatus(ApiModel):
    """A state of the learner that one can go back to."""

    digest: Digest
    """sha256 of the state."""
    updates: Count
    """Updates that led to it."""
    quality: Decimal | None = None
    """Value of the objective's metric on the evaluation set."""
    taken_at: Timestamp
    """When."""


class LearningState(StrEnum):
    """What the learner does."""

    LEARNING = "Learning"
    FROZEN = "Frozen"
    ROLLED_BACK = "RolledBack"


class LearningStatus(ApiModel):
    """The learner behind the endpoint."""

    state: LearningState
    """What it does."""
    updates: Count = 0
    """Updates since the revision serves."""
    rejected: Count = 0
    """Examples that were refused."""
    prequential: Decimal | None = None
    """Metric of the objective, each example judged before it was learnt."""
    snapshots: Annotated[tuple[SnapshotStatus, ...], Field(max_length=20)] = ()
    """The newest states."""
    message: Text = ""
    """Why this state."""


Cell = Annotated[str, Field(max_length=63)]
"""What a column of `kubectl get om` shows."""


class Columns(ApiModel):
    """What `kubectl get om` shows besides the summary; for people only."""

    revision: Cell | None = None
    """Last part of the name of the revision that belongs to `spec`."""
    quality: Cell | None = None
    """The objective's metric, original and final: `96.9 → 95.4 %`."""
    size: Cell | None = None
    """Bytes of the original / bytes of the artifact: `10.3x`."""
    speedup: Cell | None = None
    """Time of the original / time of the artifact: `3.1x`."""


class OptimizedModelStatus(ApiModel):
    """What became of an OptimizedModel."""

    summary: Text = ""
    """One line for people, such as `Serving 3f9a1c 100%`."""
    observed_generation: Generation | None = None
    """Generation of `spec` that all of this is about."""
    conditions: Conditions = ()
    """For machines."""
    columns: Columns | None = None
    """For `kubectl get om`."""
    observed_revision: Revision | None = None
    """Revision that belongs to `spec`."""
    serving_revision: Revision | None = None
    """Revision that gets most of the traffic."""
    traffic: Annotated[tuple[TrafficShare, ...], Field(max_length=8)] = ()
    """Who gets how much."""
    best: Best | None = None
    """The best revision so far."""
    search: SearchStatus | None = None
    """The search of the newest revision."""
    url: Uri | None = None
    """Where the model answers."""
    targets: Annotated[tuple[TargetStatus, ...], Field(max_length=16)] = ()
    """One entry for each target."""
    rollout: RolloutStatus | None = None
    """The rollout that is going on, or the newest one."""
    drift: Annotated[tuple[DriftStatus, ...], Field(max_length=32)] = ()
    """What the tests of live data said last."""
    slices: Annotated[tuple[SliceStatus, ...], Field(max_length=100)] = ()
    """What the model is worst at."""
    learning: LearningStatus | None = None
    """The learner."""
    estimated_quality: Decimal | None = None
    """Quality on live data, estimated without labels."""
    bytes_saved: Bytes | None = None
    """Bytes that clients did not send, against sending raw data."""
