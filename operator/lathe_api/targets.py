"""Targets: the hardware an artifact is made for, and how it is served there."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lathe_api.base import ApiModel, Duration, Name, Quantity

Port = Annotated[int, Field(ge=1, le=65_535)]
Labels = Annotated[
    dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]], Field(max_length=32)
]


class Hardware(StrEnum):
    """Kind of machine; decides number types, operator set and graph level."""

    X86_VNNI = "X86Vnni"
    X86_AVX2 = "X86Avx2"
    ARM64 = "Arm64"
    CUDA = "Cuda"
    EDGE = "Edge"


class ServingRuntime(StrEnum):
    """Which server answers."""

    LATHE = "Lathe"
    TRITON = "Triton"


class ServingMode(StrEnum):
    """Whether requests are answered one by one or collected."""

    SINGLE_SAMPLE = "SingleSample"
    DYNAMIC_BATCH = "DynamicBatch"


class ScaleOn(StrEnum):
    """What the number of replicas follows."""

    CPU = "Cpu"
    CONCURRENCY = "Concurrency"
    QUEUE_TIME = "QueueTime"
    REQUEST_RATE = "RequestRate"


class TolerationOperator(StrEnum):
    """How a toleration matches."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """Which effect of a taint is tolerated."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A taint that pods of this target accept."""

    key: Annotated[str, Field(max_length=317)]
    """Key of the taint."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """How it matches."""
    value: Annotated[str | None, Field(max_length=63)] = None
    """Value of the taint, for Equal."""
    effect: TaintEffect | None = None
    """Effect of the taint; by default all."""


class Pool(ApiModel):
    """The nodes of a target."""

    node_selector: Labels = {}
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that are accepted."""


class Batch(ApiModel):
    """How requests of many clients are collected."""

    max_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Largest batch, in samples."""
    max_queue_delay: Duration = "0ms"
    """How long a request may wait for others."""


class Replicas(ApiModel):
    """How many servers run."""

    min: Annotated[int, Field(ge=0, le=1000)] = 1
    """At least this many."""
    max: Annotated[int | None, Field(ge=1, le=1000)] = None
    """At most this many; by default as many as `min`."""
    scale_on: ScaleOn | None = None
    """What the number follows."""
    target: Annotated[str | None, Field(max_length=24, pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|%)?$")] = None
    """Value that the number is steered to: `5ms`, `70%`, `20`."""


ResourceMap = Annotated[dict[Annotated[str, Field(max_length=317)], Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """What one server may use."""

    requests: ResourceMap = {}
    """Reserved."""
    limits: ResourceMap = {}
    """At most."""


class Serving(ApiModel):
    """How the artifact is served."""

    runtime: ServingRuntime = ServingRuntime.LATHE
    """Which server answers."""
    mode: ServingMode = ServingMode.SINGLE_SAMPLE
    """One by one, or collected."""
    batch: Batch | None = None
    """Settings of DynamicBatch."""
    replicas: Replicas = Replicas()
    """How many servers run."""
    resources: Resources = Resources()
    """What each may use."""


class Target(ApiModel):
    """One kind of machine and how the model is served on it."""

    name: Name
    """Unique within the document."""
    hardware: Hardware
    """Kind of machine."""
    pool: Pool = Pool()
    """The nodes."""
    serving: Serving = Serving()
    """The server."""
