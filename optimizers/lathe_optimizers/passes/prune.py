"""The Prune stage: by channels (`prune_channels`), or single weights of a program or of an ONNX file."""

from lathe_api.manifest import Role
from lathe_api.recipe import Prune, PruneMethod
from lathe_optimizers.context import PassContext, PassOutput


def run(ctx: PassContext) -> PassOutput:
    """Prune what the stage before left.

    Raises:
        InputError: the target is not available or cannot be reached, or the method needs a program and there is none.
        CutError: the cut network answers wrongly.
    """
    if ctx.stage is None or not isinstance(ctx.stage.config, Prune) or ctx.input is None:
        raise TypeError("this pass does Prune stages")
    config, field = ctx.stage.config, f"spec.recipe.stages.{ctx.stage.name}"
    trains = config.finetune is not None and config.finetune.epochs > 0
    if config.method is not PruneMethod.STRUCTURED_MAGNITUDE and Role.PROGRAM not in ctx.input.files and not trains:
        from lathe_optimizers.passes import prune_file

        return prune_file.run(ctx, ctx.input, config)
    # What follows needs torch, which models that were given as ONNX are handled without.
    if config.method is PruneMethod.STRUCTURED_MAGNITUDE:
        from lathe_optimizers.passes import prune_channels

        return prune_channels.run(ctx, config, field)
    from lathe_optimizers.passes import prune_weights

    return prune_weights.run(ctx, config, field)
