"""BatchNorm statistics of a changed network, recomputed on training inputs.

After pruning, running means and variances describe activations that are gone. Recomputing them needs no labels and no
gradients, and often restores most of what a cut costs (precise BatchNorm, Wu and Johnson 2021, arXiv:2105.07576).
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram

from lathe_optimizers.context import Dataset
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.programs import dynamic_shapes, example_inputs
from lathe_optimizers.passes.teacher import tensors
from lathe_optimizers.passes.training_mode import ATEN, set_training

SAMPLES: Final = 2048
_BATCH: Final = 64
_MODE, _MOMENTUM = 5, 6
"""Positions among the arguments of `aten.batch_norm`."""


def recompute_statistics(gm: fx.GraphModule, like: ExportedProgram, data: Dataset, samples: int = SAMPLES) -> int:
    """Set the running statistics of every BatchNorm to those over `samples` inputs, in place.

    Mean and variance are those over all samples together (law of total variance over the batches). The graph is left
    in inference mode.

    Args:
        gm: unlifted graph.
        like: the program it was made from, for the sizes of a batch.
        data: training inputs; labels are not looked at.
        samples: how many inputs are used at most.

    Returns:
        Number of BatchNorm layers; 0 also when there are too few samples for a batch.
    """
    set_training(gm, on=False)
    nodes = [n for n in gm.graph.nodes if n.target == ATEN.batch_norm.default and n.args[3] is not None]
    batches = _batches(like, len(data), samples)
    if not nodes or not batches:
        return 0
    buffers = {str(n.args[3].target): str(n.args[4].target) for n in nodes}
    before = [n.args for n in nodes]
    for n in nodes:
        n.args = (*n.args[:_MODE], True, 1.0, *n.args[_MOMENTUM + 1 :])
    gm.recompile()
    try:
        statistics = _pooled(gm, buffers, data, batches)
    finally:
        for n, args in zip(nodes, before, strict=True):
            n.args = args
        gm.recompile()
    for path, (mean, var) in statistics.items():
        tensor_at(gm, path).copy_(mean)
        tensor_at(gm, buffers[path]).copy_(var)
    return len(nodes)


def _pooled(
    gm: fx.GraphModule, buffers: dict[str, str], data: Dataset, batches: list[NDArray[np.int64]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per running mean, the mean and variance over all batches. A momentum of 1 leaves each batch's in the buffers."""
    total = sum(len(batch) for batch in batches)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            gm(*tensors(data, batch)[0])
            share = len(batch) / total
            for path, var_path in buffers.items():
                mean = tensor_at(gm, path).double()
                square = tensor_at(gm, var_path).double() + mean.square()
                first, second = sums.get(path, (torch.zeros_like(mean), torch.zeros_like(mean)))
                sums[path] = (first + share * mean, second + share * square)
    return {path: (mean, (square - mean.square()).clamp_min(0)) for path, (mean, square) in sums.items()}


def _batches(like: ExportedProgram, count: int, samples: int) -> list[NDArray[np.int64]]:
    """Which samples make up each batch: drawn over the whole set, as files are often sorted by label.

    Batches have the size that the program takes. What is left over is dropped if it is less than half a batch, unless
    it is all there is.
    """
    order = np.random.default_rng(0).permutation(count)[:samples]
    varying = all(0 in dims for dims in dynamic_shapes(like))
    size = _BATCH if varying else len(example_inputs(like)[0])
    least = min(size // 2, max(len(order), 2)) if varying else size
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [part for part in parts if len(part) >= least]
