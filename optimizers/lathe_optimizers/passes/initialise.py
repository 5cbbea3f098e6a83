"""Fresh weights for the graph of a trained network."""

import math
from typing import Final

import torch
from torch import fx

ATEN: Final = torch.ops.aten
_NORMS: Final = frozenset({ATEN.batch_norm.default, ATEN.layer_norm.default, ATEN.group_norm.default})
_MATRIX_RANK: Final = 2


def initialise(gm: fx.GraphModule, seed: int) -> None:
    """Give every weight a fresh value, in place, by seed.

    Weights of matrices and kernels follow He et al. 2015 (arXiv:1502.01852) with torch's default bound, biases are 0,
    normalisations 1 and 0 with cleared statistics, and other parameters (embeddings, positions) small and normal.
    """
    generator = torch.Generator().manual_seed(seed)
    ones, zeros = _normalisations(gm)
    with torch.no_grad():
        for name, parameter in gm.named_parameters():
            if name in ones:
                parameter.fill_(1.0)
            elif name in zeros or parameter.dim() < _MATRIX_RANK:
                parameter.zero_()
            else:
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
        for name, buffer in gm.named_buffers():
            if name in ones:
                buffer.fill_(1)
            elif name in zeros:
                buffer.zero_()


def _normalisations(gm: fx.GraphModule) -> tuple[set[str], set[str]]:
    """Names of the tensors that start at 1 (weights, variances) and at 0 (biases, means)."""
    ones: set[str] = set()
    zeros: set[str] = set()
    for node in gm.graph.nodes:
        if node.target not in _NORMS:
            continue
        tensors = [str(a.target) if isinstance(a, fx.Node) and a.op == "get_attr" else None for a in node.args]
        first = 1 if node.target is ATEN.batch_norm.default else 2
        ones.update(t for t in tensors[first : first + 1] if t)
        zeros.update(t for t in tensors[first + 1 : first + 2] if t)
        if node.target is ATEN.batch_norm.default:
            zeros.update(t for t in tensors[3:4] if t)
            ones.update(t for t in tensors[4:5] if t)
    return ones, zeros
