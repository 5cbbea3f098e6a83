"""The proof that a cut is right: the cut network answers as the full one with the same weights zeroed."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import unlift
from lathe_optimizers.passes.training_mode import set_training

_TOLERANCE: Final = 1e-4
_ROUNDINGS: Final = 16


def tolerance(ep: ExportedProgram) -> float:
    """Largest allowed difference relative to the largest answer.

    float32 networks differ by about 1e-6; those of lower precision by some roundings of their coarsest type.
    """
    types = {p.dtype for p in ep.parameters() if p.is_floating_point()}
    return max([_TOLERANCE, *(_ROUNDINGS * float(torch.finfo(t).eps) for t in types)])


def cut_error(ep: ExportedProgram, removed: Sequence[int], inputs: tuple[Tensor, ...]) -> float:
    """Largest difference, relative to the largest answer, that cutting makes beside zeroing.

    Args:
        ep: the full program.
        removed: channels, as representatives in `ChannelGraph(unlift(ep))`.
        inputs: what both networks are asked.

    Returns:
        Infinity if the cut network cannot be run, or gives another shape.
    """
    graph = ChannelGraph(unlift(ep))
    expected = _answers(_masked(ep, graph, removed), inputs)
    graph.remove(removed)
    graph.gm.recompile()
    try:
        found = _answers(graph.gm, inputs)
    except RuntimeError:  # sizes do not fit
        return math.inf
    return _difference(expected, found)


def masked_error(
    full: ExportedProgram, removed: Sequence[int], cut: ExportedProgram, inputs: tuple[Tensor, ...]
) -> float:
    """As `cut_error`, for a cut program that exists already."""
    graph = ChannelGraph(unlift(full))
    return _difference(_answers(_masked(full, graph, removed), inputs), _answers(unlift(cut), inputs))


def _masked(ep: ExportedProgram, graph: ChannelGraph, removed: Sequence[int]) -> fx.GraphModule:
    gone = graph.mask(removed)
    full = unlift(ep)
    with torch.no_grad():
        for weight in graph.weights:
            for d, roots in enumerate(weight.roots):
                tensor_at(full, weight.path).index_fill_(d, torch.from_numpy(np.flatnonzero(gone[roots])), 0)
    return full


def _answers(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    set_training(gm, on=False)
    with torch.no_grad():
        out = gm(*inputs)
    return [t.double() for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.numel():
            error = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-6)
            worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst
