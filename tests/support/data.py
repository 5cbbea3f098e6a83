"""Small data sets for tests, and what a pass that trains is called with."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lathe_api.data import Data, DataSource, InputField, Metric, ModelFormat, ModelSource, Objective, Task
from lathe_api.manifest import ArtifactManifest, Role, Signature, TensorSpec
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware
from lathe_optimizers.context import Artifact, Dataset, Datasets, PassContext, Progress
from support.passing import Arrays as ArrayDataset
from support.passing import Slots

__all__ = ["ArrayDataset", "Recorder", "Slots", "blobs", "context", "curve", "digits", "part"]

TRAIN_SAMPLES = 1078


@dataclass
class Recorder:
    """Keeps the progress reports of a pass."""

    reports: list[Progress] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        self.reports.append(progress)

    @property
    def epochs(self) -> list[tuple[str, int]]:
        """Finished epochs: step and number."""
        return [(p.step, p.epoch) for p in self.reports if p.epoch is not None]


@cache
def _images(size: int) -> tuple[Any, Any]:
    import torch
    from sklearn.datasets import load_digits
    from torch.nn import functional

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    enlarged = functional.interpolate(images, size=(size, size), mode="bilinear").numpy()
    return enlarged, found.target.astype(np.int64)


def digits(size: int = 16, seed: int = 0) -> tuple[ArrayDataset, ArrayDataset]:
    """Handwritten digits, `image` float32 (1, size, size) from 0 to 1: 1078 to train on, 719 to evaluate on."""
    images, classes = _images(size)
    order = np.random.default_rng(seed).permutation(len(images))
    parts = order[:TRAIN_SAMPLES], order[TRAIN_SAMPLES:]
    train, evaluation = (ArrayDataset({"image": images[i]}, classes[i]) for i in parts)
    return train, evaluation


def blobs(count: int = 120, seed: int = 0) -> ArrayDataset:
    """Images of 10 classes that are easy to tell apart, `image` float32 (1, 16, 16)."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 10, count)
    images = rng.random((count, 1, 16, 16), dtype=np.float32) * 0.3
    images[np.arange(count), 0, classes] += 1.0
    return ArrayDataset({"image": images}, classes)


def curve(count: int = 200, seed: int = 0) -> ArrayDataset:
    """A regression: `x` float32 (4,) to one smooth value of shape (samples,)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 4)).astype(np.float32)
    return ArrayDataset({"x": x}, (np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] - 0.5 * x[:, 3]).astype(np.float32))


def part(data: ArrayDataset, start: int, stop: int) -> ArrayDataset:
    """Neighbouring samples of a set."""
    return ArrayDataset({k: v[start:stop] for k, v in data.inputs.items()}, data.target[start:stop])


def context(  # noqa: PLR0913 - the fields of a context that tests vary
    tmp_path: Path,
    *,
    program: Path | None = None,
    stage: dict[str, Any] | None = None,
    train: Dataset | None = None,
    validation: Dataset | None = None,
    evaluation: Dataset | None = None,
    task: Task = Task.CLASSIFICATION,
    extras: dict[str, Path] | None = None,
    seed: int = 0,
    checkpoints: Slots | None = None,
    report: Any = None,
) -> PassContext:
    """A stage over `program`, which is both its input and the original; checkpoints are kept in memory."""
    evaluation = evaluation if evaluation is not None else blobs(20, 9)
    inputs = tuple(InputField(name=n, field=n) for n in evaluation.input_names)
    specs = tuple(TensorSpec(name=n, datatype="FP32", shape=(-1,)) for n in evaluation.input_names)
    signature = Signature(inputs=specs, outputs=(TensorSpec(name="output", datatype="FP32", shape=(-1,)),))
    given = Artifact(ArtifactManifest(files={}, signature=signature), {Role.PROGRAM: program}) if program else None
    workdir = tmp_path / "work"
    workdir.mkdir(exist_ok=True)
    return PassContext(
        stage=None if stage is None else Stage.model_validate(stage),
        model=ModelSource(uri="model.pt2", format=ModelFormat.PT2),
        objective=Objective(task=task, metric=Metric.ACCURACY if task is Task.CLASSIFICATION else Metric.RMSE),
        data_spec=Data(evaluation=DataSource(uri="test.npz", inputs=inputs, target="y")),
        data=Datasets(evaluation=evaluation, train=train, validation=validation),
        source=None,
        input=given,
        original=given,
        extras=extras or {},
        seed=seed,
        hardware=Hardware.X86_VNNI,
        threads=1,
        workdir=workdir,
        checkpoints=checkpoints if checkpoints is not None else Slots(),
        report=report if report is not None else Recorder(),
    )
