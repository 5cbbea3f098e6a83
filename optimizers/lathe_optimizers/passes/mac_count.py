"""Multiply-accumulates of a program's layers with weights, for one sample, and what removed channels leave of them."""

import math
from collections.abc import Sequence
from typing import Any, Final

from torch import fx

from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import ATEN

_CONVOLUTIONS: Final = frozenset({ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default})
_TRANSPOSED: Final = frozenset({ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input})
_PRODUCTS: Final = frozenset({ATEN.linear.default, ATEN.matmul.default, ATEN.mm.default})


class MacCount:
    """Multiply-accumulates that are left when some channels are removed.

    A layer takes one for each element of its weight at each position of its output (of its input, where a convolution
    is transposed). Products of activations with each other, as in attention, are not counted.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        positions: dict[int, int] = {}
        for node in graph.gm.graph.nodes:
            weight = _weight(node, graph.gm)
            if weight is not None:
                positions[id(weight)] = positions.get(id(weight), 0) + _positions(node)
        self._dims = [
            (w.roots, positions[id(w.tensor)]) for w in graph.weights if w.trainable and id(w.tensor) in positions
        ]

    def __call__(self, removed: Sequence[int]) -> int:
        """Multiply-accumulates for one sample without these channels."""
        kept = ~self._graph.mask(removed)
        return sum(math.prod(int(kept[roots].sum()) for roots in dims) * times for dims, times in self._dims)


def _weight(node: fx.Node, gm: fx.GraphModule) -> Any:
    if node.target not in _CONVOLUTIONS | _TRANSPOSED | _PRODUCTS:
        return None
    source = node.args[1]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    found: Any = gm
    for name in str(source.target).split("."):
        found = getattr(found, name)
    return found


def _positions(node: fx.Node) -> int:
    counted: Any = node.args[0] if node.target in _TRANSPOSED else node
    shape = counted.meta["val"].shape
    return math.prod(_size(d) for d in (shape[1:-1] if node.target in _PRODUCTS else shape[2:]))


def _size(dimension: Any) -> int:
    """Of a size that varies, the example's."""
    return dimension if isinstance(dimension, int) else int(dimension.node.hint)
