"""Import: turn the given model file into the form that all stages work on.

A `.pt2` file becomes a program in inference mode whose batch may vary, and a float32 ONNX file that answers the same
(the baseline of every later measurement). An ONNX file stays an ONNX file; models for tables become one.
"""

from typing import Final

from lathe_api.data import ModelFormat
from lathe_optimizers.context import PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import onnx_import

_MODEL: Final = "spec.model.uri"
_FORMATS: Final = (ModelFormat.PT2, ModelFormat.ONNX, ModelFormat.SKLEARN, ModelFormat.XGBOOST, ModelFormat.LIGHTGBM)


def run(ctx: PassContext) -> PassOutput:
    """Read `ctx.source` as `ctx.model.format` says.

    Raises:
        InputError: the format is not available, the file cannot be used, or the data does not feed its inputs.
        UnsafeFileError: the file was refused before it was loaded.
        StageError: the ONNX form does not answer as the program does.
    """
    if ctx.source is None:
        raise InputError(_MODEL, "no file", "Give the model's file.")
    match ctx.model.format:
        case ModelFormat.PT2:
            # Models that are given as ONNX are handled without torch.
            from lathe_optimizers.passes import program_import

            return program_import.run(ctx, ctx.source)
        case ModelFormat.ONNX:
            return onnx_import.run(ctx, ctx.source)
        case ModelFormat.SKLEARN | ModelFormat.XGBOOST | ModelFormat.LIGHTGBM:
            # Only these need the libraries of the extra `tabular`.
            from lathe_optimizers.passes import tabular_import

            return tabular_import.run(ctx, ctx.source)
        case other:
            raise InputError(
                "spec.model.format", f"{other} is not available in this version", f"Available: {', '.join(_FORMATS)}."
            )
