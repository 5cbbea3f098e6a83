"""What a pass is called with, built in a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lathe_api.data import Data, DataSource, InputField, Metric, ModelFormat, ModelSource, Objective, Task
from lathe_api.manifest import ArtifactManifest, Role
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware
from lathe_optimizers.context import Artifact, Batch, Dataset, Datasets, PassContext, PassOutput


class Arrays:
    """Samples in memory."""

    def __init__(self, inputs: Mapping[str, NDArray[Any]], target: NDArray[Any]) -> None:
        self.inputs, self.target = inputs, target

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.inputs)

    def __len__(self) -> int:
        return len(self.target)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        return tuple(x[indices] for x in self.inputs.values()), self.target[indices]


class Slots:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def save(self, name: str, data: bytes) -> None:
        self.content[name] = data

    def load(self, name: str) -> bytes | None:
        return self.content.get(name)


def images(count: int = 40, name: str = "image", seed: int = 0) -> Arrays:
    """Random images, float32 (1, 16, 16), of 10 classes."""
    rng = np.random.default_rng(seed)
    return Arrays({name: rng.random((count, 1, 16, 16), dtype=np.float32)}, rng.integers(0, 10, count))


def stripes(count: int, seed: int) -> Arrays:
    """Ten classes that a small network learns within a few epochs: which band of rows is bright."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, count)
    image = rng.random((count, 1, 16, 16), dtype=np.float32)
    image[np.arange(count), 0, label + 3] += 0.5
    return Arrays({"image": image}, label)


def context(
    workdir: Path,
    evaluation: Dataset,
    *,
    source: Path | None = None,
    model_format: ModelFormat = ModelFormat.PT2,
    stage: dict[str, Any] | None = None,
    given: Artifact | None = None,
    train: Dataset | None = None,
) -> PassContext:
    """A classification task; scratch below `workdir`."""
    scratch = workdir / "work"
    scratch.mkdir(exist_ok=True)
    inputs = tuple(InputField(name=n, field=n) for n in evaluation.input_names)
    return PassContext(
        stage=None if stage is None else Stage.model_validate(stage),
        model=ModelSource(uri="model", format=model_format),
        objective=Objective(task=Task.CLASSIFICATION, metric=Metric.ACCURACY),
        data_spec=Data(evaluation=DataSource(uri="test.npz", inputs=inputs, target="y")),
        data=Datasets(evaluation=evaluation, train=train),
        source=source,
        input=given,
        original=given,
        extras={},
        seed=0,
        hardware=Hardware.X86_VNNI,
        threads=1,
        workdir=scratch,
        checkpoints=Slots(),
        report=lambda _: None,
    )


def artifact(output: PassOutput) -> Artifact:
    """The result of a pass, as the next pass is given it."""
    from lathe_optimizers.passes.onnx_files import read_signature

    assert output.onnx is not None
    files = {Role.ONNX: output.onnx} | ({Role.PROGRAM: output.program} if output.program else {})
    return Artifact(ArtifactManifest(files={}, signature=read_signature(output.onnx)), files)
