"""Fuse by SimilarLayers, of a program: layers that are alike read one set of weights, so that the file shrinks.

Sharing is done in the graph: both layers read the same attribute. Everything after it keeps that by itself: training
adds up the gradients, a re-export stores the weight once, and so does ONNX.
"""

import copy
from typing import Final

import numpy as np
from pydantic import JsonValue
from torch import fx
from torch.export import ExportedProgram

from lathe_api.recipe import Fuse, SharedWeights, Similarity
from lathe_optimizers import quality
from lathe_optimizers.context import Artifact, Dataset, PassContext, PassOutput, Progress, batches
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import layer_pairs, parity, prune_channels, sharing, similarity, unit_order
from lathe_optimizers.passes.batch_norm import recompute_statistics
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import (
    ATEN,
    count_parameters,
    example_inputs,
    load_program,
    quiet_torch,
    reexport,
    require_program,
    save_program,
    unlift,
)
from lathe_optimizers.passes.training_mode import set_training

_PROOF_SAMPLES: Final = 16
_BATCH: Final = 256
NORMS: Final = (
    "Shared weights have a BatchNorm of their own behind each layer: a Quantize stage folds it into them, and stores "
    "them once per layer again."
)


def run(ctx: PassContext, given: Artifact, config: Fuse, where: str) -> PassOutput:
    """Let similar layers of a program share weights, and train on if the document says so.

    Raises:
        InputError: there is no program, no two layers have equal shapes, no pair stays within `maxDrop`, or training
            is not possible.
    """
    program = load_program(require_program(given, where))
    work = _Work(ctx, program)
    gm = unlift(program)
    set_training(gm, on=False)
    measure = config.similarity or Similarity.COSINE
    ctx.report(Progress(0.0, "comparing layers"))
    data = ctx.data.calibration or ctx.data.train or ctx.data.evaluation
    if not layer_pairs.candidates(gm):
        raise sharing.no_pairs(where, layer_pairs.names(gm))
    pairs = layer_pairs.compared(gm, measure, data, work.batch)
    if not pairs:
        raise InputError(
            f"{where}.similarity",
            f"{measure} for layers outside of blocks whose result has the shape of their input",
            f"Write {Similarity.COSINE} or {Similarity.CKA}.",
        )
    network = sharing.Network(work.merged, work.together, work.quality, ctx.objective.metric)
    share = 0.5 if config.finetune is not None and config.finetune.epochs else 0.9
    choice = sharing.choose(
        network,
        gm,
        pairs,
        config.top_k,
        None if config.max_drop is None else float(config.max_drop),
        lambda done: ctx.report(Progress(done * share, "sharing")),
    )
    before = work.quality(gm)
    names = layer_pairs.names(gm)
    if not choice.shared:
        raise sharing.none_within(where, config, names, choice, before)
    random = sharing.at_random(network, gm, pairs, len(choice.shared), ctx.seed)
    details = sharing.described(names, pairs, choice, random, before)
    warnings = sharing.warnings(config, choice, random, network, before)
    return work.finished(choice.state, config, details | {"similarity": measure.value}, warnings)


