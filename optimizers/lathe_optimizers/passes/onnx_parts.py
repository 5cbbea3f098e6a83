"""The messages that an ONNX model is made of."""

from collections.abc import Iterator
from typing import Any

import onnx


def strip(model: onnx.ModelProto) -> None:
    """Remove, in place, everything that no runtime reads: metadata, notes and the exporter's source paths."""
    model.doc_string = ""
    model.producer_name, model.producer_version = "lathe", ""
    del model.training_info[:]
    for part in parts(model):
        if "metadata_props" in part.DESCRIPTOR.fields_by_name:
            del part.metadata_props[:]
        if "doc_string" in part.DESCRIPTOR.fields_by_name:
            part.ClearField("doc_string")


def parts(model: onnx.ModelProto) -> Iterator[Any]:
    """The model and every message within it that can carry notes."""
    yield model
    for function in model.functions:
        yield function
        yield from function.value_info
        for node in function.node:
            yield from _node_parts(node)
    yield from _graph_parts(model.graph)


def _graph_parts(graph: onnx.GraphProto) -> Iterator[Any]:
    yield graph
    for group in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from group
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_parts(node)


def _node_parts(node: onnx.NodeProto) -> Iterator[Any]:
    yield node
    for attribute in node.attribute:
        yield attribute
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_parts(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_parts(graph)
