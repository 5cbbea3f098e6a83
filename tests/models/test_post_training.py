"""Quantize without calibration: size, agreement, exclusion, and the harm that refusals prevent."""

import dataclasses
import hashlib
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from support import networks
from support.passing import artifact, images
from support.quantising import given, only_onnx, stage_context
from torch import nn

from lathe_api.manifest import Role
from lathe_api.targets import Hardware
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import export, kernels, onnx_files, parity, quantize

pytestmark = pytest.mark.models


def encoder() -> nn.Module:
    return networks.encoder(128, heads=4, layers=2)


def mlp() -> nn.Module:
    return networks.mlp(256)


def cnn() -> nn.Module:
    return networks.residual_cnn(16)


LARGER_THAN_SCALES = 4096
MADE = {
    "encoder, Dynamic": (encoder, "Dynamic", 3.2, 0.05),
    "encoder, 8 bits": (encoder, "WeightOnly8", 3.2, 0.02),
    "encoder, 4 bits": (encoder, "WeightOnly4", 5.0, 0.12),
    "encoder, float16": (encoder, "Float16", 1.8, 0.005),
    "MLP, Dynamic": (mlp, "Dynamic", 3.6, 0.05),
    "MLP, 8 bits": (mlp, "WeightOnly8", 3.6, 0.02),
    "MLP, 4 bits": (mlp, "WeightOnly4", 5.8, 0.12),
    "CNN, 8 bits": (cnn, "WeightOnly8", 3.4, 0.02),
    "CNN, float16": (cnn, "Float16", 1.8, 0.005),
}


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize(("network", "method", "smaller", "bound"), MADE.values(), ids=MADE)
def test_the_file_shrinks_and_the_answers_stay(tmp_path: Path, network, method, smaller, bound, form) -> None:
    start = given(tmp_path, network)
    start = start if form == "pt2" else only_onnx(start)
    out = quantize.run(stage_context(tmp_path, start, method=method))
    assert out.onnx is not None
    assert out.program is None
    assert start.files[Role.ONNX].stat().st_size > smaller * out.onnx.stat().st_size
    inputs = images(40, seed=1).take(np.arange(40))[0]
    before = parity.onnx_answers(start.files[Role.ONNX], inputs)
    assert parity.typical_difference(before, parity.onnx_answers(out.onnx, inputs)) < bound
    served = export.run(
        dataclasses.replace(
            stage_context(tmp_path, artifact(out)),
            stage=stage_context(tmp_path, start).stage.model_validate({"name": "e", "type": "Export", "export": {}}),
        )
    )
    assert served.exported


@pytest.mark.parametrize("method", ["Dynamic", "WeightOnly4", "WeightOnly8"])
def test_every_layer_multiplies_integers(tmp_path: Path, method: str) -> None:
    out = quantize.run(stage_context(tmp_path, given(tmp_path, mlp), method=method))
    assert out.onnx is not None
    counted = kernels.count_kernels(out.onnx)
    assert (counted.int8, counted.float32) == (3, 0)
    assert out.warnings == ()


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("method", ["Dynamic", "WeightOnly4", "WeightOnly8", "Float16"])
def test_excluded_layers_stay_in_floating_point(tmp_path: Path, method: str, form: str) -> None:
    start = given(tmp_path, mlp)
    name = "5"
    if form == "onnx":
        start = only_onnx(start)
        name = next(n.name for n in onnx.load(start.files[Role.ONNX]).graph.node if n.op_type == "Gemm") or "getitem"
    out = quantize.run(stage_context(tmp_path, start, method=method, exclude=[name]))
    assert out.onnx is not None
    layers = [w.data_type for w in onnx.load(out.onnx).graph.initializer if np.prod(w.dims) > LARGER_THAN_SCALES]
    assert layers.count(onnx.TensorProto.FLOAT) == 1
    assert out.details["excluded"] == [name]
    with pytest.raises(InputError, match=r"quantize\.exclude: `nothing`"):
        quantize.run(stage_context(tmp_path, start, method=method, exclude=["nothing"]))


def test_processors_without_wide_sums_get_seven_bits(tmp_path: Path) -> None:
    for hardware, largest in ((Hardware.X86_VNNI, 127), (Hardware.X86_AVX2, 64)):
        ctx = stage_context(tmp_path, given(tmp_path, mlp), method="Dynamic")
        out = quantize.run(dataclasses.replace(ctx, hardware=hardware))
        assert out.onnx is not None
        stored = [onnx.numpy_helper.to_array(w) for w in onnx.load(out.onnx).graph.initializer if len(w.dims) == 2]
        assert max(int(np.abs(w.astype(np.int32)).max()) for w in stored) == largest


@pytest.mark.parametrize("method", ["Dynamic", "WeightOnly4", "WeightOnly8", "Float16"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    digests = set()
    for _ in range(2):
        out = quantize.run(stage_context(tmp_path, given(tmp_path, encoder), method=method))
        assert out.onnx is not None
        digests.add(hashlib.sha256(out.onnx.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("method", ["Dynamic", "WeightOnly4"])
def test_methods_for_products_are_refused_for_convolutions(tmp_path: Path, method: str) -> None:
    message = rf"quantize\.method: {method} for a network with \d+% of its weights in convolutions.*Static"
    with pytest.raises(InputError, match=message):
        quantize.run(stage_context(tmp_path, given(tmp_path, cnn), method=method))


def test_dynamic_convolutions_would_be_slower_than_float_ones(tmp_path: Path) -> None:
    """The harm that the refusal prevents: 0.16 times the speed on a larger network (a generous bound, not a figure)."""
    source, path = given(tmp_path, cnn).files[Role.ONNX], tmp_path / "dynamic.onnx"
    quantize_dynamic(str(source), str(path), weight_type=QuantType.QUInt8)
    x = images(16).take(np.arange(16))[0][0]
    sessions = [onnx_files.session(p) for p in (source, path)]
    best = [np.inf, np.inf]
    for _ in range(15):
        for index, session in enumerate(sessions):
            begun = time.perf_counter()
            session.run(None, {"image": x})
            best[index] = min(best[index], time.perf_counter() - begun)
    assert best[1] > best[0]


def test_a_model_of_float16_already_or_without_matrices_is_refused(tmp_path: Path) -> None:
    half = artifact(quantize.run(stage_context(tmp_path, given(tmp_path, mlp), method="Float16")))
    with pytest.raises(InputError, match="without constant float32 matrices"):
        quantize.run(stage_context(tmp_path, half, method="Float16"))


def test_half_the_size_is_no_speed_on_a_cpu(tmp_path: Path) -> None:
    out = quantize.run(stage_context(tmp_path, given(tmp_path, mlp), method="Float16"))
    assert [w for w in out.warnings if "nothing gets faster" in w]


def test_convolutions_with_expanded_weights_are_told(tmp_path: Path) -> None:
    told = quantize.run(stage_context(tmp_path, given(tmp_path, cnn), method="WeightOnly8")).warnings
    assert [w for w in told if "expand 8-bit weights at every request" in w]
    told = quantize.run(stage_context(tmp_path, given(tmp_path, encoder), method="WeightOnly8")).warnings
    assert not [w for w in told if "expand" in w]
