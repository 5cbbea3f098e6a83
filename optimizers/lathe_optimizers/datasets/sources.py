"""Samples in memory or on disk, and parts of them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lathe_optimizers.context import Array, Batch, Dataset
from lathe_optimizers.errors import InputError


class ArrayDataset:
    """Samples along the first dimension of arrays, which may be memory maps.

    Args:
        field: field path of the data set in the document, for errors.
        inputs: array per network input, in the declared order.
        target: the truth.
    """

    def __init__(self, field: str, inputs: Mapping[str, Array], target: Array) -> None:
        self.field = field
        self.inputs = dict(inputs)
        self.target = target
        for name, array in self.inputs.items():
            if array.ndim == 0 or target.ndim == 0 or len(array) != len(target):
                raise InputError(
                    field,
                    f"input {name} has shape {array.shape} and the target {target.shape}",
                    "Give every field one entry per sample along its first dimension",
                )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the network inputs."""
        return tuple(self.inputs)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.target)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """The samples at `indices`."""
        return tuple(np.ascontiguousarray(a[indices]) for a in self.inputs.values()), np.asarray(self.target[indices])


class Subset:
    """Some samples of a data set."""

    def __init__(self, whole: Dataset, indices: NDArray[np.int64]) -> None:
        self.whole = whole
        self.indices = indices

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the network inputs."""
        return self.whole.input_names

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """The samples at `indices` of the part."""
        return self.whole.take(self.indices[indices])


def stored_places(data: Dataset, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the samples at `indices` are in their file: errors name samples by it."""
    return stored_places(data.whole, data.indices[indices]) if isinstance(data, Subset) else indices


def targets(data: Dataset, size: int = 4096) -> Array:
    """The truth of all samples, in order."""
    if isinstance(data, ArrayDataset):
        return data.target
    parts = [
        data.take(np.arange(start, min(start + size, len(data)), dtype=np.int64))[1]
        for start in range(0, len(data), size)
    ]
    return np.concatenate(parts) if parts else np.empty(0)
