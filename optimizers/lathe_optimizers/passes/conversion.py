"""From observers to integers: the last step of quantisation.

Every observer of a prepared graph becomes a quantise and a dequantise step with its scale; where it looked at weights,
the weights themselves become integers and only the dequantise step remains. Weights keep their names.

Not torchao's own conversion: it searches for patterns of convolution and BatchNorm whenever a BatchNorm is left
(by exporting some hundred sample graphs, half a minute) and names all weights anew.
"""

from typing import Any, Final

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import FakeQuantize

from lathe_optimizers.passes.folding import tensor_of

_OPS: Final = torch.ops.quantized_decomposed


def insert_integers(gm: fx.GraphModule) -> None:
    """Replace all observers of a prepared graph, in place; their ranges must be settled."""
    for node in list(gm.graph.nodes):
        if node.op != "call_module":
            continue
        observer = gm.get_submodule(str(node.target))
        with gm.graph.inserting_before(node):
            step = _weights(gm, node, observer) if node.args[0].op == "get_attr" else _activations(gm, node, observer)
        step.meta = dict(node.args[0].meta)
        node.replace_all_uses_with(step)
        gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.recompile()


def _activations(gm: fx.GraphModule, node: fx.Node, observer: Any) -> fx.Node:
    scale, zero_point = observer.calculate_qparams()
    kind = _kind(observer)
    settings = (float(scale), int(zero_point), *kind)
    quantised = gm.graph.call_function(_OPS.quantize_per_tensor.default, (node.args[0], *settings))
    quantised.meta = dict(node.args[0].meta)  # type: ignore[union-attr]  # an observer looks at one node
    return gm.graph.call_function(_OPS.dequantize_per_tensor.default, (quantised, *settings))


def _weights(gm: fx.GraphModule, node: fx.Node, observer: Any) -> fx.Node:
    scale, zero_point = observer.calculate_qparams()
    low, high, dtype = _kind(observer)
    source: Any = node.args[0]
    values = tensor_of(gm, source)
    assert values is not None  # noqa: S101 - an attribute node has a tensor
    if scale.numel() == 1:
        settings = (float(scale), int(zero_point), low, high, dtype)
        integers = _OPS.quantize_per_tensor.default(values, *settings)
        stored = _store(gm, source, integers, "")
        return gm.graph.call_function(_OPS.dequantize_per_tensor.default, (stored, *settings))
    axis = int(observer.ch_axis)
    integers = _OPS.quantize_per_channel.default(values, scale, zero_point, axis, low, high, dtype)
    scales, zeros = _store(gm, source, scale, "_scale"), _store(gm, source, zero_point, "_zero_point")
    stored = _store(gm, source, integers, "")
    return gm.graph.call_function(_OPS.dequantize_per_channel.default, (stored, scales, zeros, axis, low, high, dtype))


def _store(gm: fx.GraphModule, source: fx.Node, value: Tensor, suffix: str) -> fx.Node:
    """Keep a tensor beside the weight that it is made of; under the same name where nobody else reads the weight."""
    place, _, name = str(source.target).rpartition(".")
    owner, wanted = gm.get_submodule(place), f"{name}{suffix}"
    readers = [n for n in gm.graph.nodes if n.op == "get_attr" and n.target == source.target]
    if not suffix and sum(len(n.users) for n in readers) == 1:
        delattr(owner, name)
    free, number = wanted, 0
    while hasattr(owner, free):
        number += 1
        free = f"{wanted}_{number}"
    owner.register_buffer(free, value)
    return gm.graph.get_attr(f"{place}.{free}".lstrip("."))


def _kind(observer: Any) -> tuple[int, int, torch.dtype]:
    found = observer.activation_post_process if isinstance(observer, FakeQuantize) else observer
    return int(found.quant_min), int(found.quant_max), found.dtype
