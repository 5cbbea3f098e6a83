"""Prune of single weights of a program: at once, or little by little while it is trained."""

from typing import Final

from pydantic import JsonValue
from torch import fx
from torch.export import ExportedProgram

from lathe_api.recipe import Prune, PruneMethod
from lathe_optimizers.context import PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import annotations, sparsity
from lathe_optimizers.passes.batch_norm import recompute_statistics
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.masking import FEWEST, Sparsify
from lathe_optimizers.passes.programs import load_program, reexport, require_program, save_program, unlift
from lathe_optimizers.passes.prune_channels import quality_after, tune

_WEIGHTED: Final = annotations.WEIGHTED | annotations.FLOAT_CONVOLUTION


def run(ctx: PassContext, config: Prune, where: str) -> PassOutput:
    """Set weights of the program's layers to zero, and train what is left if the document says so.

    Raises:
        InputError: there is no program, or it has no layers with weights.
    """
    program = load_program(require_program(ctx.input, where))
    gm = unlift(program)
    names = weights_of(gm)
    if not names:
        raise InputError("spec.model.uri", "a network without layers that have weights", "Remove the Prune stage.")
    quality = quality_after("before", gm, program, ctx)
    trains = config.finetune is not None and config.finetune.epochs > 0
    pruning = Sparsify(gm, names, config, ctx.seed, gradual=trains and config.method is not PruneMethod.N_M)
    warnings = [sparsity.NO_SPEED]
    if config.finetune is not None and trains:
        tune(gm, program, ctx, config.finetune, pruning)
        quality |= quality_after("tuned", gm, program, ctx)
    else:
        ctx.report(Progress(0.0, "choosing weights"))
        pruning.prune_to(sparsity.target(config))
        quality |= quality_after("pruned", gm, program, ctx)
        quality |= _with_new_statistics(ctx, gm, program, warnings)
    path = ctx.workdir / "program.pt2"
    save_program(reexport(gm, program), path)
    stay = {name: (tensor_at(gm, name) != 0).numpy() for name in names}
    details: dict[str, JsonValue] = {**sparsity.described(stay), "quality": dict(quality)}
    return PassOutput(program=path, details=details, warnings=tuple(warnings))


def _with_new_statistics(
    ctx: PassContext, gm: fx.GraphModule, program: ExportedProgram, warnings: list[str]
) -> dict[str, float]:
    if ctx.data.train is None:
        warnings.append("there is no data.train, so that nothing of what pruning cost was recovered")
        return {}
    ctx.report(Progress(0.5, "recomputing BatchNorm statistics"))
    layers = recompute_statistics(gm, program, ctx.data.train)
    return quality_after("statistics", gm, program, ctx) if layers else {}


def weights_of(gm: fx.GraphModule) -> tuple[str, ...]:
    """Paths of the weights of convolutions and linear layers, in graph order."""
    found = [
        str(n.args[1].target)
        for n in gm.graph.nodes
        if n.target in _WEIGHTED and isinstance(n.args[1], fx.Node) and n.args[1].op == "get_attr"
    ]
    return tuple(dict.fromkeys(name for name in found if tensor_at(gm, name).dim() >= FEWEST))
