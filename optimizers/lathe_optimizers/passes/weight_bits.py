"""Weights in 8 or 4 bits, activations in float32: smaller files, for models whose activations do not round well.

Matrix products become `com.microsoft.MatMulNBits`: symmetric blocks along the inner dimension, each with a float32
scale, whose value of largest magnitude is -2^(bits-1) exactly. Convolutions have no such kernel: their weights are
int8 per output channel behind a DequantizeLinear. Rows of embeddings are int8 with a scale each.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lathe_optimizers.passes import onnx_parts

CONTRIB: Final = "com.microsoft"
_INT8_COMPUTE: Final = 4
"""`accuracy_level` at which the CPU kernel multiplies integers."""
OPERATORS: Final = frozenset({"Conv", "Gather", "Gemm", "MatMul"})
"""What reads constant matrices."""
BLOCKS: Final = {4: (32, 16), 8: (128, 64, 32, 16)}
"""Sizes of blocks by bits, the preferred first; 4 bits lose too much in larger ones."""
_EMBEDDING_BLOCK: Final = 32
_LARGEST: Final = 127

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """A matrix of shape (K, N) as `MatMulNBits` reads it."""

    values: NDArray[np.uint8]
    """(N, blocks, block size x bits / 8); of two 4-bit values the first is in the low half."""
    scales: Floats
    """(N, blocks)"""
    block: int


def pack(weight: Floats, bits: int) -> Packed:
    """Round a matrix to 4 or 8 bits in blocks along its first dimension.

    Args:
        weight: (K, N).
        bits: 4 or 8.
    """
    inner, outer = weight.shape
    # The last block is filled up with zeros: a small matrix would grow in large blocks.
    block = min(BLOCKS[bits], key=lambda b: -(-inner // b) * (b * bits // 8 + 4))
    blocks = -(-inner // block)
    padded = np.zeros((outer, blocks * block), np.float32)
    padded[:, :inner] = weight.T
    parts = padded.reshape(outer, blocks, block)
    zero = 1 << (bits - 1)
    extreme = np.take_along_axis(parts, np.abs(parts).argmax(2, keepdims=True), 2)
    scales = (extreme / -zero).astype(np.float32)
    steps = np.divide(parts, scales, out=np.zeros_like(parts), where=scales != 0)
    values = np.clip(np.rint(steps) + zero, 0, 2 * zero - 1).astype(np.uint8)
    if bits == 4:  # noqa: PLR2004 - two values to a byte
        values = values[:, :, ::2] | values[:, :, 1::2] << 4
    return Packed(values, scales[:, :, 0], block)


def by_channel(weight: Floats, axis: int, limit: int = _LARGEST) -> tuple[NDArray[np.int8], Floats]:
    """Round to int8 with a symmetric scale for each index along `axis`; values in -limit..limit."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others)
    scales = np.where(largest > 0, largest / limit, 1).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scales.reshape(shape)), -limit, limit).astype(np.int8), scales


