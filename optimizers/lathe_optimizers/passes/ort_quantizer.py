"""Int8 versions of exported programs, annotated the way ONNX Runtime's CPU provider fuses them.

torchao does the mechanics (observers in, quantise and dequantise steps out); where they go is decided in
`annotations`, and which number types in `integer_types`.
"""

import difflib
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torchao.quantization.pt2e.prepare import prepare
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from lathe_api.recipe import CalibrationMethod
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import annotations, observers
from lathe_optimizers.passes.conversion import insert_integers
from lathe_optimizers.passes.folding import fold_batch_norm, remove_dropout
from lathe_optimizers.passes.integer_types import IntegerTypes
from lathe_optimizers.passes.programs import ATEN, module_path, quiet_torch, reexport, set_training, unlift


def _specs(types: IntegerTypes, *, training: bool) -> annotations.Specs:
    def spec(observer: Any, dtype: torch.dtype, bounds: tuple[int, int], scheme: torch.qscheme) -> QuantizationSpec:
        made = observers.fake(observer) if training else observer
        axis = 0 if scheme is torch.per_channel_symmetric else None
        return QuantizationSpec(dtype, made, bounds[0], bounds[1], scheme, ch_axis=axis)

    affine = (getattr(torch, types.activation), types.activation_range, torch.per_tensor_affine)
    return annotations.Specs(
        activation=spec(observers.moving() if training else observers.ActivationRange, *affine),
        answer=spec(observers.AnswerRange, *affine),
        weight=spec(observers.PerChannelWeightRange, torch.int8, types.weight_range, torch.per_channel_symmetric),
        constant=spec(observers.WeightRange, torch.int8, types.weight_range, torch.per_tensor_symmetric),
    )


@dataclass(frozen=True)
class Prepared:
    """A graph with observers, between calibration or training and `convert`."""

    gm: fx.GraphModule
    like: ExportedProgram
    folded: int
    """BatchNorm layers that were folded."""
    excluded: tuple[str, ...]
    """Layers with weights that stay in floating point because the document says so."""


def prepare_program(
    ep: ExportedProgram, types: IntegerTypes, *, training: bool, exclude: Sequence[str] = (), field: str = "exclude"
) -> Prepared:
    """Put observers where integers will be.

    Args:
        ep: a float program.
        types: number types.
        training: round values and pass gradients, for quantisation-aware training; otherwise only observe.
        exclude: module paths (with everything below) or node names that stay in floating point.
        field: where `exclude` was written, for messages.

    Raises:
        InputError: a name in `exclude` matches no layer.
    """
    gm = unlift(ep)
    set_training(gm, on=False)
    remove_dropout(gm)
    folded = fold_batch_norm(gm)
    split_compounds(gm)
    nodes = excluded_nodes(gm, exclude, field)
    others = [n for n in gm.graph.nodes if n.target in annotations.FLOAT_CONVOLUTION]
    apart = _set_apart(gm, [*nodes, *(n for n in others if n not in nodes)])
    annotations.annotate(gm, _specs(types, training=training), {n.name for n in (*nodes, *apart)})
    with quiet_torch():
        # Not prepare_pt2e nor prepare_qat_pt2e: they would fold BatchNorm once more, by pattern and with default eps.
        prepared = prepare(gm, {}, is_qat=training)
    layers = tuple(module_path(n) for n in nodes if n.target in annotations.MATRIX)
    return Prepared(prepared, ep, folded, layers)


def observe_samples(prepared: Prepared, feed: Iterable[Sequence[Tensor]], field: str = "feed") -> int:
    """Let the observers see samples, without rounding them; returns how many there were.

    Memory does not grow with the number of samples: an observer keeps the extremes only.

    Args:
        prepared: the graph.
        feed: inputs in the program's order, batch by batch.
        field: where the samples come from, for messages.

    Raises:
        InputError: there are no samples, or a layer answers NaN or infinity to one.
    """
    observers.observe(prepared.gm, activations=True, weights=True, rounding=False)
    seen = 0
    with torch.no_grad():
        for inputs in feed:
            prepared.gm(*inputs)
            seen += len(inputs[0])
    if not seen:
        raise InputError(
            field, "no samples", "Give samples like those that the model will meet; 100 to 500 are enough."
        )
    bad = observers.unbounded(prepared.gm)
    if bad:
        node = next(n for n in prepared.gm.graph.nodes if n.op == "call_module" and n.target == bad)
        raise InputError(
            field,
            f"samples to which layer {module_path(node.args[0])} answers NaN or infinity",
            "Remove them, or exclude the layer.",
        )
    return seen


def narrow_ranges(prepared: Prepared, feed: Iterable[Sequence[Tensor]], method: CalibrationMethod) -> None:
    """Cut the ranges that were observed, by a second look at the same samples, in constant memory."""
    with observers.counting(prepared.gm) as histograms, torch.no_grad():
        for inputs in feed:
            prepared.gm(*inputs)
    observers.narrow(prepared.gm, {name: histogram.range(method) for name, histogram in histograms.items()})


