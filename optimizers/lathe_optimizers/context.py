"""What a pass is given and what it gives back. No heavy imports: the runner plans with these types."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from lathe_api.data import Data, ModelSource, Objective
from lathe_api.manifest import ArtifactManifest, Role
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware

Array = NDArray[np.generic]
Batch = tuple[tuple[Array, ...], Array]
"""Network inputs in the declared order, and the target; samples along the first dimension."""


class Dataset(Protocol):
    """Samples with a known length, read in batches, so that a set larger than memory fits."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the network inputs, in the order of the declaration."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """The samples at `indices`, in that order."""
        ...


def batches(data: Dataset, size: int) -> Iterator[Batch]:
    """All samples in order, `size` at a time; the last batch may be smaller."""
    for start in range(0, len(data), size):
        yield data.take(np.arange(start, min(start + size, len(data)), dtype=np.int64))


@dataclass(frozen=True)
class Datasets:
    """The data sets of a document, opened. `validation` is held out of `train` by seed; the three never overlap."""

    evaluation: Dataset
    train: Dataset | None = None
    validation: Dataset | None = None
    calibration: Dataset | None = None


@dataclass(frozen=True)
class Artifact:
    """A model on the local disk."""

    manifest: ArtifactManifest
    files: Mapping[Role, Path]


class Checkpoints(Protocol):
    """Where a training loop keeps its state between epochs. One slot per name; saving replaces atomically."""

    def save(self, name: str, data: bytes) -> None:
        """Replace the slot; a process that is killed meanwhile leaves the old content."""
        ...

    def load(self, name: str) -> bytes | None:
        """The content of the slot, or None."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far a pass is. `fraction` is of the whole pass, 0 to 1."""

    fraction: float
    step: str
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class PassContext:
    """Everything a pass may look at."""

    stage: Stage | None
    """The stage to do; None for the import of the model."""
    model: ModelSource
    objective: Objective
    data_spec: Data
    data: Datasets
    source: Path | None
    """Import: the model file as given, local."""
    input: Artifact | None
    """What the stage before left; None for the import."""
    original: Artifact | None
    """What the import left: the teacher and baseline."""
    extras: Mapping[str, Path]
    """Further files that the configuration names, by field (`student.uri`), local and verified."""
    seed: int
    hardware: Hardware
    threads: int
    workdir: Path
    """Scratch; removed afterwards. Results are written here too."""
    checkpoints: Checkpoints
    report: Callable[[Progress], None]


@dataclass(frozen=True)
class PassOutput:
    """What a pass leaves: files in its workdir, to be taken into the store."""

    program: Path | None = None
    """`.pt2`, when the result can still be trained or quantised as a graph."""
    onnx: Path | None = None
    """ONNX; when absent, the runner exports `program` for measurement."""
    exported: bool = False
    """Whether `onnx` is the product of an Export stage."""
    frozen: tuple[str, ...] = ()
    """Weights that later stages must not train."""
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
