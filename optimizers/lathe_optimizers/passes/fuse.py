"""Fuse: operators become fewer (`fuse_operators`), or layers that are alike share weights (`fuse_layers`)."""

from lathe_api.manifest import Role
from lathe_api.recipe import Fuse, FuseMethod
from lathe_optimizers.context import PassContext, PassOutput


def run(ctx: PassContext) -> PassOutput:
    """Fuse what the stage before left.

    Raises:
        InputError: a declared fusion matches nothing, no layers can share weights, or training needs a program and
            there is none.
        StageError: the result of merged operators answers otherwise than before.
    """
    if ctx.stage is None or not isinstance(ctx.stage.config, Fuse) or ctx.input is None:
        raise TypeError("this pass does Fuse stages")
    config, where = ctx.stage.config, f"stage {ctx.stage.name}: fuse"
    if config.method is FuseMethod.OPERATORS:
        from lathe_optimizers.passes import fuse_operators

        return fuse_operators.run(ctx, ctx.input, config, where)
    if Role.PROGRAM not in ctx.input.files and not ctx.stage.trains:
        from lathe_optimizers.passes import fuse_file

        return fuse_file.run(ctx, ctx.input, config, where)
    # What follows needs torch, which models that were given as ONNX are handled without.
    from lathe_optimizers.passes import fuse_layers

    return fuse_layers.run(ctx, ctx.input, config, where)
