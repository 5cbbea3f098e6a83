"""Fold BatchNorm into the convolution or linear layer before it.

In inference a BatchNorm is one multiplication and one addition per channel, which the weights before it can take over
exactly (up to float32 rounding). Quantisation needs it done before ranges are measured: the scale of a weight channel
must be that of the folded weight, and torchao's own folding in training graphs replaces `eps` by a default.
"""

import operator
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from lathe_optimizers.passes.programs import ATEN

FOLDABLE: Final = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.linear.default)
_DROPOUT: Final = (ATEN.dropout.default, ATEN.dropout_.default, ATEN.feature_dropout.default)


def fold_batch_norm(gm: fx.GraphModule) -> int:
    """Fold every BatchNorm that directly follows a layer of its own, in place.

    A BatchNorm stays where the layer's raw answer is used elsewhere too, where it uses the statistics of the batch,
    and after a linear layer on sequences (there it does not normalise the layer's outputs). Weights that several
    layers share are copied first. The layer keeps its module path.

    Args:
        gm: a graph in inference mode, as `programs.unlift` gives it.

    Returns:
        How many were folded.
    """
    count = 0
    for norm in list(gm.graph.nodes):
        if norm.target is not ATEN.batch_norm.default or not _foldable(norm):
            continue
        _fold(gm, norm)
        count += 1
    _clean(gm)
    return count


def remove_dropout(gm: fx.GraphModule) -> int:
    """Remove Dropout in place; returns how many there were.

    In inference it does nothing. In training it would stretch the ranges that quantisation measures by 1 / (1 - p).
    """
    found = [node for node in gm.graph.nodes if node.target in _DROPOUT]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
    _clean(gm)
    return len(found)


def tensor_of(gm: fx.GraphModule, node: Any) -> Tensor | None:
    """The weight or buffer behind an attribute node; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(gm)
    return value.detach() if isinstance(value, Tensor) else None


def _foldable(norm: fx.Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in FOLDABLE or len(layer.users) != 1:
        return False
    if norm.args[5] or not all(isinstance(a, fx.Node) and a.op == "get_attr" for a in norm.args[3:5]):
        return False
    if not all(
        a is None or (isinstance(a, fx.Node) and a.op == "get_attr") for a in (*layer.args[1:3], *norm.args[1:3])
    ):
        return False
    # On sequences (batch, steps, features) BatchNorm normalises the steps.
    return layer.target is not ATEN.linear.default or layer.meta["val"].dim() == 2  # noqa: PLR2004 - batch, features


def _fold(gm: fx.GraphModule, norm: fx.Node) -> None:
    layer: Any = norm.args[0]
    weight, bias = tensor_of(gm, layer.args[1]), tensor_of(gm, layer.args[2] if len(layer.args) > 2 else None)  # noqa: PLR2004
    scale, shift, mean, var = (tensor_of(gm, a) for a in norm.args[1:5])
    assert weight is not None  # noqa: S101 - `_foldable` looked
    assert mean is not None  # noqa: S101
    assert var is not None  # noqa: S101
    eps: Any = norm.args[7]
    factor = torch.rsqrt(var.double() + eps) * (1.0 if scale is None else scale.double())
    folded_bias = ((0.0 if bias is None else bias.double()) - mean.double()) * factor
    if shift is not None:
        folded_bias = folded_bias + shift.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    place = str(layer.args[1].target).removesuffix("weight").rstrip(".")
    with gm.graph.inserting_before(layer):
        new_weight = _attribute(gm, place, "weight", folded.to(weight.dtype), replaces=layer.args[1])
        old_bias = layer.args[2] if len(layer.args) > 2 else None  # noqa: PLR2004
        new_bias = _attribute(gm, place, "bias", folded_bias.to(weight.dtype), replaces=old_bias)
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    gm.graph.erase_node(norm)


def _attribute(gm: fx.GraphModule, place: str, name: str, value: Tensor, replaces: fx.Node | None) -> fx.Node:
    """A new trainable weight beside the one that it replaces, under a free name."""
    owner = gm.get_submodule(place)
    free = name
    if replaces is not None and str(replaces.target) == f"{place}.{name}".lstrip("."):
        readers = [n for n in gm.graph.nodes if n.op == "get_attr" and n.target == replaces.target]
        if sum(len(n.users) for n in readers) == 1:
            delattr(owner, name)  # nobody else reads it: its successor takes the name
    number = 0
    while hasattr(owner, free):
        number += 1
        free = f"{name}_folded_{number}"
    owner.register_parameter(free, nn.Parameter(value))
    node = gm.graph.get_attr(f"{place}.{free}".lstrip("."))
    node.meta["val"] = value
    return node


def _clean(gm: fx.GraphModule) -> None:
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.recompile()
