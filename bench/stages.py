"""Calls the project's own Quantize stage on the networks that are measured."""

from pathlib import Path

import numpy as np
from networks import program

from lathe_api.data import Data, DataSource, InputField, Metric, ModelFormat, ModelSource, Objective, Task
from lathe_api.manifest import ArtifactManifest, Role
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware
from lathe_optimizers.context import Artifact, Batch, Datasets, PassContext
from lathe_optimizers.passes import onnx_files, quantize
from lathe_optimizers.passes.programs import save_program


class Samples:
    """Random samples, made when they are asked for, so that none of the memory measured is theirs."""

    def __init__(self, name: str, shape: tuple[int, ...], count: int, first: int = 0) -> None:
        self._name, self._shape, self._count, self._first = name, shape, count, first

    @property
    def input_names(self) -> tuple[str, ...]:
        """One input."""
        return (self._name,)

    def __len__(self) -> int:
        return self._count

    def take(self, indices: np.ndarray) -> Batch:
        """Samples by index: each has its own seed."""
        rows = [np.random.default_rng(self._first + int(i)).random(self._shape, np.float32) for i in indices]
        return (np.stack(rows),), np.asarray(indices) % 10


class NoCheckpoints:
    """Every measurement starts afresh."""

    def save(self, name: str, data: bytes) -> None:
        """Nothing is kept."""

    def load(self, name: str) -> None:
        """Nothing was kept."""


def original(network: str, folder: Path) -> Artifact:
    """The float model, as the import leaves it."""
    ep = program(network)
    pt2, onnx_file = folder / "original.pt2", folder / "original.onnx"
    save_program(ep, pt2)
    onnx_files.to_onnx(ep, onnx_file, opset=20, input_names=[ep.graph_signature.user_inputs[0]])
    manifest = ArtifactManifest(files={}, signature=onnx_files.read_signature(onnx_file))
    return Artifact(manifest, {Role.PROGRAM: pt2, Role.ONNX: onnx_file})


def quantised(start: Artifact, data: Samples, folder: Path, **settings: object) -> Path:
    """The smaller model, by the Quantize stage; one epoch where it trains."""
    settings = {"epochs": 1, "batchSize": 8, **settings}
    folder.mkdir()
    inputs = tuple(InputField(name=n, field=n) for n in data.input_names)
    made = quantize.run(
        PassContext(
            stage=Stage.model_validate({"name": "small", "type": "Quantize", "quantize": settings}),
            model=ModelSource(uri="original.pt2", format=ModelFormat.PT2),
            objective=Objective(task=Task.CLASSIFICATION, metric=Metric.ACCURACY),
            data_spec=Data(evaluation=DataSource(uri="random.npz", inputs=inputs, target="y")),
            data=Datasets(evaluation=data, train=data, calibration=data),
            source=None,
            input=start,
            original=start,
            extras={},
            seed=0,
            hardware=Hardware.X86_VNNI,
            threads=1,
            workdir=folder,
            checkpoints=NoCheckpoints(),
            report=lambda _: None,
        )
    )
    assert made.onnx is not None  # noqa: S101 - Quantize always leaves one
    return made.onnx