def convert(
    model: onnx.ModelProto, bits: int, excluded: Collection[str], operators: Collection[str] = OPERATORS
) -> dict[str, int]:
    """Replace, in place, the weights of matrix products, embeddings and (in 8 bits) convolutions.

    What would not become smaller stays as it is.

    Args:
        model: with named nodes and float32 weights.
        bits: 4 or 8, of the weights of matrix products.
        excluded: names of nodes that stay in floating point.
        operators: types of nodes to look at.

    Returns:
        How many weights were replaced, by operator.
    """
    weights = constants(model)
    done: Counter[str] = Counter()
    new: list[onnx.NodeProto] = []
    made: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        kept = node.name in excluded or node.op_type not in operators
        weight = None if kept else weight_of(node, weights)
        replaced = None if weight is None else _replaced(node, weight, bits, made)
        new.extend(replaced or [node])
        done[node.op_type] += replaced is not None
    del model.graph.node[:]
    model.graph.node.extend(new)
    model.graph.initializer.extend(made.values())
    drop_unread(model)
    if any(n.domain == CONTRIB for n in new) and all(o.domain != CONTRIB for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return {operator: count for operator, count in sorted(done.items()) if count}


def constants(model: onnx.ModelProto) -> dict[str, Floats]:
    """Float32 weights of at least two dimensions by name."""
    kind = onnx.TensorProto.FLOAT
    return {
        w.name: numpy_helper.to_array(w) for w in model.graph.initializer if w.data_type == kind and len(w.dims) > 1
    }


def weight_of(node: onnx.NodeProto, weights: Mapping[str, Floats]) -> Floats | None:
    """The constant that a matrix product or convolution multiplies by, or that an embedding looks up."""
    position = 0 if node.op_type == "Gather" else 1
    if node.op_type not in OPERATORS or len(node.input) <= position:
        return None
    return weights.get(node.input[position])


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove the weights that no node reads any more."""
    read: set[str] = set()
    for part in onnx_parts.parts(model):
        if isinstance(part, onnx.NodeProto):
            read.update(part.input)
        elif isinstance(part, onnx.GraphProto):
            read.update(o.name for o in part.output)
    kept = [w for w in model.graph.initializer if w.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _replaced(
    node: onnx.NodeProto, weight: Floats, bits: int, made: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto] | None:
    match node.op_type:
        case "Conv" if bits == 8:  # noqa: PLR2004 - the only width that its weights are read in
            return _convolution(node, weight, made)
        case "Gather" if weight.ndim == 2 and not attribute(node, "axis", 0):  # noqa: PLR2004 - rows of a matrix
            return _embedding(node, weight, bits, made)
        case "MatMul" if weight.ndim == 2:  # noqa: PLR2004 - a matrix
            return _product(node, weight, bits, made)
        case "Gemm" if not attribute(node, "transA", 0):
            weight = weight.T if attribute(node, "transB", 0) else weight
            return _product(node, weight * np.float32(attribute(node, "alpha", 1.0)), bits, made)
    return None


def _product(
    node: onnx.NodeProto, weight: Floats, bits: int, made: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto] | None:
    packed = pack(weight, bits)
    biased = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]  # noqa: PLR2004 - A, B, C
    if packed.values.nbytes + packed.scales.nbytes >= weight.nbytes or (biased and attribute(node, "beta", 1.0) != 1.0):
        return None
    name = f"{node.input[1]}_{node.name}"
    names = [_add(made, f"{name}_q{bits}", packed.values), _add(made, f"{name}_s", packed.scales)]
    product = f"{node.output[0]}_product" if biased else node.output[0]
    inner, outer = weight.shape
    settings: dict[str, Any] = {
        "K": inner,
        "N": outer,
        "bits": bits,
        "block_size": packed.block,
        "accuracy_level": _INT8_COMPUTE,
    }
    inputs = [node.input[0], *names]
    nodes = [helper.make_node("MatMulNBits", inputs, [product], name=node.name, domain=CONTRIB, **settings)]
    if biased:
        nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    return nodes


def _convolution(node: onnx.NodeProto, weight: Floats, made: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    values, scales = by_channel(weight, 0)
    name = node.input[1]
    names = [_add(made, f"{name}_q8", values), _add(made, f"{name}_s", scales)]
    whole = f"{name}_{node.output[0]}"
    node.input[1] = whole
    return [helper.make_node("DequantizeLinear", names, [whole], axis=0), node]


def _embedding(
    node: onnx.NodeProto, weight: Floats, bits: int, made: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto] | None:
    name, result = node.input[0], node.output[0]
    if bits == 4 and weight.shape[1] % _EMBEDDING_BLOCK == 0:  # noqa: PLR2004 - two values to a byte
        packed = pack(np.ascontiguousarray(weight.T), bits)
        signed = packed.values.reshape(len(weight), -1) ^ 0x88  # from an offset of 8 to two's complement
        made[f"{name}_rows_q4"] = helper.make_tensor(
            f"{name}_rows_q4", onnx.TensorProto.INT4, weight.shape, signed.tobytes(), raw=True
        )
        inputs = [f"{name}_rows_q4", node.input[1], _add(made, f"{name}_rows_s", packed.scales)]
        settings: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": packed.block}
        return [helper.make_node("GatherBlockQuantized", inputs, [result], name=node.name, domain=CONTRIB, **settings)]
    if weight.shape[1] <= 4:  # noqa: PLR2004 - four bytes of int8 and a scale are no smaller than two floats
        return None
    values, scales = by_channel(weight, 0)
    rows, row_scales = _add(made, f"{name}_rows_q8", values), _add(made, f"{name}_rows_s8", scales[:, None])
    return [
        helper.make_node("Gather", [rows, node.input[1]], [f"{result}_q"], name=node.name, axis=0),
        helper.make_node("Cast", [f"{result}_q"], [f"{result}_f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [row_scales, node.input[1]], [f"{result}_s"], axis=0),
        helper.make_node("Mul", [f"{result}_f", f"{result}_s"], [result]),
    ]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute of a node, or what it is when absent."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _add(made: dict[str, onnx.TensorProto], name: str, values: NDArray[Any]) -> str:
    made[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
    return name
