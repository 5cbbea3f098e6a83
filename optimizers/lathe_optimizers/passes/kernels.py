"""Which kernels ONNX Runtime really runs: counted in the graph it has optimised, not in the file.

Quantise/dequantise pairs in a file are a wish; whether a convolution runs in integers is decided by the fusions of the
session. The count is of the CPU provider's graph at level EXTENDED, which is the same on every CPU.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import onnx
import onnxruntime as ort

from lathe_api.manifest import Kernels

INTEGER: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""Matrix operators that multiply integers; MatMulNBits does so at the accuracy level that `weight_bits` asks for."""

FLOATING: Final = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupQueryAttention",
        "LSTM",
        "MatMul",
        "MultiHeadAttention",
        "RNN",
        "TransposeMatMul",
    }
)
"""Matrix operators that multiply floating-point numbers."""


def optimised(path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime's CPU provider runs for the file at `path`."""
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def operators(path: Path) -> Counter[str]:
    """How often each operator is in the optimised graph, its branches and loop bodies included."""
    return Counter(node.op_type for node in _nodes(optimised(path).graph))


def count_kernels(path: Path) -> Kernels:
    """Matrix kernels of the optimised graph that run in integers and in floating point."""
    return kernels_of(operators(path))


def kernels_of(counted: Counter[str]) -> Kernels:
    """Totals of what `operators` counted."""
    return Kernels(int8=sum(counted[o] for o in INTEGER), float32=sum(counted[o] for o in FLOATING))


@dataclass(frozen=True)
class FloatKernel:
    """A matrix kernel that runs in floating point."""

    operator: str
    name: str
    """Of the node, as the optimiser left it."""
    result: str
    """Of the node's first output, which fusions mostly keep."""
    weight: str
    """Name of the second operand."""


def inspect(path: Path) -> tuple[Counter[str], tuple[FloatKernel, ...]]:
    """Both at once: what `operators` counts, and the floating-point matrix kernels in graph order."""
    nodes = list(_nodes(optimised(path).graph))
    floats = tuple(
        FloatKernel(n.op_type, n.name, n.output[0], (*n.input, "")[1]) for n in nodes if n.op_type in FLOATING
    )
    return Counter(n.op_type for n in nodes), floats


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
