"""Channel rules of operators that have weights, and of attention."""

from typing import Final

import numpy as np
from torch import fx

from lathe_optimizers.passes.atoms import Dims
from lathe_optimizers.passes.channel_rules_base import Args, Flow, Rule, Value

_INPUT: Final = "its input is not followed"
_MAPS_RANK: Final = 4


def _conv(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, weight, bias, *_, groups = args
    if len(flow.dims(x)) != len(flow.dims(weight)) or weight.op != "get_attr":
        return None
    inputs = flow.dims(x)[1]
    outputs, taps, *kernel = flow.dims(weight)
    if outputs is None or taps is None:
        return None
    count, total, per_group = flow.shape(x)[1], len(outputs), len(taps)
    for labels in kernel:
        flow.atoms.freeze(labels, KERNEL)
    if groups == 1:
        flow.meet(inputs, taps, _INPUT, node)
    elif inputs is None:
        flow.freeze(np.concatenate([taps, outputs]), _INPUT, node)
    elif per_group == 1:
        # Depthwise: one input channel owns its outputs, and the number of groups shrinks with it.
        flow.atoms.freeze(taps, KERNEL)
        flow.atoms.union(np.repeat(inputs, total // count), outputs)
    else:
        # Grouped: the same position goes in every group, so that the groups stay equal.
        flow.atoms.union(np.tile(taps, groups), inputs)
        flow.atoms.union(np.tile(outputs[: total // groups], groups), outputs)
    if bias is not None:
        flow.meet(outputs, flow.dims(bias)[0], _INPUT, node)
    return [flow.dims(x)[0], outputs, *[None] * len(kernel)]


def _convolution(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    *front, transposed, _output_padding, groups = args
    return None if transposed else _conv(flow, node, [*front, groups])


def _linear(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, weight, bias = args
    outputs, inputs = flow.dims(weight)
    flow.meet(flow.dims(x)[-1], inputs, _INPUT, node)
    if bias is not None:
        flow.meet(outputs, flow.dims(bias)[0], _INPUT, node)
    return [*flow.dims(x)[:-1], outputs]


def _matmul(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    a, b = args[:2]
    left, right = flow.dims(a), flow.dims(b)
    if min(len(left), len(right)) < 2:  # noqa: PLR2004 - a vector has one dimension
        return None
    flow.meet(left[-1], right[-2], "contraction is not followed", node)
    batch: Dims = []
    for d in range(-max(len(left), len(right)), -2):
        of_a, of_b = (dims[d] if len(dims) >= -d else None for dims in (left, right))
        size_a, size_b = (flow.shape(n)[d] if len(flow.shape(n)) >= -d else 1 for n in (a, b))
        if size_a == size_b:
            batch.append(flow.meet(of_a, of_b, "batch of a product is not followed", node))
        else:
            batch.append(of_a if size_b == 1 else of_b)
    return [*batch, left[-2], right[-1]]


def _addmm(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    bias, a, b = args[:3]
    flow.meet(flow.dims(a)[1], flow.dims(b)[0], _INPUT, node)
    if len(flow.dims(bias)) != 1:
        return None
    return [flow.dims(a)[0], flow.meet(flow.dims(b)[1], flow.dims(bias)[0], _INPUT, node)]


def _attention(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    query, key, value, mask = args[:4]
    q, k, v = (flow.dims(n) for n in (query, key, value))
    if not len(q) == len(k) == len(v) == _MAPS_RANK:
        return None
    for labels in (q[-2], k[-2], v[-2], q[-1], k[-1]):
        flow.freeze(labels, "head size sets the attention scale", node)
    if mask is not None:
        flow.block(mask, "attention mask", node)
        if len(flow.dims(mask)) >= 3 and flow.shape(mask)[-3] != 1:  # noqa: PLR2004 - (…, heads, rows, columns)
            flow.freeze(q[1], "attention mask of each head", node)
    heads = flow.meet(flow.meet(q[1], k[1], "heads", node), v[1], "heads", node)
    return [None, heads, None, v[-1]]


def _cpu_attention(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    query, key, value, _dropout, _causal, mask, _scale = args
    return _only_first(node, _attention(flow, node, [query, key, value, mask]), 2)


def _batch_norm(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, *parameters = args[:5]
    out = list(flow.dims(x))
    for parameter in parameters:
        if parameter is not None:
            out[1] = flow.meet(out[1], flow.dims(parameter)[0], _INPUT, node)
    return out


def _batch_norm_of_decomposed(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    return _only_first(node, _batch_norm(flow, node, args), 3)


def _layer_norm(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, shape, weight, bias = args[:4]
    out, rank = list(flow.dims(x)), len(shape)
    for parameter in (weight, bias):
        for i in range(rank if parameter is not None else 0):
            out[i - rank] = flow.meet(out[i - rank], flow.dims(parameter)[i], _INPUT, node)
    if rank == 1:
        flow.normalized.append(out[-1])
    else:
        for labels in out[-rank:]:
            flow.freeze(labels, "normalised over several dimensions", node)
    return out


def _layer_norm_of_decomposed(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    return _only_first(node, _layer_norm(flow, node, args), 3)


def _only_first(node: fx.Node, first: Value | None, results: int) -> Value | None:
    """The form with several results of an operator with one: followed while only the first result is used."""
    if first is None or isinstance(first, tuple) or any(u.args[1:] != (0,) and u.users for u in node.users):
        return None
    return (first, *[[] for _ in range(results - 1)])


def _embedding(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    table, index = args[:2]
    flow.freeze(flow.dims(table)[0], "rows of an embedding", node)
    return [*[None] * len(flow.dims(index)), flow.dims(table)[1]]


def _prelu(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, slope = args
    out = list(flow.dims(x))
    if len(out) > 1 and flow.shape(slope) != [1]:
        out[1] = flow.meet(out[1], flow.dims(slope)[0], _INPUT, node)
    elif flow.shape(slope) != [1]:
        return None
    return out


KERNEL: Final = "kernel size"
"""Reason of dimensions that are no channels; not worth a word to the user."""

RULES: Final[dict[str, Rule]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _cpu_attention,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_of_decomposed,
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm_of_decomposed,
    "embedding": _embedding,
    "prelu": _prelu,
}
