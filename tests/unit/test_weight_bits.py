"""Rounding of weights to 8 and 4 bits, as numbers and as ONNX Runtime reads them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from lathe_optimizers.passes import onnx_files, weight_bits

RNG = np.random.default_rng(0)
SHAPES = {"whole blocks": (256, 24), "a part of a block": (200, 24), "less than a block": (16, 8), "odd": (37, 5)}


def unpacked(packed: weight_bits.Packed, bits: int, inner: int) -> np.ndarray:
    values = packed.values
    if bits == 4:
        values = np.stack([values & 15, values >> 4], 3).reshape(*values.shape[:2], -1)
    steps = values.astype(np.float32) - (1 << (bits - 1))
    return (steps * packed.scales[:, :, None]).reshape(len(values), -1)[:, :inner].T


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_moves_by_more_than_a_step_of_its_block(bits, shape):
    weight = RNG.normal(size=shape).astype(np.float32)
    packed = weight_bits.pack(weight, bits)
    off = np.abs(unpacked(packed, bits, shape[0]) - weight)
    steps = np.repeat(np.abs(packed.scales), packed.block, 1)[:, : shape[0]].T
    # The extreme of a block is exact; its opposite is cut by one step at most.
    assert (off <= steps * (1 + 1e-6)).all()
    assert np.median(off / steps) < 0.5


def test_a_block_of_zeros_stays_zero():
    packed = weight_bits.pack(np.zeros((64, 3), np.float32), 4)
    assert not unpacked(packed, 4, 64).any()


def test_the_extreme_of_a_block_is_exact():
    weight = RNG.normal(size=(32, 4)).astype(np.float32)
    found = unpacked(weight_bits.pack(weight, 4), 4, 32)
    rows = np.abs(weight).argmax(0)
    np.testing.assert_allclose(found[rows, range(4)], weight[rows, range(4)], rtol=1e-6)


def model(nodes, weights, inputs=(("x", TensorProto.FLOAT, [None, 96]),)):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    for index, node in enumerate(graph.node):
        node.name = node.name or f"n{index}"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


X = RNG.normal(size=(3, 96)).astype(np.float32)
W = RNG.normal(size=(96, 64)).astype(np.float32)
B = RNG.normal(size=64).astype(np.float32)
IMAGE = RNG.normal(size=(2, 3, 9, 9)).astype(np.float32)
GIVEN = {
    "product": (model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W}), X),
    "layer": (model([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": W, "b": B}), X),
    "layer, transposed and scaled": (
        model([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5)], {"w": W.T, "b": B}),
        X,
    ),
    "layer without bias": (model([helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": W}), X),
    "bias that is scaled": (model([helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=2.0)], {"w": W, "b": B}), X),
    "left operand": (
        model([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": W.T}, (("x", TensorProto.FLOAT, [96, None]),)),
        X.T,
    ),
    "embedding": (
        model([helper.make_node("Gather", ["w", "x"], ["y"])], {"w": W}, (("x", TensorProto.INT64, [None]),)),
        np.array([0, 5, 95, 5]),
    ),
    "embedding of an odd width": (
        model([helper.make_node("Gather", ["w", "x"], ["y"])], {"w": W[:, :37]}, (("x", TensorProto.INT64, [None]),)),
        np.array([0, 5, 95, 5]),
    ),
    "one weight read twice": (
        model(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "w"], ["y"], transB=1)],
            {"w": W},
        ),
        X,
    ),
    "two layers": (
        model([helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])],
              {"w": W, "v": W.T}),
        X,
    ),
    "convolution": (
        model(
            [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
            {"w": RNG.normal(size=(8, 3, 3, 3))},
            (("x", TensorProto.FLOAT, [None, 3, 9, 9]),),
        ),
        IMAGE,
    ),
}  # fmt: skip


def answer(given, x):
    return ort.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.2)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize(("given", "x"), GIVEN.values(), ids=GIVEN)
def test_onnx_runtime_answers_nearly_as_before(given, x, bits, bound):
    before = answer(given, x)
    made = onnx.ModelProto()
    made.CopyFrom(given)
    weight_bits.convert(made, bits, set())
    after = answer(made, x)
    assert after.shape == before.shape
    assert np.sqrt(np.mean((after - before) ** 2)) < bound * before.std()


SMALLER = {
    ("product", 8): 3.5, ("product", 4): 5.5, ("layer, transposed and scaled", 8): 3.4, ("embedding", 8): 3.0,
    ("embedding", 4): 4.5, ("convolution", 4): 1.0, ("left operand", 8): 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "bits", "ratio"), [(*k, v) for k, v in SMALLER.items()])
def test_the_weights_take_less_room(name, bits, ratio):
    made = onnx.ModelProto()
    made.CopyFrom(GIVEN[name][0])
    before = sum(len(w.raw_data) for w in made.graph.initializer)
    weight_bits.convert(made, bits, set())
    after = sum(len(w.raw_data) for w in made.graph.initializer)
    assert after <= before / ratio


def test_what_is_excluded_stays_in_floating_point():
    made = onnx.ModelProto()
    made.CopyFrom(GIVEN["one weight read twice"][0])
    assert weight_bits.convert(made, 8, {"n1"}) == {"MatMul": 1}
    assert [n.op_type for n in made.graph.node] == ["MatMulNBits", "Gemm"]
    assert "w" in {w.name for w in made.graph.initializer}


def test_a_matrix_that_would_grow_stays_as_it_is():
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W[:3]})
    assert weight_bits.convert(made, 8, set()) == {}


def test_values_in_blocks_count_as_weights(tmp_path):
    made = onnx.ModelProto()
    made.CopyFrom(GIVEN["product"][0])
    weight_bits.convert(made, 4, set())
    onnx.save(made, tmp_path / "m.onnx")
    elements, _ = onnx_files.weight_counts(tmp_path / "m.onnx")
    assert elements == W.size + W.shape[1] * (W.shape[0] // 32)
