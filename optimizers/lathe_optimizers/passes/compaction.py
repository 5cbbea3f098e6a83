"""Make ONNX files of small models smaller: what runtimes derive themselves need not be stored.

A quantised graph has a quantise and a dequantise step at every edge; in a model of some 50 kB their names, derived
shapes and default attributes are a fifth of the file.
"""

import hashlib
from typing import Any, Final

import onnx
from onnx import defs, helper

from lathe_optimizers.passes import onnx_parts

_ONES: Final = {"Conv": ("strides", "dilations"), "MaxPool": ("strides", "dilations"), "AveragePool": ("strides",)}
"""Attributes that are all ones when absent, which the operators' schemas say in words only."""
_STEPS: Final = {"QuantizeLinear": "q", "DequantizeLinear": "d"}


def compact(model: onnx.ModelProto) -> None:
    """Remove, in place, what changes no answer: derived shapes, default attributes, node names, long step names.

    Weights that are stored twice are stored once: exporters and quantisers copy what several layers read.

    Inputs, outputs and weights keep their names, and so do the results of all operators but quantise and dequantise
    steps, so that the layers of a network can be told apart. A model that is compact already stays as it is.
    """
    versions = {o.domain: o.version for o in model.opset_import}
    graph = model.graph
    if not any(w.data_type == onnx.TensorProto.FLOAT16 for w in graph.initializer):
        # ONNX Runtime 1.32 crashes on float16 additions whose shape it was not told, in its layout optimiser.
        del graph.value_info[:]
    _drop_unused_domains(model)
    _merge_equal(graph)
    _shorten(graph)
    scalars = {w.name for w in graph.initializer if not w.dims}
    part: Any
    for part in onnx_parts.parts(model):
        if isinstance(part, onnx.NodeProto):
            if part.output and part.name in (part.output[0], f"node_{part.output[0]}"):
                part.ClearField("name")
            _drop_defaults(part, versions, scalars)
    for node in graph.node:
        if node.op_type in _STEPS:
            node.ClearField("name")


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Forget the operator sets that no node is of; tools declare all that they know."""
    used = {""} | {f.domain for f in model.functions}
    used |= {p.domain for p in onnx_parts.parts(model) if isinstance(p, onnx.NodeProto)}
    kept = [o for o in model.opset_import if o.domain in used or (o.domain == "ai.onnx" and "" in used)]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _merge_equal(graph: onnx.GraphProto) -> None:
    """Let all nodes read the first of several weights of the same content; its name is the one that stays."""
    if any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        return  # branches and loop bodies read outer values by name
    fixed = {v.name for v in (*graph.input, *graph.output)}
    first: dict[bytes, str] = {}
    merged: dict[str, str] = {}
    for weight in graph.initializer:
        if len(weight.dims) > 1 and weight.name not in fixed:
            content = onnx.TensorProto()
            content.CopyFrom(weight)
            content.ClearField("name")
            digest = hashlib.sha256(content.SerializeToString(deterministic=True)).digest()
            kept = first.setdefault(digest, weight.name)
            if kept != weight.name:
                merged[weight.name] = kept
    if not merged:
        return
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = merged.get(name, name)
    stay = [w for w in graph.initializer if w.name not in merged]
    del graph.initializer[:]
    graph.initializer.extend(stay)


def _shorten(graph: onnx.GraphProto) -> None:
    """Give the results of quantise and dequantise steps names of two or three letters."""
    kept = {v.name for v in (*graph.input, *graph.output)} | {w.name for w in graph.initializer}
    kept |= {o for n in graph.node if n.op_type not in _STEPS for o in n.output}
    if any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        return  # branches and loop bodies read outer values by name
    short: dict[str, str] = {}
    counts = dict.fromkeys(_STEPS, 0)
    for node in graph.node:
        if node.op_type in _STEPS and node.output[0] not in kept:
            name = ""
            while not name or name in kept:
                name = f"{_STEPS[node.op_type]}{counts[node.op_type]}"
                counts[node.op_type] += 1
            short[node.output[0]] = name
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = short.get(name, name)


def _drop_defaults(node: onnx.NodeProto, versions: dict[str, int], scalars: set[str]) -> None:
    kept = [a for a in node.attribute if not _is_default(node, a, versions, scalars)]
    if len(kept) < len(node.attribute):
        del node.attribute[:]
        node.attribute.extend(kept)


def _is_default(
    node: onnx.NodeProto, attribute: onnx.AttributeProto, versions: dict[str, int], scalars: set[str]
) -> bool:
    if attribute.ref_attr_name:
        return False
    if attribute.name in _ONES.get(node.op_type, ()) and node.domain in ("", "ai.onnx"):
        return all(i == 1 for i in attribute.ints)
    if node.op_type in _STEPS and attribute.name == "axis" and node.input[1] in scalars:
        return True  # one scale for all values has no axis
    try:
        schema = defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
    except defs.SchemaError:
        return False  # an operator of a runtime, whose defaults are not known here
    declared: Any = schema.attributes.get(attribute.name)
    if declared is None or not declared.default_value.name:
        return False
    return bool(helper.get_attribute_value(declared.default_value) == helper.get_attribute_value(attribute))
