"""Fresh weights for the graph of a trained network."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

from lathe_optimizers.passes.training_mode import ATEN

_MATRIX_RANK: Final = 2
_DEVIATION: Final = 0.02
"""Of embeddings and positions, as in BERT (Devlin et al. 2018, arXiv:1810.04805)."""
_PRELU: Final = 0.25
_SCALE_OF: Final = {
    ATEN.batch_norm.default: 1,
    ATEN.instance_norm.default: 1,
    ATEN.layer_norm.default: 2,
    ATEN.group_norm.default: 2,
    ATEN.rms_norm.default: 2,
}
"""Operator that normalises -> position of its weight among the arguments; the bias follows."""
_STATISTICS: Final = frozenset({ATEN.batch_norm.default, ATEN.instance_norm.default})
"""Operators with a running mean and variance after weight and bias."""
_TABLES: Final = frozenset({ATEN.embedding.default, ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.cat.default})
_PRODUCTS: Final = frozenset({ATEN.mul.Tensor, ATEN.mul_.Tensor})


def initialise(gm: fx.GraphModule, seed: int) -> None:
    """Give every weight a fresh value, in place, by seed.

    Matrices and kernels get the uniform distribution of torch's own layers, which keeps the variance of what flows
    through (He et al. 2015, arXiv:1502.01852, with the slope sqrt(5)); biases 0; normalisations, scales and cleared
    variances 1, means 0; embeddings and positions a small normal distribution; slopes of PReLU 0.25.
    """
    generator = torch.Generator().manual_seed(seed)
    nodes: dict[str, list[fx.Node]] = {}
    for n in gm.graph.find_nodes(op="get_attr"):
        nodes.setdefault(str(n.target), []).append(n)
    with torch.no_grad():
        for name, parameter in gm.named_parameters():
            _Kind(nodes.get(name, [])).fill(parameter, generator)
        for name, buffer in gm.named_buffers():
            statistic = _Kind(nodes.get(name, [])).statistic
            if statistic is not None:
                buffer.fill_(statistic)


class _Kind:
    """What a tensor of a graph is for, by the operators that take it."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        uses: list[tuple[Any, int]] = [(u.target, u.args.index(n)) for n in nodes for u in n.users if n in u.args]
        self.ones = any(_SCALE_OF.get(t) == place or t in _PRODUCTS for t, place in uses)
        self.norm_bias = any(t in _SCALE_OF and _SCALE_OF[t] + 1 == place for t, place in uses)
        self.slope = any(t is ATEN.prelu.default and place == 1 for t, place in uses)
        self.table = any(t in _TABLES for t, _ in uses)
        places = [place for t, place in uses if t in _STATISTICS]
        self.statistic = {3: 0.0, 4: 1.0}.get(places[0]) if places else None

    def fill(self, parameter: Tensor, generator: torch.Generator) -> None:
        if self.slope:
            parameter.fill_(_PRELU)
        elif self.ones:
            parameter.fill_(1.0)
        elif self.norm_bias or parameter.dim() < _MATRIX_RANK:
            parameter.zero_()
        elif self.table:
            parameter.normal_(0.0, _DEVIATION, generator=generator)
        else:
            bound = 1 / math.sqrt(parameter[0].numel())
            parameter.uniform_(-bound, bound, generator=generator)
