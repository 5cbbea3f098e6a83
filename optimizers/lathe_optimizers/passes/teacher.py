"""A teacher's answers on the training set: computed once where they fit in memory."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lathe_optimizers.context import Dataset
from lathe_optimizers.passes.losses import Inputs, Outputs, TeacherFn, TrainingBatch, outputs_of

CACHE_BYTES: Final = 1 << 29
BATCH: Final = 256


def tensors(data: Dataset, index: NDArray[np.int64]) -> tuple[Inputs, Tensor]:
    """Samples as tensors."""
    inputs, target = data.take(index)
    return tuple(_tensor(a) for a in inputs), _tensor(target)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def teacher_of(network: nn.Module, data: Dataset) -> TeacherFn:
    """All outputs of a network on batches of `data`, without gradients.

    They are computed ahead, in the order of the data, where they fit in 512 MiB: a teacher is larger than its
    student, so that asking it again in every epoch would take most of the time. The order is fixed because kernels
    round differently by batch, and a resumed training must see the same numbers.
    """

    def ask(inputs: Inputs) -> Outputs:
        with torch.no_grad():
            return outputs_of(network, inputs)

    if len(data) == 0:
        return lambda batch: ask(batch.inputs)
    sizes = [t[0].numel() * t.element_size() for t in ask(tensors(data, np.zeros(min(2, len(data)), np.int64))[0])]
    if len(data) * sum(sizes) > CACHE_BYTES:
        return lambda batch: ask(batch.inputs)
    parts = [
        ask(tensors(data, np.arange(start, min(start + BATCH, len(data)), dtype=np.int64))[0])
        for start in range(0, len(data), BATCH)
    ]
    known = tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    def recall(batch: TrainingBatch) -> Outputs:
        index = torch.from_numpy(batch.index)
        return tuple(output[index] for output in known)

    return recall