class _Work:
    """What is done to one program."""

    def __init__(self, ctx: PassContext, program: ExportedProgram) -> None:
        self.ctx, self.program = ctx, program
        varies = prune_channels.batch_varies(program)
        self.batch = _BATCH if varies else len(example_inputs(program)[0])
        self.probe = parity.probe(ctx.data.evaluation, _PROOF_SAMPLES)

    def merged(self, gm: fx.GraphModule, kept: int, replaced: int) -> fx.GraphModule:
        """A copy of the network in which layer `replaced`, and those that share with it, read the weights of `kept`.

        Units of the replaced layer are put into the order of the kept one's first where they are free, which changes
        no answer. Running statistics of BatchNorm are computed anew.
        """
        changed = self._aligned(gm, kept, replaced)
        nodes = layer_pairs.layers(changed)
        old, new = layer_pairs.weight_path(nodes[replaced]), nodes[kept].args[1]
        for node in nodes:
            if layer_pairs.weight_path(node) == old:
                with changed.graph.inserting_before(node):
                    read = changed.graph.get_attr(str(new.target))  # type: ignore[union-attr]  # an attribute
                read.meta = dict(new.meta)  # type: ignore[union-attr]
                node.args = (node.args[0], read, *node.args[2:])
        changed.graph.eliminate_dead_code()
        changed.delete_all_unused_submodules()
        _drop_unread(changed, old)
        changed.recompile()
        if self.ctx.data.train is not None:
            recompute_statistics(changed, self.program, self.ctx.data.train)
        return changed

    def _aligned(self, gm: fx.GraphModule, kept: int, replaced: int) -> fx.GraphModule:
        changed = _copied(gm)
        nodes = layer_pairs.layers(changed)
        target, own = (layer_pairs.weight_path(nodes[i]) for i in (kept, replaced))
        graph = ChannelGraph(changed)
        units = unit_order.free_units(graph, own, target)
        if units is None:
            return changed
        a, b = (tensor_at(changed, path).detach().numpy() for path in (target, own))
        order = similarity.alignment(a, b)
        if np.array_equal(order, np.arange(len(order))):
            return changed
        if unit_order.reorder(graph, units, order) and unit_order.same_function(gm, changed, self.probe, self.batch):
            return changed
        return _copied(gm)

    def together(self, gm: fx.GraphModule, first: int, second: int) -> bool:
        """Whether two layers read the same weights."""
        nodes = layer_pairs.layers(gm)
        return layer_pairs.weight_path(nodes[first]) == layer_pairs.weight_path(nodes[second])

    def quality(self, gm: fx.GraphModule) -> float:
        """The objective's metric on held-out training samples, or on the evaluation set where there are none."""
        ctx = self.ctx
        data: Dataset = ctx.data.validation if ctx.data.validation is not None else ctx.data.evaluation
        found, truth = [], []
        for inputs, target in batches(data, _BATCH):
            found.append(parity.program_answers(gm, inputs, self.batch)[0])
            truth.append(target)
        return quality.answered(ctx.objective.metric, np.concatenate(found), np.concatenate(truth)).value

    def finished(
        self, gm: fx.GraphModule, config: Fuse, details: dict[str, JsonValue], warnings: tuple[str, ...]
    ) -> PassOutput:
        """Train what shares weights, and write it."""
        ctx, readers = self.ctx, shared_weights(gm)
        frozen = tuple(readers) if config.shared is SharedWeights.FROZEN else ()
        if config.finetune is not None and config.finetune.epochs:
            for weight in frozen:
                tensor_at(gm, weight).requires_grad_(requires_grad=False)
            prune_channels.tune(gm, self.program, ctx, config.finetune)
            for weight in frozen:
                tensor_at(gm, weight).requires_grad_(requires_grad=True)
            details |= {"qualityTuned": self.quality(gm)}
        elif ctx.data.train is None:
            warnings = (*warnings, "there is no data.train, so that nothing of what sharing cost was recovered")
        if any(followed_by_norm(gm, path) for path in readers):
            warnings = (*warnings, NORMS)
        smaller = reexport(gm, self.program)
        path = ctx.workdir / "program.pt2"
        save_program(smaller, path)
        details |= {
            "parametersBefore": count_parameters(self.program),
            "parametersAfter": count_parameters(smaller),
            "readers": {name: list(layers) for name, layers in readers.items()},
            "frozen": list(frozen),
        }
        return PassOutput(program=path, details=details, warnings=warnings, frozen=frozen)


def shared_weights(gm: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Paths of the weights that several layers read -> the layers."""
    found: dict[str, list[str]] = {}
    for node, name in zip(layer_pairs.layers(gm), layer_pairs.names(gm), strict=True):
        found.setdefault(layer_pairs.weight_path(node), []).append(name)
    return {path: tuple(names) for path, names in found.items() if len(names) > 1}


def followed_by_norm(gm: fx.GraphModule, path: str) -> bool:
    """Whether a BatchNorm reads what a layer with this weight gives."""
    readers = [n for n in layer_pairs.layers(gm) if layer_pairs.weight_path(n) == path]
    return any(user.target == ATEN.batch_norm.default for n in readers for user in n.users)


def _copied(gm: fx.GraphModule) -> fx.GraphModule:
    with quiet_torch():
        return copy.deepcopy(gm)


def _drop_unread(gm: fx.GraphModule, path: str) -> None:
    if any(n.op == "get_attr" and n.target == path for n in gm.graph.nodes):
        return
    owner, _, leaf = path.rpartition(".")
    try:
        delattr(gm.get_submodule(owner), leaf)
    except AttributeError:  # gone with its module
        return
