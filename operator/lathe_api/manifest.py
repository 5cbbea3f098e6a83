"""Records that stages leave behind. They are read by later stages, the operator and the runtimes.

Every file is named by the sha256 of its bytes, so that a manifest that is present proves that what it lists is whole.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from lathe_api.base import ApiModel, Digest
from lathe_api.data import Metric, Task
from lathe_api.targets import Hardware

ARTIFACT_SCHEMA: Final = "lathe.dev/artifact/v1"
STAGE_SCHEMA: Final = "lathe.dev/stage/v1"


class Role(StrEnum):
    """What a file of an artifact is."""

    PROGRAM = "program"
    """A `.pt2` exported program: can still be trained, pruned and quantised."""
    ONNX = "onnx"
    """The model as ONNX; of an unfinished artifact it serves measurement, of an exported one it is what is served."""
    PREDICTIONS = "predictions"
    """npy: float32 of shape (evaluation samples, ...), the first output by ONNX Runtime on this artifact."""


class Blob(ApiModel):
    """One immutable file of the store."""

    digest: Digest
    """sha256 of its bytes."""
    size: Annotated[int, Field(ge=0)]
    """Bytes."""


class TensorSpec(ApiModel):
    """One input or output of a model."""

    name: str
    """As clients send or receive it."""
    datatype: str
    """Open Inference Protocol name: FP32, INT64, UINT8, BOOL, …"""
    shape: tuple[int, ...]
    """Sizes with the batch dimension first; -1 where a size may vary."""


class Signature(ApiModel):
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    """In the order of the program."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the program."""


class ArtifactManifest(ApiModel):
    """A model between two stages, or a finished one."""

    schema_: Annotated[Literal["lathe.dev/artifact/v1"], Field(alias="schema")] = ARTIFACT_SCHEMA
    files: dict[Role, Blob]
    """The files by role."""
    signature: Signature
    """What the model takes and gives."""
    exported: bool = False
    """Whether the ONNX file is the product of an Export stage (and so may be served)."""
    frozen: tuple[str, ...] = ()
    """Weights of the program that layers share and that no training changes: federated rounds need not send them."""
    details: dict[str, JsonValue] = {}
    """What later stages or runtimes need to know, such as a host-tuned CPU class."""


class Estimate(ApiModel):
    """A measured value with its confidence interval (`confidence`, two-sided)."""

    value: float
    low: float
    high: float
    confidence: float = 0.95
    samples: int
    """Evaluation samples."""


class LatencyRatio(ApiModel):
    """Baseline time / own time, from paired, interleaved runs; above 1 is faster."""

    value: float
    """Median over rounds."""
    low: float
    high: float
    """Confidence interval of the median over rounds (two-sided, 0.95)."""
    noise_floor: float
    """The baseline measured against itself in the same rounds: largest |ratio - 1| of its 0.95 interval."""
    rounds: int
    """Interleaved rounds."""
    threads: int
    """Threads of each session."""
    batch: int
    """Samples per run."""
    baseline_ms: float
    """Median time of the baseline, for orientation only: absolute times do not compare between machines."""


class Kernels(ApiModel):
    """Matrix kernels (Conv, Gemm, MatMul, attention) in ONNX Runtime's optimised graph."""

    int8: int
    """That run in integers."""
    float32: int
    """That run in floating point."""

    @property
    def coverage(self) -> float:
        """Share that runs in integers; 0 where there is no matrix kernel."""
        total = self.int8 + self.float32
        return self.int8 / total if total else 0.0


class StageMetrics(ApiModel):
    """What a stage's result measures."""

    metric: Metric
    """Metric of the objective."""
    task: Task
    quality: Estimate
    """Value of `metric` on the evaluation set, by ONNX Runtime."""
    size_bytes: int
    """Bytes of the ONNX file."""
    compressed_bytes: int | None = None
    """Bytes of the ONNX file after deflate, as it travels in archives and container images."""
    session_bytes: int | None = None
    """By how much loading it and answering once raises the peak resident memory of a fresh process."""
    calibration_error: Estimate | None = None
    """Expected calibration error (Guo et al. 2017) over 15 bins; of classifications."""
    energy_ratio: float | None = None
    """Energy of a run of the original / own, where the kernel counts it; above 1 is thriftier."""
    parameters: int
    """Elements of the ONNX file's weights."""
    zeros: int = 0
    """Of those, how many are zero."""
    kernels: Kernels
    latency: LatencyRatio | None = None
    """Against the original; absent for the original itself."""


class MadeRecord(ApiModel):
    """`made.json`: what one stage made, before it is measured."""

    schema_: Annotated[Literal["lathe.dev/made/v1"], Field(alias="schema")] = "lathe.dev/made/v1"
    artifact: ArtifactManifest
    """The result, without predictions."""
    details: dict[str, JsonValue] = {}
    """What the pass found and did."""
    warnings: tuple[str, ...] = ()
    """What a person should know."""
    wall_seconds: float
    peak_memory_bytes: int


class StageRecord(ApiModel):
    """`stage.json`: what one stage did, with everything that is needed to do it again."""

    schema_: Annotated[Literal["lathe.dev/stage/v1"], Field(alias="schema")] = STAGE_SCHEMA
    name: str
    """Name in the recipe; `import` for the first."""
    type: str
    """Import, or the stage type."""
    key: Digest
    """Cache key: sha256 over everything that decides the result."""
    key_fields: dict[str, JsonValue] = {}
    """What `key` is the digest of, part by part; empty in records of versions before 0.2."""
    finished_at: float | None = None
    """Seconds since 1970 (UTC)."""
    config: dict[str, JsonValue]
    """Canonical configuration."""
    inputs: dict[str, Digest]
    """Digests of models and data that went in."""
    seed: int
    hardware: Hardware
    versions: dict[str, str]
    """Libraries and the digest of the passes' source."""
    threads: int
    artifact: ArtifactManifest
    """The result."""
    metrics: StageMetrics
    details: dict[str, JsonValue] = {}
    """What the pass found and did."""
    warnings: tuple[str, ...] = ()
    """What a person should know."""
    wall_seconds: float
    peak_memory_bytes: int
    reproduce: tuple[str, ...]
    """Command that repeats the stage."""
