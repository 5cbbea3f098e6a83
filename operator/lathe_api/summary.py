"""`summary.json`: the machine-readable result of a run. Fields are only ever added within a schema version."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from lathe_api.base import ApiModel, Digest
from lathe_api.gates import GateMetric
from lathe_api.manifest import LatencyRatio, StageMetrics
from lathe_api.searchresult import SearchResult
from lathe_api.targets import Hardware, Serving

SUMMARY_SCHEMA: Final = "lathe.dev/summary/v1"


class Verdict(StrEnum):
    """What a gate says."""

    PASSED = "Passed"
    FAILED = "Failed"
    INCONCLUSIVE = "Inconclusive"


class GateResult(ApiModel):
    """One gate, judged after one stage."""

    gate: str
    """Name of the gate."""
    target: str
    """Name of the target."""
    stage: str
    """After which stage."""
    metric: GateMetric
    verdict: Verdict
    value: float | None
    """Measured value: of the metric, the ratio, or the drop where the gate bounds a drop; none where not measurable."""
    low: float | None = None
    high: float | None = None
    """Confidence interval of `value`."""
    bound: str
    """The bound in words, such as `drop <= 0.02 absolute`."""
    reason: str
    """Why this verdict, with the numbers."""
    remedy: str | None = None
    """What to try when it did not pass."""


class StageResult(ApiModel):
    """One stage of one target."""

    name: str
    type: str
    key: Digest
    cached: bool
    """Whether a stored result was used."""
    artifact: Digest
    """sha256 of the stage's ONNX file."""
    metrics: StageMetrics
    warnings: tuple[str, ...] = ()
    seconds: float
    """Wall time in this run; the time to look up when cached."""
    peak_memory_bytes: int
    record: str
    """Path of `stage.json` in the run folder."""


class Overall(ApiModel):
    """Original against final."""

    metric: str
    original: float
    final: float
    drop: float
    """Loss of the metric, positive when worse, in the metric's own unit."""
    drop_low: float
    drop_high: float
    """Paired confidence interval of the drop (two-sided, 0.95)."""
    size_ratio: float
    """Bytes of the original's ONNX file / bytes of the final one."""
    parameter_ratio: float
    latency: LatencyRatio | None
    int8_coverage: float


class TargetState(StrEnum):
    """What became of a target."""

    BUILT = "Built"
    REFUSED = "Refused"
    """A gate did not pass."""
    PARTIAL = "Partial"
    """`--until` ended the run earlier."""
    SKIPPED = "Skipped"
    """This machine cannot run its hardware."""


class TargetResult(ApiModel):
    """One target of the document."""

    name: str
    hardware: Hardware
    state: TargetState
    reason: str
    """Why this state, in a sentence."""
    stages: tuple[StageResult, ...] = ()
    gates: tuple[GateResult, ...] = ()
    overall: Overall | None = None
    artifact: Digest | None = None
    """sha256 of the file that is served."""
    model_file: str | None = None
    """Path of that file in the run folder."""
    repository: str | None = None
    """Path of the Triton model repository in the run folder."""
    serving: Serving = Serving()
    """How the document wants it served."""


class Summary(ApiModel):
    """The result of `lathe run`."""

    schema_: Annotated[Literal["lathe.dev/summary/v1"], Field(alias="schema")] = SUMMARY_SCHEMA
    name: str
    """metadata.name of the document."""
    revision: str
    """`<name>-<hash of inputs and recipe>`: same inputs, same revision."""
    verdict: Verdict
    """The worst verdict of all targets that ran."""
    seed: int
    store: str
    out: str
    """The run folder."""
    cache_hits: int
    stages_run: int
    seconds: float
    targets: tuple[TargetResult, ...]
    search: SearchResult | None = None
    """What was tried before, where the document searches."""
