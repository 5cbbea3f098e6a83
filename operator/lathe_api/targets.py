"""Targets: the hardware an artifact is made for, and how it is served there."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Duration, Name, Positive, Quantity, SubdomainName
from lathe_api.findings import Finding, refuse

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

    @model_validator(mode="after")
    def _exists_has_no_value(self) -> "Toleration":
        if self.operator is TolerationOperator.EXISTS and self.value is not None:
            remedy = "remove it, or write operator: Equal"
            refuse("toleration", [Finding(("value",), "a value beside operator: Exists", remedy)])
        return self


class Pool(ApiModel):
    """The nodes of a target."""

    node_selector: Labels = {}
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that are accepted."""
    priority_class_name: SubdomainName | None = None
    """Priority class of the pods; by default the cluster's."""
    runtime_class_name: SubdomainName | None = None
    """Runtime class of the pods, such as one for GPUs; by default the cluster's."""
    service_account_name: SubdomainName | None = None
    """Service account of the pods, for identities that clouds bind to it; by default the namespace's."""


class Batch(ApiModel):
    """How requests of many clients are collected."""

    max_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Largest batch, in samples."""
    max_queue_delay: Duration = "0ms"
    """How long a request may wait for others."""


_SCALE_UNITS: Final[dict[ScaleOn, tuple[tuple[str, ...], str]]] = {
    ScaleOn.CPU: (("%",), "70%"),
    ScaleOn.CONCURRENCY: (("",), "20"),
    ScaleOn.QUEUE_TIME: (("ms", "s"), "5ms"),
    ScaleOn.REQUEST_RATE: (("",), "100"),
}
"""Unit of the target that each signal is steered to, and an example."""


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
    idle_after: Duration = "5m"
    """With `min: 0`: the last server stops after this long without a request."""

    @model_validator(mode="after")
    def _steerable(self) -> "Replicas":
        findings = []
        if self.max is not None and self.max < self.min:
            remedy = f"write at least {max(self.min, 1)}, as min is {self.min}"
            findings.append(Finding(("max",), str(self.max), remedy))
        if self.scale_on is not None:
            unit, example = _SCALE_UNITS[self.scale_on]
            if self.target is None:
                findings.append(Finding(("target",), "nothing", f'write target: "{example}" for {self.scale_on}'))
            elif self.target.lstrip("0123456789.") not in unit:
                remedy = f'write a value such as "{example}" for {self.scale_on}'
                findings.append(Finding(("target",), f'"{self.target}"', remedy))
            if self.max is None:
                remedy = "write the largest number of servers, so that there is room to scale"
                findings.append(Finding(("max",), "nothing", remedy))
        elif self.target is not None:
            names = ", ".join(ScaleOn)
            findings.append(Finding(("scaleOn",), "nothing", f"write what the target is measured in: {names}"))
        refuse("replicas", findings)
        return self


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
    image: Annotated[str | None, Field(min_length=1, max_length=512)] = None
    """Container image of the server; by default the one that Lathe was tested with."""
    warmup: Annotated[int, Field(ge=0, le=1000)] = 1
    """Requests that a server answers to itself before it reports ready."""
    timeout: Duration = "30s"
    """A request that waits longer is refused."""
    shared_server: Name | None = None
    """Models of a namespace that name the same server are served by one process under one memory limit."""

    @model_validator(mode="after")
    def _batch_fits_mode(self) -> "Serving":
        if self.batch is not None and self.mode is ServingMode.SINGLE_SAMPLE:
            remedy = "remove it, or write mode: DynamicBatch"
            refuse("serving", [Finding(("batch",), "settings of DynamicBatch beside mode: SingleSample", remedy)])
        return self


class DeviceArchitecture(StrEnum):
    """Processor of a device."""

    ARM64 = "Arm64"
    X86_64 = "X86_64"


class Edge(ApiModel):
    """What a device can take, and how it proves that it runs the same model."""

    architecture: DeviceArchitecture = DeviceArchitecture.ARM64
    """Processor that the bundle is made for."""
    max_size: Quantity | None = None
    """The bundle is refused when it has more bytes."""
    max_memory: Quantity | None = None
    """The bundle is refused when serving one sample needs more."""
    golden_samples: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Evaluation samples in the bundle that the device answers when it starts."""
    tolerance: Positive = "0.001"
    """Largest allowed difference of those answers, relative to their range."""


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
    edge: Edge | None = None
    """Settings of hardware Edge."""

    @model_validator(mode="after")
    def _edge_fits_hardware(self) -> "Target":
        if self.edge is not None and self.hardware is not Hardware.EDGE:
            found = f"settings of Edge beside hardware: {self.hardware}"
            refuse("target", [Finding(("edge",), found, "remove it, or write hardware: Edge")])
        return self
