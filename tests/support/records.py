"""Stage records for tests that care about records, not about models."""

from lathe_api.data import Metric, Task
from lathe_api.manifest import (
    ArtifactManifest,
    Blob,
    Estimate,
    Kernels,
    Role,
    Signature,
    StageMetrics,
    StageRecord,
    TensorSpec,
)
from lathe_api.targets import Hardware

KEY = "sha256:" + "a" * 64


def artifact(blob: Blob, **changes) -> ArtifactManifest:
    """A model of one input and one output, all of whose bytes are `blob`."""
    signature = Signature(
        inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 16, 16)),),
        outputs=(TensorSpec(name="output", datatype="FP32", shape=(-1, 10)),),
    )
    return ArtifactManifest(files={Role.ONNX: blob}, signature=signature, **changes)


def metrics(value: float = 0.95) -> StageMetrics:
    """Measurements of a classifier on 200 samples."""
    return StageMetrics(
        metric=Metric.ACCURACY,
        task=Task.CLASSIFICATION,
        quality=Estimate(value=value, low=value - 0.02, high=value + 0.02, samples=200),
        size_bytes=1000,
        parameters=200,
        kernels=Kernels(int8=0, float32=3),
    )


def stage_record(blob: Blob, key: str = KEY, **changes) -> StageRecord:
    """A record whose artifact is `blob`."""
    fields = {
        "name": "slim",
        "type": "Prune",
        "key": key,
        "config": {},
        "inputs": {},
        "seed": 0,
        "hardware": Hardware.X86_VNNI,
        "versions": {},
        "threads": 1,
        "artifact": artifact(blob),
        "metrics": metrics(),
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "reproduce": (),
    }
    return StageRecord(**fields | changes)
