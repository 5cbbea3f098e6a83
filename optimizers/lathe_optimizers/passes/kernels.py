"""Which kernels ONNX Runtime really runs: counted in the graph it has optimised, not in the file.

Quantise/dequantise pairs in a file are a wish; whether a convolution runs in integers is decided by the fusions of the
session. The count is of the CPU provider's graph at level EXTENDED, which is the same on every CPU.
"""

from collections import Counter
from collections.abc import Iterator
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
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""Matrix operators that multiply integers."""

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


def float_nodes(path: Path) -> tuple[str, ...]:
    """Matrix kernels of the optimised graph that run in floating point, as `operator node-name`, in graph order."""
    return tuple(f"{n.op_type} {n.name}" for n in _nodes(optimised(path).graph) if n.op_type in FLOATING)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
