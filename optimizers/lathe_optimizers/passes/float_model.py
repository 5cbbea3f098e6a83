"""A float ONNX model on its way to smaller numbers: cleaned, its nodes named, what stays in floating point found."""

import difflib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import onnx_files

MATRIX: Final = frozenset({"Conv", "Gemm", "MatMul"})
_RUNTIME: Final = "com.microsoft"


def prepare(source: Path, scratch: Path, layers: Sequence[str] = ()) -> onnx.ModelProto:
    """Fold BatchNorm and constants, and give every node a name.

    What stays between a layer and its activation function would keep both in floating point.

    Args:
        source: a float model.
        scratch: a file that is written over.
        layers: module paths of the matrix operators, in order, that they are named by.

    Raises:
        InputError: the file is quantised already.
    """
    given = onnx.load(source)
    if any("QuantizeLinear" in n.op_type or n.op_type.startswith("QLinear") for n in given.graph.node):
        raise InputError(str(source), "a model that is quantised already", "Remove the Quantize stage.")
    _name(given.graph, layers)
    onnx_files.write(given, scratch)
    with quiet():
        quant_pre_process(str(scratch), str(scratch), skip_symbolic_shape=True)
    model = onnx.load(scratch)
    _name(model.graph, ())
    return model


def with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the types of results behind ONNX Runtime's own operators, which onnx cannot derive.

    Of a result without a type, the tool takes for granted that it cannot be quantised.
    """
    known = {v.name for v in model.graph.value_info}
    own = [n for n in model.graph.node if n.domain == _RUNTIME and n.output[0] not in known]
    if not own:
        return model
    for node in own:
        model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(model)


def excluded(
    model: onnx.ModelProto, exclude: Sequence[str], field: str, operators: frozenset[str] = MATRIX
) -> set[str]:
    """Names of the nodes that `exclude` means: a node's own name, or its leading part up to a `/` or `.`.

    Raises:
        InputError: a name means no node of `operators`.
    """
    names = [n.name for n in model.graph.node if n.op_type in operators]
    found: set[str] = set()
    for name in exclude:
        matching = {n for n in names if n == name or n.startswith((f"{name}/", f"{name}."))}
        if not matching:
            layers = [n.name for n in model.graph.node if n.op_type in MATRIX]
            near = difflib.get_close_matches(name, layers, n=5, cutoff=0.3) or layers[:5]
            raise InputError(
                field,
                f"`{name}`, which names no node that could become integer",
                f"Write the name of a node, such as {', '.join(near)}.",
            )
        found |= matching
    return found


def _name(graph: onnx.GraphProto, layers: Sequence[str]) -> None:
    """Name the nodes without a name by their results; with `layers`, the matrix operators by these."""
    matrices = [n for n in graph.node if n.op_type in MATRIX]
    # An exporter keeps the order of operators, not their number: what it merged or split cannot be told apart.
    of_layers = dict(zip(map(id, matrices), layers, strict=True)) if len(matrices) == len(layers) else {}
    taken: set[str] = set()
    for node in graph.node:
        base = of_layers.get(id(node)) or node.name or node.output[0]
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}/{count}"
        taken.add(name)
        node.name = name


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the tool's advice: its own pre-processing is done, and its other hints are for its command line."""
    root: Any = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"onnxruntime|onnx|numpy")
            yield
    finally:
        root.setLevel(level)
