"""Fuse by SimilarLayers, of a model that was given as ONNX: constants are shared, without training."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from lathe_api.manifest import Role
from lathe_api.recipe import Fuse, Similarity
from lathe_optimizers import quality
from lathe_optimizers.context import Artifact, PassContext, PassOutput, Progress
from lathe_optimizers.datasets.sources import targets
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import float_model, measure, onnx_files, sharing, similarity, weight_bits

NO_TRAINING: Final = "Nothing of what sharing cost was recovered: that needs a `.pt2` model."


@dataclass(frozen=True)
class _Layer:
    name: str
    weight: str
    """Initialiser."""


def run(ctx: PassContext, given: Artifact, config: Fuse, where: str) -> PassOutput:
    """Let matrix operators of equal shape read one initialiser.

    Units keep their order: which other weights would have to follow is known of programs only.

    Raises:
        InputError: the measure needs a program, no two layers have equal shapes, or no pair stays within `maxDrop`.
    """
    if config.similarity not in (None, Similarity.COSINE):
        raise InputError(
            f"{where}.similarity",
            f"{config.similarity}, which looks at values inside of a program",
            "Give the model as `.pt2`, or write Cosine.",
        )
    model = onnx.load(given.files[Role.ONNX])
    weights = weight_bits.constants(model)
    found = [
        (node, _Layer(node.name or node.output[0], node.input[1]))
        for node in model.graph.node
        if node.op_type in float_model.MATRIX and weight_bits.weight_of(node, weights) is not None
    ]
    layers = [layer for _, layer in found]
    # A Gemm may read its weights transposed.
    shapes = [(n.op_type, weights[n.input[1]].shape, weight_bits.attribute(n, "transB", 0)) for n, _ in found]
    pairs = [
        sharing.Pair(i, j, similarity.cosine(weights[layers[i].weight], weights[layers[j].weight]))
        for i, j in similarity.equal_shapes(shapes)
        if layers[i].weight != layers[j].weight
    ]
    names = [layer.name for layer in layers]
    if not pairs:
        raise sharing.no_pairs(where, names)
    work = _Work(ctx, model, layers)
    network = sharing.Network(work.merged, work.together, work.quality, ctx.objective.metric)
    start = tuple(range(len(layers)))
    limit = None if config.max_drop is None else float(config.max_drop)
    choice = sharing.choose(
        network, start, pairs, config.top_k, limit, lambda done: ctx.report(Progress(0.9 * done, "sharing"))
    )
    before = work.quality(start)
    if not choice.shared:
        raise sharing.none_within(where, config, names, choice, before)
    random = sharing.at_random(network, start, pairs, len(choice.shared), ctx.seed)
    path = work.written(choice.state)
    return PassOutput(
        onnx=path,
        exported=given.manifest.exported,
        details=sharing.described(names, pairs, choice, random, before)
        | {
            "similarity": Similarity.COSINE.value,
            "parametersBefore": onnx_files.weight_counts(given.files[Role.ONNX])[0],
            "parametersAfter": onnx_files.weight_counts(path)[0],
        },
        warnings=(*sharing.warnings(config, choice, random, network, before), NO_TRAINING),
    )


class _Work:
    """What is done to one file. A state says for each layer whose weight it reads."""

    def __init__(self, ctx: PassContext, model: onnx.ModelProto, layers: list[_Layer]) -> None:
        self.ctx, self.model, self.layers = ctx, model, layers
        self.readers = Counter(name for node in model.graph.node for name in node.input)

    def merged(self, state: tuple[int, ...], kept: int, replaced: int) -> tuple[int, ...]:
        """The layer `replaced`, and those that share with it, read the weight of `kept`."""
        return tuple(state[kept] if source == state[replaced] else source for source in state)

    def together(self, state: tuple[int, ...], first: int, second: int) -> bool:
        """Whether two layers read the same weight."""
        return state[first] == state[second]

    def quality(self, state: tuple[int, ...]) -> float:
        """The objective's metric on held-out training samples, or on the evaluation set where there are none."""
        ctx = self.ctx
        data = ctx.data.validation if ctx.data.validation is not None else ctx.data.evaluation
        answers = measure.predict(self.written(state), data, threads=ctx.threads)
        return quality.answered(ctx.objective.metric, np.asarray(answers), targets(data)).value

    def written(self, state: tuple[int, ...]) -> Path:
        """The file of a state."""
        model, path = onnx.ModelProto(), self.ctx.workdir / "shared.onnx"
        model.CopyFrom(self.model)
        renamed = {self.layers[i].weight: self.layers[source].weight for i, source in enumerate(state) if source != i}
        numbers = {layer.name: i for i, layer in enumerate(self.layers)}
        for node in model.graph.node:
            if (node.name or node.output[0]) in numbers and node.op_type in float_model.MATRIX:
                node.input[1] = renamed.get(node.input[1], node.input[1])
        weight_bits.drop_unread(model)
        onnx_files.write(model, path)
        return path
