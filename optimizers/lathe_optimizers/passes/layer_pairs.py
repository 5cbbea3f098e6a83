"""The layers of a program that could share weights, and how much alike they are."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from lathe_api.recipe import Similarity
from lathe_optimizers.context import Dataset
from lathe_optimizers.passes import annotations, parity, similarity, unit_order
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import ATEN, module_path
from lathe_optimizers.passes.sharing import Pair
from lathe_optimizers.passes.views import tapped

SAMPLES: Final = 512
"""How many samples activations are compared on."""
_LINEAR: Final = ATEN.linear.default
_WEIGHTED: Final = annotations.WEIGHTED | annotations.FLOAT_CONVOLUTION


Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """The smallest module around a layer whose result has the shape of what enters it."""

    entry: fx.Node
    exit: fx.Node


def layers(gm: fx.GraphModule) -> list[fx.Node]:
    """Convolutions and linear layers with weights of their own, in graph order."""
    return [
        n
        for n in gm.graph.nodes
        if n.target in _WEIGHTED and isinstance(n.args[1], fx.Node) and n.args[1].op == "get_attr"
    ]


def weight_path(layer: fx.Node) -> str:
    """Path of the weight that a layer reads."""
    return str(layer.args[1].target)  # type: ignore[union-attr]  # `layers` looked


def candidates(gm: fx.GraphModule) -> list[tuple[int, int]]:
    """Numbers of layers of the same kind and shape that do not share weights yet."""
    found = layers(gm)
    shapes = []
    for layer in found:
        weight = tensor_at(gm, weight_path(layer))
        # A product of matrices and one of batches of them keep their weights in different forms in ONNX.
        rank = layer.meta["val"].dim() if layer.target == _LINEAR else 0
        shapes.append((str(layer.target), tuple(weight.shape), weight.dtype, rank))
    pairs = similarity.equal_shapes(shapes)
    return [(i, j) for i, j in pairs if weight_path(found[i]) != weight_path(found[j])]


def compared(gm: fx.GraphModule, measure: Similarity, data: Dataset, batch: int) -> list[Pair]:
    """All candidate pairs with their likeness; without those that the measure does not apply to.

    Args:
        gm: in inference mode.
        measure: how.
        data: for Cka and BlockInfluence: samples that activations are taken from.
        batch: samples at once.
    """
    numbers = candidates(gm)
    nodes = layers(gm)
    wanted = sorted({i for pair in numbers for i in pair})
    match measure:
        case Similarity.COSINE:
            graph = ChannelGraph(gm)
            return [Pair(i, j, aligned_cosine(graph, nodes[i], nodes[j])) for i, j in numbers]
        case Similarity.CKA:
            values = _values(gm, [nodes[i] for i in wanted], data, batch)
            pooled = {i: _pooled(nodes[i], value) for i, value in zip(wanted, values, strict=True)}
            return [Pair(i, j, similarity.cka(pooled[i], pooled[j])) for i, j in numbers]
        case Similarity.BLOCK_INFLUENCE:
            blocks = {i: block for i in wanted if (block := block_of(gm, nodes[i])) is not None}
            ends = [end for block in blocks.values() for end in (block.entry, block.exit)]
            values = _values(gm, ends, data, batch)
            changes = {
                i: similarity.influence(_vectors(values[2 * n]), _vectors(values[2 * n + 1]))
                for n, i in enumerate(blocks)
            }
            # What changes its input least is missed least.
            return [Pair(i, j, 1 - min(changes[i], changes[j])) for i, j in numbers if i in changes and j in changes]


def aligned_cosine(graph: ChannelGraph, first: fx.Node, second: fx.Node) -> float:
    """Cosine of two layers' weights, in the best order of the units of one of them where that is free.

    The best of many orders looks alike by chance: what an order finds in a weight of the same numbers without any
    structure counts as 0, as in Hubert and Arabie 1985 (doi:10.1007/BF01908075).
    """
    paths = weight_path(first), weight_path(second)
    a, b = (tensor_at(graph.gm, path).detach().numpy() for path in paths)
    free = unit_order.free_units(graph, paths[1], paths[0]), unit_order.free_units(graph, paths[0], paths[1])
    if all(units is None for units in free):
        return similarity.cosine(a, b)
    noise = np.random.default_rng(0).permutation(b.ravel()).reshape(b.shape)
    found, chance = (similarity.cosine(a, other[similarity.alignment(a, other)]) for other in (b, noise))
    return (found - chance) / (1 - chance)


def block_of(gm: fx.GraphModule, layer: fx.Node) -> Block | None:
    """The smallest module around a layer that has one result, of the shape of a value that enters it."""
    paths = [path for path, _ in (layer.meta.get("nn_module_stack") or {}).values() if path]
    for path in reversed(paths):
        inside = {n for n in gm.graph.nodes if path in _modules(n)}
        exits = [n for n in inside if any(user not in inside for user in n.users)]
        entries = [
            source
            for n in gm.graph.nodes
            if n in inside
            for source in n.all_input_nodes
            if source not in inside and source.op != "get_attr"
        ]
        if len(exits) == 1:
            fitting = [e for e in entries if _shape(e) == _shape(exits[0])]
            if fitting:
                return Block(fitting[0], exits[0])
    return None


def _modules(node: fx.Node) -> list[str]:
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _shape(node: fx.Node) -> tuple[str, ...] | None:
    value = node.meta.get("val")
    return tuple(str(size) for size in value.shape) if isinstance(value, Tensor) else None


def _values(gm: fx.GraphModule, nodes: list[fx.Node], data: Dataset, batch: int) -> list[Floats]:
    """What nodes compute on some samples; positions of images and sequences in few, as there may be many."""
    probe = parity.probe(data, SAMPLES)
    view = tapped(gm, nodes)
    answers = parity.program_answers(view, probe, batch)
    return [np.asarray(a, np.float32) for a in answers[len(answers) - len(nodes) :]]


def _pooled(layer: fx.Node, value: Floats) -> Floats:
    """(samples, features): the mean over the positions of images and sequences."""
    channels_last = value if layer.target == _LINEAR else np.moveaxis(value, 1, -1)
    pooled: Floats = channels_last.reshape(len(value), -1, channels_last.shape[-1]).mean(1)
    return pooled


def _vectors(
    value: Floats,
) -> Floats:
    """(vectors, features): every position of a sequence, and of an image, for itself."""
    images = 4
    channels_last = np.moveaxis(value, 1, -1) if value.ndim == images else value
    return channels_last.reshape(-1, channels_last.shape[-1])


def names(gm: fx.GraphModule) -> list[str]:
    """How people know the layers."""
    return [module_path(n) for n in layers(gm)]
