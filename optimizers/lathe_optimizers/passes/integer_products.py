"""Matrix products whose activations become 8-bit while they run, written as ONNX Runtime runs them.

The runtime's own tool writes six nodes to a product, which a session fuses when it loads them. Written fused, a file
is smaller, and what runs does not hang on patterns that an optimiser must find.
"""

from collections import Counter
from collections.abc import Collection
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lathe_optimizers.passes.weight_bits import (
    CONTRIB,
    Floats,
    attribute,
    by_channel,
    constants,
    drop_unread,
    weight_of,
)

_WHOLE: Final = "DynamicQuantizeMatMul"
"""Finds the range of its input itself."""
_SHARED: Final = "MatMulIntegerToFloat"
"""Reads a range that several products share."""
_ALIKE: Final = 1.02
"""Rounding noise of one scale for a matrix over that of a scale for each column, below which one is enough: 0.1 dB."""


def convert(model: onnx.ModelProto, largest: int, excluded: Collection[str]) -> int:
    """Replace, in place, products with a constant matrix by products of integers.

    Weights are symmetric int8, by column; zero points that are zero are not written (contrib operators
    DynamicQuantizeMatMul and MatMulIntegerToFloat). Products that read the same values share their range.

    Args:
        model: with nodes of different names and float32 weights.
        largest: magnitude of the largest weight: 127, or 64 where sums of two products would overflow 16 bits.
        excluded: names of nodes that stay in floating point.

    Returns:
        How many products were replaced.
    """
    weights = constants(model)
    biases = {w.name: tuple(w.dims) for w in model.graph.initializer}
    chosen = {
        node.name
        for node in model.graph.node
        if node.name not in excluded and _fits(node, weight_of(node, weights), biases)
    }
    readers = Counter(n.input[0] for n in model.graph.node if n.name in chosen)
    new: list[onnx.NodeProto] = []
    ranges: dict[str, list[str]] = {}
    made: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.name not in chosen:
            new.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        matrix, scale = _packed(node, weights[node.input[1]], largest, made)
        values = node.input[0]
        bias = node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004 - A, B, C
        if readers[values] == 1:
            operator, inputs = _WHOLE, [values, matrix, scale, "", bias]
        else:
            if values not in ranges:
                ranges[values] = [f"{values}_{part}" for part in ("q", "s", "z")]
                new.append(helper.make_node("DynamicQuantizeLinear", [values], ranges[values]))
            integers, factor, zero = ranges[values]
            operator, inputs = _SHARED, [integers, matrix, factor, scale, zero, "", bias]
        while not inputs[-1]:
            inputs.pop()
        new.append(helper.make_node(operator, inputs, list(node.output), name=node.name, domain=CONTRIB))
    del model.graph.node[:]
    model.graph.node.extend(new)
    model.graph.initializer.extend(made.values())
    drop_unread(model)
    if chosen and all(o.domain != CONTRIB for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return len(chosen)


def _fits(node: onnx.NodeProto, weight: Floats | None, biases: dict[str, tuple[int, ...]]) -> bool:
    if weight is None or weight.ndim != 2 or node.op_type not in ("MatMul", "Gemm"):  # noqa: PLR2004 - a matrix
        return False
    if node.op_type == "MatMul":
        return True
    columns = weight.shape[0] if attribute(node, "transB", 0) else weight.shape[1]
    plain = not attribute(node, "transA", 0)
    biased = len(node.input) > 2 and node.input[2]  # noqa: PLR2004 - A, B, C
    return plain and (not biased or (biases.get(node.input[2]) == (columns,) and attribute(node, "beta", 1.0) == 1.0))


def _packed(node: onnx.NodeProto, weight: Floats, largest: int, made: dict[str, onnx.TensorProto]) -> tuple[str, str]:
    """Names of the integers of shape (K, N) and of their scales, (N,) or one."""
    if node.op_type == "Gemm":
        weight = weight.T if attribute(node, "transB", 0) else weight
        weight = weight * np.float32(attribute(node, "alpha", 1.0))
    name = f"{node.input[1]}_q" if node.op_type == "MatMul" else f"{node.input[1]}_{node.name}_q"
    if name not in made:
        values, scales = by_channel(weight, 1, largest)
        if np.square(scales.max()) <= _ALIKE * np.square(scales).mean():
            scales = scales.max()
            values = np.clip(np.rint(weight / scales), -largest, largest).astype(np.int8)
        made[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        made[f"{name}s"] = numpy_helper.from_array(np.asarray(scales, np.float32), f"{name}s")
    return name, f"{name}s"
