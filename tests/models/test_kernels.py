"""Counting kernels and compacting files, on ONNX graphs built by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lathe_optimizers.passes import kernels, onnx_files, parity
from lathe_optimizers.passes.compaction import compact

pytestmark = pytest.mark.models


def dense(folder: Path, *, integer: bool) -> Path:
    """A linear layer, float or between quantise and dequantise steps, with attributes and notes as exporters write."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3)).astype(np.float32)
    values = {"x_scale": np.float32(0.1), "x_zero": np.uint8(128), "y_scale": np.float32(0.2), "y_zero": np.uint8(100)}
    steps = []
    if integer:
        values |= {"w": (weight * 20).astype(np.int8), "w_scale": np.full(3, 0.05, np.float32)}
        values |= {"w_zero": np.zeros(3, np.int8)}
        steps = [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["a_long_name_of_a_step"], axis=1),
            helper.make_node("DequantizeLinear", ["a_long_name_of_a_step", "x_scale", "x_zero"], ["data"], axis=1),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"], axis=1),
            helper.make_node("Gemm", ["data", "weight", "b"], ["raw"], name="node_raw", alpha=1.0, transB=0),
            helper.make_node("QuantizeLinear", ["raw", "y_scale", "y_zero"], ["answer"]),
            helper.make_node("DequantizeLinear", ["answer", "y_scale", "y_zero"], ["y"]),
        ]
    else:
        values = {"weight": weight}
        steps = [helper.make_node("Gemm", ["x", "weight", "b"], ["y"], name="layer", alpha=1.0, transB=0)]
    values["b"] = np.zeros(3, np.float32)
    graph = helper.make_graph(
        steps,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
    )
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    model.ir_version = 10
    path = folder / "dense.onnx"
    onnx.save(model, path)
    return path


def test_a_float_layer_is_counted_and_named(tmp_path: Path) -> None:
    path = dense(tmp_path, integer=False)
    assert kernels.operators(path) == {"Gemm": 1}
    counted, floats = kernels.inspect(path)
    assert (kernels.kernels_of(counted).int8, kernels.kernels_of(counted).float32) == (0, 1)
    assert [(f.operator, f.name, f.result, f.weight) for f in floats] == [("Gemm", "layer", "y", "weight")]


def test_what_the_session_fuses_is_counted_not_what_the_file_says(tmp_path: Path) -> None:
    path = dense(tmp_path, integer=True)
    assert "Gemm" in {n.op_type for n in onnx.load(path).graph.node}
    assert kernels.operators(path)["QGemm"] == 1
    assert kernels.count_kernels(path).coverage == 1.0


@pytest.mark.parametrize("integer", [False, True], ids=["float", "int8"])
def test_compaction_saves_bytes_and_changes_no_answer(tmp_path: Path, integer: bool) -> None:  # noqa: FBT001 - a table
    path, smaller = dense(tmp_path, integer=integer), tmp_path / "compact.onnx"
    model = onnx.load(path)
    compact(model)
    onnx.checker.check_model(model, full_check=True)
    onnx_files.write(model, smaller)
    x = [np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)]
    for optimised in (False, True):
        before, after = (parity.onnx_answers(p, x, optimised=optimised)[0] for p in (path, smaller))
        np.testing.assert_array_equal(before, after)
    assert smaller.stat().st_size < path.stat().st_size
    assert onnx_files.read_signature(smaller) == onnx_files.read_signature(path)
    assert {w.name for w in model.graph.initializer} == {w.name for w in onnx.load(path).graph.initializer}
    # The axis of a per-channel step is no default and must stay.
    kept = [a.name for n in model.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute]
    assert kept.count("axis") <= 1


def test_a_compact_model_stays_as_it_is(tmp_path: Path) -> None:
    model = onnx.load(dense(tmp_path, integer=True))
    compact(model)
    once = model.SerializeToString(deterministic=True)
    compact(model)
    assert model.SerializeToString(deterministic=True) == once
