"""Import of ONNX files: check, modernise, strip."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import version_converter

from lathe_api.data import ModelFormat
from lathe_optimizers.context import PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError, StageError, UnsafeFileError
from lathe_optimizers.passes import onnx_files, parity
from lathe_optimizers.passes.inputs import require_inputs

OLDEST_OPSET: Final = 18
"""Below, per-channel quantisation and several layers have no exact form; such files are converted."""
OPSET: Final = 20
TOLERANCE: Final = 1e-4
_LARGEST: Final = (1 << 31) - 1
"""Bytes of a protobuf message."""
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that a plain ONNX Runtime has; all others would need a library of their author."""
_FIELD: Final = "spec.model.uri"


def run(ctx: PassContext, source: Path) -> PassOutput:
    """Check an ONNX file, convert it to a current operator set where it is older than 18, and strip its notes.

    The result has no program, so that stages that need one refuse it by name.

    Raises:
        UnsafeFileError: the file refers to other files.
        InputError: the file is damaged, needs libraries, or does not fit the data.
        StageError: the converted file answers otherwise than the given one.
    """
    ctx.report(Progress(0.0, "check"))
    model = read(source, ctx.model.uri)
    given = opset(model)
    ctx.report(Progress(0.3, "normalise"))
    if given < OLDEST_OPSET:
        model = converted(model, ctx.model.uri, OPSET)
    onnx_files.strip(model)
    path = ctx.workdir / "model.onnx"
    onnx_files.write(model, path)
    require_runnable(path, ctx.model.uri)
    signature = onnx_files.read_signature(path)
    require_inputs(ctx, [t.name for t in signature.inputs])
    for tensor in signature.inputs:
        if not tensor.shape or tensor.shape[0] != -1:
            raise InputError(
                _FIELD,
                f"the input `{tensor.name}` has the shape {list(tensor.shape)}, whose first size is fixed",
                "Export the model with a batch size that may vary as the first dimension.",
            )
    samples = parity.probe(ctx.data.evaluation)
    ctx.report(Progress(0.7, "compare"))
    # For files that were not converted this proves that stripping and rewriting changed nothing.
    worst = parity.difference(_answers(source, samples, ctx), _answers(path, samples, ctx))
    if worst > TOLERANCE:
        raise StageError(
            "import", f"the converted file differs from the given one by {worst:.2g} of the answers' range"
        )
    elements, _ = onnx_files.weight_counts(path)
    return PassOutput(
        onnx=path,
        details={
            "format": ModelFormat.ONNX.value,
            "parameters": elements,
            "opset": opset(model),
            "givenOpset": given,
            "parity": worst,
            "paritySamples": len(samples[0]),
        },
        warnings=("The model came as ONNX: stages that change or train the network need a `.pt2` file.",),
    )


def read(path: Path, shown: str) -> onnx.ModelProto:
    """Parse and check an ONNX file that nobody vouches for. Messages call it `shown`.

    Raises:
        UnsafeFileError: it refers to other files.
        InputError: it is damaged, or has operators of a library that is not here.
    """
    if path.stat().st_size > _LARGEST:
        raise InputError(shown, f"{path.stat().st_size} bytes", "At most 2 GB can be read from one ONNX file.")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as e:
        raise InputError(shown, "not an ONNX file", "Give a model written by onnx.save.") from e
    try:
        _read_texts(model)
    except UnicodeDecodeError as e:
        raise InputError(shown, "a damaged file: a name in it is not text", "Export the model again.") from e
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UnsafeFileError(
                shown,
                f"the weight `{tensor.name}` refers to another file",
                "Save the model as one file: onnx.save(onnx.load(path), path, save_as_external_data=False).",
            )
    local = {(f.domain, f.name) for f in model.functions}
    for node in _nodes(model):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in local:
            raise InputError(
                shown,
                f"the operator `{node.domain}.{node.op_type}`, which belongs to no standard library",
                "Export the model with standard ONNX operators only.",
            )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as e:  # its messages quote what is no text
        raise InputError(shown, f"not a valid model ({_first_line(e)})", "Export the model again.") from e
    return model


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a model is written in; 0 if it names none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def require_runnable(path: Path, where: str) -> None:
    """Check that ONNX Runtime accepts a file.

    Raises:
        InputError: it does not.
    """
    try:
        onnx_files.session(path)
    except Exception as e:  # the runtime's errors share no base class but this
        raise InputError(
            where, f"ONNX Runtime {ort.__version__} cannot run it ({_first_line(e)})", "Export the model again."
        ) from e


def converted(model: onnx.ModelProto, shown: str, target: int) -> onnx.ModelProto:
    """The same model in another operator set.

    Raises:
        InputError: an operator has no form there.
    """
    try:
        return version_converter.convert_version(model, target)
    except Exception as e:  # the converter raises RuntimeError and ConvertError, by operator
        raise InputError(
            shown,
            f"operator set {opset(model)} cannot be converted to {target} ({_first_line(e)})",
            f"Export the model with operator set {OLDEST_OPSET} or later.",
        ) from e


def _answers(path: Path, samples: parity.Answers, ctx: PassContext) -> parity.Answers:
    return parity.onnx_answers(path, samples, threads=ctx.threads, optimised=False)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (part for part in onnx_files.parts(model) if isinstance(part, onnx.TensorProto))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (part for part in onnx_files.parts(model) if isinstance(part, onnx.NodeProto))


def _read_texts(model: onnx.ModelProto) -> None:
    """Decode every name once: protobuf does so when a text is first looked at, which may be anywhere."""
    for part in onnx_files.parts(model):
        if isinstance(part, onnx.TensorProto):
            _ = part.name, part.doc_string
        else:
            part.ListFields()
        if isinstance(part, onnx.ValueInfoProto):
            _ = [dim.dim_param for dim in part.type.tensor_type.shape.dim]
    for versions in model.opset_import:
        _ = versions.domain


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
