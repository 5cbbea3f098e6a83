"""Operators of an ONNX graph that become one: BatchNorm by arithmetic, the rest by ONNX Runtime's fusion tool.

The tool's own shape inference is left out: it depends on a library that is not everywhere, and the same file must give
the same bytes. What it would have ruled out, the caller's comparison of answers does.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.onnx_model_bert import BertOnnxModel

from lathe_api.recipe import FusedOperator
from lathe_optimizers.passes import float_model, onnx_files
from lathe_optimizers.passes.weight_bits import CONTRIB, attribute, drop_unread

_RESULTS: Final[dict[FusedOperator, tuple[str, ...]]] = {
    FusedOperator.LAYER_NORM: ("LayerNormalization", "SimplifiedLayerNormalization"),
    FusedOperator.GELU: ("Gelu", "FastGelu"),
    FusedOperator.BIAS_GELU: ("BiasGelu",),
    FusedOperator.SKIP_LAYER_NORM: ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    FusedOperator.ATTENTION: ("Attention", "MultiHeadAttention"),
}
"""Types of the nodes that a fusion makes."""
_SWITCHES: Final = {
    FusedOperator.LAYER_NORM: "enable_layer_norm",
    FusedOperator.GELU: "enable_gelu",
    FusedOperator.BIAS_GELU: "enable_bias_gelu",
    FusedOperator.SKIP_LAYER_NORM: "enable_skip_layer_norm",
    FusedOperator.ATTENTION: "enable_attention",
}
ORDER: Final = (
    FusedOperator.BATCH_NORM,
    FusedOperator.LAYER_NORM,
    FusedOperator.GELU,
    FusedOperator.SKIP_LAYER_NORM,
    FusedOperator.ATTENTION,
    FusedOperator.BIAS_GELU,
)
_FOLDED: Final = ("Conv", "Gemm")

Floats = NDArray[np.floating[Any]]


def fuse(model: onnx.ModelProto, operators: Collection[FusedOperator]) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Fuse what matches.

    Args:
        model: changed in place.
        operators: what to look for; the order is always that of `ORDER`, as later ones are found by earlier ones.

    Returns:
        The fused model, and how many of each kind were made. Nodes that were there before do not count.
    """
    done = {}
    for kind in ORDER:
        if kind not in operators:
            continue
        if kind is FusedOperator.BATCH_NORM:
            done[kind.value] = fold_batch_norm(model)
            continue
        before = _counted(model, kind)
        model = _by_tool(model, kind)
        done[kind.value] = _counted(model, kind) - before
    onnx_files.strip(model)
    _name_domains(model)
    return model, done


def _by_tool(model: onnx.ModelProto, kind: FusedOperator) -> onnx.ModelProto:
    options = FusionOptions("bert")
    for name in vars(options):
        if name.startswith("enable_"):
            setattr(options, name, name == _SWITCHES[kind])
    with float_model.quiet():
        tool = BertOnnxModel(model)
        tool.optimize(options)
        tool.topological_sort(is_deterministic=True)
    fused: onnx.ModelProto = tool.model
    return fused


def _counted(model: onnx.ModelProto, kind: FusedOperator) -> int:
    return sum(node.op_type in _RESULTS[kind] for node in model.graph.node)


def _name_domains(model: onnx.ModelProto) -> None:
    """Name the domain of ONNX Runtime's operators where a node is of it, and only there."""
    used = any(node.domain == CONTRIB for node in model.graph.node)
    kept = [o for o in model.opset_import if o.domain != CONTRIB]
    del model.opset_import[:]
    model.opset_import.extend([*kept, *([helper.make_opsetid(CONTRIB, 1)] if used else [])])


def fold_batch_norm(model: onnx.ModelProto) -> int:
    """Fold every BatchNormalization that directly follows a Conv or Gemm with constant weights, in place.

    A norm stays where the layer's raw answer is read elsewhere too. Weights that several layers read are copied.

    Returns:
        How many were folded.
    """
    graph = model.graph
    known = {w.name: w for w in graph.initializer}
    known |= {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(o.name for o in graph.output)
    makers = {name: node for node in graph.node for name in node.output}
    folded = []
    for norm in graph.node:
        layer = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if layer is not None and _foldable(layer, norm, readers, known):
            _fold(model, layer, norm, known)
            folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    if folded:
        drop_unread(model)
    return len(folded)


def _foldable(
    layer: onnx.NodeProto, norm: onnx.NodeProto, readers: Counter[str], known: dict[str, onnx.TensorProto]
) -> bool:
    if layer.op_type not in _FOLDED or readers[layer.output[0]] != 1 or len(norm.output) != 1:
        return False
    if attribute(norm, "training_mode", 0) or (layer.op_type == "Gemm" and attribute(layer, "alpha", 1.0) != 1.0):
        return False
    if layer.op_type == "Gemm" and (attribute(layer, "transA", 0) or attribute(layer, "beta", 1.0) != 1.0):
        return False
    return all(name in known for name in (*filter(None, layer.input[1:3]), *norm.input[1:5]))


def _fold(
    model: onnx.ModelProto, layer: onnx.NodeProto, norm: onnx.NodeProto, known: dict[str, onnx.TensorProto]
) -> None:
    weight = numpy_helper.to_array(known[layer.input[1]])
    scale, shift, mean, variance = (numpy_helper.to_array(known[name]).astype(np.float64) for name in norm.input[1:5])
    factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    biased = len(layer.input) > 2 and layer.input[2]  # noqa: PLR2004 - input, weight, bias
    bias = numpy_helper.to_array(known[layer.input[2]]).astype(np.float64) if biased else np.zeros_like(mean)
    outputs_first = layer.op_type == "Conv" or attribute(layer, "transB", 0)
    shape = (-1, *[1] * (weight.ndim - 1)) if outputs_first else (1, -1)
    parts = {
        "weight": (weight.astype(np.float64) * factor.reshape(shape)).astype(weight.dtype),
        "bias": ((bias - mean) * factor + shift).astype(weight.dtype),
    }
    names = []
    for kind, values in parts.items():
        name = f"{norm.output[0]}.folded_{kind}"
        known[name] = numpy_helper.from_array(values, name)
        model.graph.initializer.append(known[name])
        names.append(name)
    kept = layer.input[0]
    del layer.input[:]
    layer.input.extend([kept, *names])
    # Whoever reads the norm's result reads the layer's now.
    layer.output[0] = norm.output[0]
