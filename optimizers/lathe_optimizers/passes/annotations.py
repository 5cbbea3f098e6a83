"""Which values of a graph become integers so that ONNX Runtime's CPU kernels fuse them.

A rule for each kind of operator says which of its inputs are quantised and whether its output is. What decides:

- Convolutions and linear layers need integers on both operands and, to stay integer, on the output: behind the
  activation function that the kernel absorbs (ReLU, clamp), never between the two.
- A linear layer on sequences is exported as MatMul + Add; it takes integers, and gives floats where floats are read.
- Additions, products and pools have integer kernels, worth it where integers are read next.
- The running sum of a normalised network (a stream that LayerNorm or GroupNorm reads) stays in float: the norms
  do, and rounding a sum at every layer adds up.
- Operators that only move values share the scale of their input.
- Scalar operands and integer tensors (BatchNorm's batch counter) are never quantised.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, SharedQuantizationSpec

from lathe_optimizers.passes.programs import ATEN

KEY: Final = "quantization_annotation"
"""Where torchao reads the annotation of a node."""

CONVOLUTION: Final = frozenset({ATEN.conv1d.default, ATEN.conv2d.default})
WEIGHTED: Final = CONVOLUTION | {ATEN.linear.default}
FLOAT_CONVOLUTION: Final = frozenset(
    {
        ATEN.conv3d.default,
        ATEN.conv_transpose1d.default,
        ATEN.conv_transpose2d.input,
        ATEN.conv_transpose3d.input,
        ATEN.convolution.default,
    }
)
"""Convolutions without an integer kernel, or of a decomposed program."""
PRODUCT: Final = frozenset({ATEN.matmul.default, ATEN.bmm.default})
MATRIX: Final = WEIGHTED | PRODUCT
ABSORBED: Final = frozenset(
    {ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default, ATEN.clamp.default}
)
ARITHMETIC: Final = frozenset({ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.mul.Tensor, ATEN.mul_.Tensor})
UNARY: Final = frozenset(
    {
        ATEN.sigmoid.default,
        ATEN.leaky_relu.default,
        ATEN.leaky_relu_.default,
        ATEN.avg_pool2d.default,
        ATEN.adaptive_avg_pool2d.default,
        ATEN.mean.dim,
    }
)
SAME_SCALE: Final = frozenset(
    {
        ATEN.max_pool2d.default,
        ATEN.flatten.using_ints,
        ATEN.reshape.default,
        ATEN.view.default,
        ATEN.unsqueeze.default,
        ATEN.squeeze.dim,
        ATEN.transpose.int,
        ATEN.permute.default,
    }
)
JOIN: Final = ATEN.cat.default
NORMS: Final = frozenset(
    {ATEN.layer_norm.default, ATEN.group_norm.default, ATEN.rms_norm.default, ATEN.instance_norm.default}
)
_SCALED: Final = ARITHMETIC | {ATEN.div.Tensor}


@dataclass(frozen=True)
class Specs:
    """How each kind of value becomes integers."""

    activation: QuantizationSpec
    answer: QuantizationSpec
    """The network's output: its range is never an average, which would clip the largest answers."""
    weight: QuantizationSpec
    """Weights of convolutions and linear layers, per output channel."""
    constant: QuantizationSpec
    """Constant operands of matrix products."""


def annotate(gm: fx.GraphModule, specs: Specs, excluded: Container[str] = ()) -> None:
    """Write the annotation of every node that becomes integer.

    Args:
        gm: a graph in inference mode whose BatchNorm is folded.
        specs: number types.
        excluded: names of nodes that stay in floating point.
    """
    notes = _Notes(gm, specs, excluded)
    for node in gm.graph.nodes:
        if node.op == "call_function" and is_float(node) and node.name not in excluded:
            note = notes.of(node)
            if note is not None:
                node.meta[KEY] = note


def is_float(value: Any) -> bool:
    """Whether a node's value is a float32 tensor."""
    found = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(found, torch.Tensor) and found.dtype == torch.float32


def is_gemm(node: fx.Node) -> bool:
    """Whether a node is a linear layer on (batch, features), which is exported with its bias as one operator."""
    return node.target is ATEN.linear.default and bool(node.meta["val"].dim() == 2)  # noqa: PLR2004 - as above


