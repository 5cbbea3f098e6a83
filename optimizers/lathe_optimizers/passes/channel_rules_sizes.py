"""Sizes that are constants in the arguments of an operator, and how they follow when channels are removed."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import fx

from lathe_optimizers.passes.atoms import Dims, Labels
from lathe_optimizers.passes.channel_rules_base import Flow, Value, full_args, op_name

Resize = Callable[[Labels, Any], Any]
"""The size that is left of a dimension, given its labels and its size so far; sizes of -1 and unfollowed ones stay."""

_GROUPS_ARGUMENT: Final = {"conv1d": 6, "conv2d": 6, "conv3d": 6, "convolution": 8}


def mend_sizes(flow: Flow, node: fx.Node, resize: Resize) -> None:
    """Write the remaining sizes into the arguments of `node`, in place."""
    mend = _MENDERS.get(op_name(node))
    if mend is not None:
        mend(flow, node, resize)


def _listed(sizes: Sequence[Any], dims: Dims, resize: Resize) -> list[Any]:
    return [resize(labels, size) for labels, size in zip(dims, sizes, strict=True)]


def _first(value: Value) -> Dims:
    return value[0] if isinstance(value, tuple) else value


def _sized(flow: Flow, node: fx.Node, resize: Resize) -> None:
    node.update_arg(1, _listed(full_args(node)[1], flow.dims(node), resize))


def _unflatten(flow: Flow, node: fx.Node, resize: Resize) -> None:
    x, dim, sizes = full_args(node)
    first = dim % len(flow.dims(x))
    node.update_arg(2, _listed(sizes, flow.dims(node)[first : first + len(sizes)], resize))


def _layer_norm(flow: Flow, node: fx.Node, resize: Resize) -> None:
    shape = full_args(node)[1]
    out = _first(flow.values[node])
    if out:
        node.update_arg(1, _listed(shape, out[-len(shape) :], resize))


def _depthwise_groups(flow: Flow, node: fx.Node, resize: Resize) -> None:
    args = full_args(node)
    at = _GROUPS_ARGUMENT[op_name(node)]
    depthwise = args[at] != 1 and flow.shape(args[1])[1] == 1
    if depthwise:
        # As many groups as input channels.
        node.args = (*args[:at], resize(flow.dims(args[0])[1], args[at]))
        node.kwargs = {}


def _split(flow: Flow, node: fx.Node, resize: Resize) -> None:
    x, _sizes, dim = full_args(node)
    parts = flow.values[node]
    dim %= len(flow.dims(x))
    if isinstance(parts, tuple) and parts[0][dim] is not None:
        # The parts need not stay equal.
        node.target = torch.ops.aten.split_with_sizes.default
        node.args = (x, [resize(part[dim], None) for part in parts], dim)
        node.kwargs = {}


_MENDERS: Final[dict[str, Callable[[Flow, fx.Node, Resize], None]]] = {
    **dict.fromkeys(("reshape", "view", "_unsafe_view", "expand"), _sized),
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), _split),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(_GROUPS_ARGUMENT, _depthwise_groups),
    "unflatten": _unflatten,
}
