"""Whether the data of a document feeds the inputs of its network."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from lathe_optimizers.context import Array, Dataset, PassContext
from lathe_optimizers.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_MODEL: Final = "spec.model.uri"


def input_names(program: "ExportedProgram") -> tuple[str, ...]:
    """Names of the network's inputs: the arguments of its `forward`.

    Raises:
        InputError: an input is no tensor.
    """
    # Models that were given as ONNX are handled without torch.
    from torch.export.graph_signature import InputKind, TensorArgument

    names = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(spec.arg, TensorArgument):
                raise InputError(
                    _MODEL, f"the input `{spec.arg.name}` is no tensor", "Export a forward that takes tensors only."
                )
            names.append(spec.arg.name)
    return tuple(names)


def require_inputs(ctx: PassContext, names: Sequence[str]) -> None:
    """Check that every data set feeds the inputs of the network, in its order.

    Raises:
        InputError: lists both.
    """
    sets: tuple[tuple[str, Dataset | None], ...] = (
        ("spec.data.evaluation.inputs", ctx.data.evaluation),
        ("spec.data.train.inputs", ctx.data.train),
        ("spec.data.calibration.source.inputs", ctx.data.calibration),
    )
    for field, data in sets:
        if data is not None and tuple(data.input_names) != tuple(names):
            raise InputError(
                field,
                f"the names {', '.join(data.input_names)}",
                f"The model takes {', '.join(names)}: name these inputs, in this order.",
            )


def require_samples(
    examples: Sequence["Tensor"], names: Sequence[str], samples: Sequence[Array], free: Sequence[dict[int, Any]]
) -> None:
    """Check that samples have the element type and shape of the example inputs; `free` dimensions may be of any size.

    Raises:
        InputError: says what the model takes.
    """
    for name, example, sample, dims in zip(names, examples, samples, free, strict=True):
        kind = str(example.dtype).removeprefix("torch.")
        wanted = ["any" if i in dims else size for i, size in enumerate(example.shape)][1:]
        same = len(wanted) == sample.ndim - 1 and all(
            w in ("any", n) for w, n in zip(wanted, sample.shape[1:], strict=True)
        )
        if kind != str(sample.dtype) or not same:
            raise InputError(
                "spec.data.evaluation.inputs",
                f"`{name}` holds {sample.dtype} of shape {list(sample.shape[1:])} for each sample",
                f"The model takes {kind} of shape {wanted}.",
            )
