"""What a model takes besides its file."""

import gzip

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lathe_optimizers.errors import StageError
from lathe_optimizers.passes import energy, footprint

pytestmark = pytest.mark.models


def linear(path, width, fill):
    """One matrix of `width` x `width` float32 weights."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(fill((width, width)), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def noise(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def zeros(shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("fill", [noise, zeros], ids=["noise", "zeros"])
def test_compressed_bytes_are_those_of_gzip_without_its_header(tmp_path, fill):
    path = linear(tmp_path / "m.onnx", 300, fill)
    by_gzip = len(gzip.compress(path.read_bytes(), 6, mtime=0))
    assert footprint.compressed_bytes(path) == pytest.approx(by_gzip - 18, abs=64)


def test_a_larger_model_takes_as_much_more_memory(tmp_path):
    sizes = {}
    for width in (64, 3000):
        path = linear(tmp_path / f"{width}.onnx", width, noise)
        sizes[width] = footprint.session_bytes(path, {"x": noise((1, width))})
    weights = 4 * 3000**2
    assert 0.9 * weights < sizes[3000] - sizes[64] < 5 * weights


def test_a_model_that_cannot_be_loaded_is_told_of(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(StageError, match="could not be measured"):
        footprint.session_bytes(path, {"x": noise((1, 2))})


def test_energy_is_absent_where_the_kernel_counts_none(tmp_path):
    assert energy.counters(tmp_path) == ()
    if not energy.counters():
        assert energy.energy_ratio(lambda: None, lambda: None, 0.0) is None


def test_counters_of_packages_are_read_and_may_wrap(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "max_energy_range_uj").write_text("1000\n")
        (folder / "energy_uj").write_text("900\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("100\n")
    packages = energy.counters(tmp_path)
    before = [p.read() for p in packages]
    assert before == [900, 100]
    assert energy.spent(before, [50, 130], packages) == 150 + 30