class _Notes:
    """The rules, and what they need to know of the whole graph."""

    def __init__(self, gm: fx.GraphModule, specs: Specs, excluded: Container[str]) -> None:
        self._specs = specs
        self._excluded = excluded
        self._streams = _streams(gm)
        self._rules: tuple[tuple[Container[Any], Callable[[fx.Node], QuantizationAnnotation | None]], ...] = (
            (WEIGHTED, self._weighted),
            (PRODUCT, self._product),
            (ABSORBED, self._activation),
            (ARITHMETIC, self._arithmetic),
            (UNARY, self._unary),
            (SAME_SCALE, self._moved),
            ((JOIN,), self._join),
        )
        self._feeding: set[fx.Node] = set()
        """Nodes whose output some integer operator reads."""
        for node in reversed(gm.graph.nodes):
            if any(self._takes_integers(user) for user in node.users):
                self._feeding.add(node)

    def _takes_integers(self, node: fx.Node) -> bool:
        if node.name in self._excluded:
            return False
        if node.target in MATRIX:
            return True
        if node.target in ARITHMETIC and (node in self._streams or not _tensors_only(node)):
            return False
        passes_on = node.target in ARITHMETIC | UNARY | SAME_SCALE | ABSORBED or node.target is JOIN
        return passes_on and node in self._feeding

    def of(self, node: fx.Node) -> QuantizationAnnotation | None:
        """The annotation of one node; its inputs' annotations are written already."""
        for operators, rule in self._rules:
            if node.target in operators:
                return rule(node)
        return None

    def _weighted(self, node: fx.Node) -> QuantizationAnnotation | None:
        data, weight, *_ = node.args
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        gives_floats = node.target is ATEN.linear.default and not is_gemm(node) and node not in self._feeding
        out = None if gives_floats else self._output(node)
        return _note({data: self._specs.activation, weight: self._specs.weight}, out)

    def _product(self, node: fx.Node) -> QuantizationAnnotation:
        operands: Any = node.args[:2]
        given = {a: self._specs.constant if a.op == "get_attr" else self._specs.activation for a in operands}
        gives_floats = _gives_logits(node) or node not in self._feeding
        return _note(given, None if gives_floats else self._output(node))

    def _activation(self, node: fx.Node) -> QuantizationAnnotation | None:
        return _note({}, self._output(node)) if node in self._feeding or self._is_absorbed(node) else None

    def _arithmetic(self, node: fx.Node) -> QuantizationAnnotation | None:
        if node not in self._feeding or node in self._streams or not _tensors_only(node):
            return None
        return self._all_inputs(node, node.args[:2])

    def _unary(self, node: fx.Node) -> QuantizationAnnotation | None:
        return self._all_inputs(node, node.args[:1]) if node in self._feeding else None

    def _join(self, node: fx.Node) -> QuantizationAnnotation | None:
        return self._all_inputs(node, node.args[0]) if node in self._feeding else None

    def _moved(self, node: fx.Node) -> QuantizationAnnotation | None:
        source: Any = node.args[0]
        if node not in self._feeding or not _quantised(source):
            return None
        return _note({source: self._specs.activation}, SharedQuantizationSpec((source, node)))

    def _all_inputs(self, node: fx.Node, inputs: Any) -> QuantizationAnnotation:
        return _note(dict.fromkeys(inputs, self._specs.activation), self._output(node))

    def _output(self, node: fx.Node) -> QuantizationSpec | None:
        users = list(node.users)
        absorbs = len(users) == 1 and users[0].target in ABSORBED and users[0].name not in self._excluded
        if absorbs and node.target not in ABSORBED:
            return None  # the specification is on the activation function
        return self._specs.answer if any(u.op == "output" for u in users) else self._specs.activation

    def _is_absorbed(self, node: fx.Node) -> bool:
        """Whether an activation function is absorbed by a convolution or a two-dimensional linear layer."""
        layer: Any = node.args[0]
        return (
            layer.target in WEIGHTED
            and layer.name not in self._excluded
            and len(layer.users) == 1
            and (layer.target in CONVOLUTION or is_gemm(layer))
        )


def _note(given: dict[Any, Any], out: Any) -> QuantizationAnnotation:
    return QuantizationAnnotation(given, out, _annotated=True)


def _tensors_only(node: fx.Node) -> bool:
    return all(is_float(a) for a in node.args[:2])


def _gives_logits(node: fx.Node) -> bool:
    """Whether the product goes into Softmax, perhaps scaled: its large range is better not rounded."""
    return any(
        user.target is ATEN.softmax.int
        or (user.target in _SCALED and any(not isinstance(a, fx.Node) for a in user.args[:2]))
        for user in node.users
    )


def _quantised(node: Any) -> bool:
    note = node.meta.get(KEY) if isinstance(node, fx.Node) else None
    return note is not None and note.output_qspec is not None


def _streams(gm: fx.GraphModule) -> set[fx.Node]:
    """Additions that belong to a running sum which some norm reads."""
    additions = [n for n in gm.graph.nodes if n.target in (ATEN.add.Tensor, ATEN.add_.Tensor) and is_float(n)]
    group: dict[Any, fx.Node] = {n: n for n in additions}

    def root(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    for node in additions:
        for other in node.args[:2]:
            if other in group:
                group[root(node)] = root(other)
    normed = {root(n) for n in additions if any(u.target in NORMS for u in n.users)}
    return {n for n in additions if root(n) in normed}
