"""ONNX files: written from programs, stripped of their author's paths, read back."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from lathe_api.manifest import Signature, TensorSpec
from lathe_optimizers.errors import InputError
from lathe_optimizers.files import write_file
from lathe_optimizers.passes.compaction import compact
from lathe_optimizers.passes.onnx_parts import parts, strip

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["output_names", "parts", "read_signature", "session", "strip", "to_onnx", "weight_counts", "write"]

_DATATYPES: Final[dict[int, str]] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.STRING: "BYTES",
}
"""ONNX element types by their Open Inference Protocol names."""


def output_names(count: int) -> tuple[str, ...]:
    """Names of a program's outputs: `output`, or `output_0`, `output_1`, … where there are several."""
    return ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))


def to_onnx(
    ep: "ExportedProgram",
    path: Path,
    *,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
) -> None:
    """Write `ep` as one self-contained ONNX file, without notes on source code and what runtimes derive themselves.

    Dimensions that vary in the program vary in the file. The same program gives the same bytes in every process.

    Args:
        ep: a program in inference mode.
        path: written whole or not at all.
        opset: ONNX operator set, 18 to 24.
        input_names: names of the inputs, in the order of the program.
        output_names: names of the outputs; `output`, or `output_0`, … by default.
    """
    # Models that were given as ONNX are handled without torch.
    import torch

    from lathe_optimizers.passes.programs import quiet_torch

    names = list(output_names) if output_names else list(_default_outputs(ep))
    with quiet_torch():
        written = torch.onnx.export(
            ep,
            dynamo=True,
            opset_version=opset,
            input_names=list(input_names),
            output_names=names,
            external_data=False,
            verbose=False,
        )
    assert written is not None  # noqa: S101 - narrows torch's annotation: dynamo exports return a program
    model = written.model_proto
    strip(model)
    compact(model)
    write(model, path)


def _default_outputs(ep: "ExportedProgram") -> tuple[str, ...]:
    return output_names(len(ep.graph_signature.user_outputs))


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` in one canonical encoding; the file appears whole or not at all.

    Raises:
        StoreError: no space or no permission.
    """
    write_file(path, model.SerializeToString(deterministic=True))


def read_signature(path: Path) -> Signature:
    """Inputs and outputs of an ONNX file; sizes that may vary are -1.

    Raises:
        InputError: an input or output is not a tensor of a type that servers know.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {w.name for w in graph.initializer}
    return Signature(
        inputs=tuple(_spec(v, path) for v in graph.input if v.name not in weights),
        outputs=tuple(_spec(v, path) for v in graph.output),
    )


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in _DATATYPES:
        kind = value.type.WhichOneof("value") or "nothing"
        raise InputError(
            str(path),
            f"`{value.name}` is a {kind} of element type {tensor.elem_type}",
            "Inputs and outputs must be tensors of numbers, truth values or strings.",
        )
    shape = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else -1 for d in tensor.shape.dim)
    return TensorSpec(name=value.name, datatype=_DATATYPES[tensor.elem_type], shape=shape)


def weight_counts(path: Path) -> tuple[int, int]:
    """Elements of the file's weights, and how many of them are zero.

    Weights are the initialisers with at least one dimension, in subgraphs and constant nodes too; scalars (scales,
    sizes, zero points) are no weights. Of blocks of 4 or 8 bits, the values count, and zeros are not looked for.
    """
    elements = zeros = 0
    model = onnx.load(path)
    blocks = {n.input[1]: n for n in model.graph.node if n.op_type == "MatMulNBits"}
    for part in parts(model):
        if isinstance(part, onnx.TensorProto) and part.name in blocks:
            sizes = {a.name: a.i for a in blocks[part.name].attribute}
            elements += sizes["K"] * sizes["N"]
        elif isinstance(part, onnx.TensorProto) and part.dims:
            values = numpy_helper.to_array(part)
            elements += values.size
            zeros += values.size - int(np.count_nonzero(values))
    return elements, zeros


def session(path: Path, threads: int = 1, *, optimised: bool = True) -> ort.InferenceSession:
    """An ONNX Runtime CPU session that runs on `threads` threads.

    Args:
        path: ONNX file.
        threads: threads within an operator; operators run one after the other.
        optimised: False runs the graph as it is written, for comparisons that must not see fused arithmetic.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