def start_training(prepared: Prepared) -> None:
    """Round values, with ranges that follow training."""
    observers.observe(prepared.gm, activations=True, weights=True, rounding=True)


def freeze_ranges(prepared: Prepared, example: Sequence[Tensor]) -> None:
    """Fix all ranges: of activations as they are, of weights as the weights are after the last step of training."""
    observers.observe(prepared.gm, activations=False, weights=True, rounding=True)
    with torch.no_grad():
        prepared.gm(*example)
    observers.observe(prepared.gm, activations=False, weights=False, rounding=True)


def convert(prepared: Prepared) -> ExportedProgram:
    """The integer program: int8 weights, and quantise and dequantise steps where the observers were.

    The prepared graph is used up.
    """
    insert_integers(prepared.gm)
    return reexport(prepared.gm, prepared.like)


def excluded_nodes(gm: fx.GraphModule, exclude: Sequence[str], field: str) -> list[fx.Node]:
    """The nodes that `exclude` names.

    Raises:
        InputError: a name matches no node that could become integer.
    """
    nodes = [n for n in gm.graph.nodes if n.op == "call_function" and annotations.is_float(n)]
    found: list[fx.Node] = []
    for name in exclude:
        matching = [n for n in nodes if _named(n, name)]
        if not any(n.target in annotations.MATRIX | annotations.ARITHMETIC | annotations.UNARY for n in matching):
            layers = sorted({module_path(n) for n in nodes if n.target in annotations.MATRIX})
            near = difflib.get_close_matches(name, layers, n=5, cutoff=0.3) or layers[:5]
            raise InputError(
                field,
                f"`{name}`, which names no layer that could become integer",
                f"Write the module path or node name of a layer, such as {', '.join(near)}."
                if near
                else "Remove the stage: the network has no such layer.",
            )
        found += [n for n in matching if n not in found]
    return found


def _set_apart(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Follow each layer that stays float by a LeakyReLU of slope 1, which changes nothing; returns these nodes.

    ONNX Runtime rounds the weights of any convolution or Gemm that it finds between a dequantise and a quantise step,
    even of float weights; the LeakyReLU keeps the quantise step of the next layer out of its sight.
    """
    made = []
    for node in nodes:
        if node.target in annotations.CONVOLUTION | annotations.FLOAT_CONVOLUTION or annotations.is_gemm(node):
            with gm.graph.inserting_after(node):
                apart = gm.graph.call_function(ATEN.leaky_relu.default, (node, 1.0))
            apart.meta = dict(node.meta)
            for user in [u for u in node.users if u is not apart]:
                user.replace_input_with(node, apart)
            made.append(apart)
    gm.recompile()
    return made


def _named(node: fx.Node, name: str) -> bool:
    path = module_path(node)
    return name in (path, node.name) or path.startswith(f"{name}.")


def split_compounds(gm: fx.GraphModule) -> None:
    """Split operators without an integer kernel into parts that have one, in place.

    SiLU becomes x * sigmoid(x); attention without a mask becomes product, scale, softmax, product.
    """
    for node in list(gm.graph.nodes):
        if node.target in (ATEN.silu.default, ATEN.silu_.default):
            _replace(gm, node, _split_silu)
        elif _plain_attention(node):
            _replace(gm, node, _split_attention)
    gm.graph.eliminate_dead_code()
    gm.recompile()


Emit = Callable[..., fx.Node]


def _replace(gm: fx.GraphModule, node: fx.Node, build: Callable[[fx.Node, Emit], fx.Node]) -> None:
    def emit(target: Any, *args: Any) -> fx.Node:
        made = gm.graph.call_function(target, args)
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
        made.meta = {**node.meta, "val": target(*values)}
        return made

    with gm.graph.inserting_before(node), operator.attrgetter("fake_mode")(node.meta["val"]):
        last = build(node, emit)
    node.replace_all_uses_with(last)
    gm.graph.erase_node(node)


def _split_silu(node: fx.Node, emit: Emit) -> fx.Node:
    return emit(ATEN.mul.Tensor, node.args[0], emit(ATEN.sigmoid.default, node.args[0]))


def _plain_attention(node: fx.Node) -> bool:
    return (
        node.target is ATEN.scaled_dot_product_attention.default
        and len(node.args) == 3  # noqa: PLR2004 - query, key, value; no mask, no dropout
        and not set(node.kwargs) - {"scale"}
    )


def _split_attention(node: fx.Node, emit: Emit) -> fx.Node:
    query, key, value = node.args
    scale: Any = node.kwargs.get("scale")
    assert isinstance(query, fx.Node)  # noqa: S101 - narrows the annotation of an argument
    if scale is None:
        scale = int(query.meta["val"].shape[-1]) ** -0.5
    logits = emit(ATEN.matmul.default, query, emit(ATEN.transpose.int, key, -2, -1))
    weights = emit(ATEN.softmax.int, emit(ATEN.mul.Tensor, logits, scale), -1)
    return emit(ATEN.matmul.default, weights, value)
