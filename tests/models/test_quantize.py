"""Quantize: integer coverage, agreement, exclusion, refusals, on small networks."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import networks
from support.passing import Arrays, artifact, images
from support.quantising import given, only_onnx, stage_context
from torch import nn

from lathe_api.manifest import Role
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware
from lathe_optimizers.context import PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import kernels, onnx_files, parity, quantize, quantize_program
from lathe_optimizers.passes.integer_types import types_for
from lathe_optimizers.passes.programs import load_program, save_program, set_training, unlift

pytestmark = pytest.mark.models

NETWORKS = {
    "residual CNN": lambda: networks.residual_cnn(8, blocks=1),
    "plain CNN, flattened": lambda: networks.plain_cnn(8),
    "depthwise CNN with SiLU and gates": lambda: networks.separable_cnn(8),
    "grouped, chunked, joined and shuffled": lambda: networks.shuffled(16),
    "MLP with BatchNorm": lambda: networks.mlp(32),
    "encoder": lambda: networks.encoder(16, heads=2, layers=1),
    "no BatchNorm, one channel in": lambda: networks.ImageNetwork(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, 10)
    ),
    "clamped activations": lambda: networks.ImageNetwork(
        *networks.conv_bn(1, 8), nn.ReLU6(), *networks.conv_bn(8, 8, 3, 1, 8), nn.Hardtanh(), nn.Flatten(),
        nn.Linear(8 * 256, 10),
    ),
    "BatchNorm before the convolution": lambda: networks.ImageNetwork(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(8 * 144, 10),
    ),
}  # fmt: skip


def wide() -> nn.Module:
    return networks.residual_cnn(16)


def blocks() -> nn.Module:
    return networks.residual_cnn(8, stages=1)


def layers() -> nn.Module:
    return networks.mlp(16)


def with_transposed_convolution() -> nn.Module:
    return networks.ImageNetwork(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), nn.Flatten(), nn.Linear(1024, 10)
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["Static", "QuantizationAware"])
def test_every_matrix_kernel_is_integer_and_the_answers_stay(tmp_path: Path, network: str, method: str) -> None:
    start = given(tmp_path, NETWORKS[network])
    out = quantize.run(stage_context(tmp_path, start, method=method, epochs=1, batchSize=50))
    assert out.program is not None
    assert out.onnx is not None
    counted = kernels.count_kernels(out.onnx)
    assert counted.int8 > 0
    assert counted.float32 == 0, out.details["floatKernels"]
    assert out.warnings == ()
    inputs = images(40, seed=1).take(np.arange(40))[0]
    program = load_program(out.program)
    in_torch = parity.program_answers(program, inputs)
    in_runtime = parity.onnx_answers(out.onnx, inputs)
    assert parity.typical_difference(in_torch, in_runtime) < 0.02
    if method == "Static":
        original = parity.program_answers(load_program(start.files[Role.PROGRAM]), inputs)
        assert parity.typical_difference(original, in_runtime) < 0.05
    else:
        assert out.details["trainedAgainstConverted"] == 0.0


def test_weights_are_stored_as_integers_only(tmp_path: Path) -> None:
    start = given(tmp_path, wide)
    out = quantize.run(stage_context(tmp_path, start))
    assert out.onnx is not None
    stored = onnx.load(out.onnx).graph.initializer
    assert all(len(w.dims) <= 1 for w in stored if w.data_type == onnx.TensorProto.FLOAT)
    assert out.onnx.stat().st_size < start.files[Role.ONNX].stat().st_size / 3.3


@pytest.mark.parametrize("method", ["Static", "QuantizationAware"])
def test_excluded_layers_compute_in_floating_point(tmp_path: Path, method: str) -> None:
    # 3 is a residual block with two convolutions; 4.body.0 is fed and followed by integers.
    start = given(tmp_path, blocks)
    settings = {"method": method, "epochs": 1, "exclude": ["3", "4.body.0"]}
    out = quantize.run(stage_context(tmp_path, start, **settings))
    assert out.onnx is not None
    counted = kernels.count_kernels(out.onnx)
    assert (counted.int8, counted.float32) == (3, 3)
    assert out.details["excluded"] == ["3.body.0", "3.body.3", "4.body.0"]
    assert [f.split(" ")[1] for f in out.details["floatKernels"]] == out.details["excluded"]
    assert out.warnings == ()


def test_a_name_that_excludes_nothing_is_refused_with_near_names(tmp_path: Path) -> None:
    start = given(tmp_path, blocks)
    with pytest.raises(InputError, match=r"quantize\.exclude: `4\.body\.9`.*4\.body\.0"):
        quantize.run(stage_context(tmp_path, start, exclude=["4.body.9"]))


def test_a_layer_without_integer_form_is_named_in_a_warning(tmp_path: Path) -> None:
    out = quantize.run(stage_context(tmp_path, given(tmp_path, with_transposed_convolution)))
    assert out.onnx is not None
    assert kernels.count_kernels(out.onnx).float32 == 1
    assert "1 of 3 matrix kernels still run in floating point" in out.warnings[0]
    assert "ConvTranspose 2" in out.warnings[0]
    # Not rounded behind our back either: ONNX Runtime does that to float weights between two integer layers.
    assert "_weight_dq" not in {f.weight for f in kernels.inspect(out.onnx)[1]}


HARDWARE = {
    Hardware.X86_VNNI: (onnx.TensorProto.UINT8, 127),
    Hardware.X86_AVX2: (onnx.TensorProto.UINT8, 64),
    Hardware.ARM64: (onnx.TensorProto.INT8, 127),
    Hardware.EDGE: (onnx.TensorProto.UINT8, 64),
}


@pytest.mark.parametrize("hardware", HARDWARE, ids=str)
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_number_types_follow_the_hardware(tmp_path: Path, hardware: Hardware, form: str) -> None:
    start = given(tmp_path, NETWORKS["plain CNN, flattened"])
    ctx = stage_context(tmp_path, start if form == "pt2" else only_onnx(start))
    out = quantize.run(dataclasses.replace(ctx, hardware=hardware))
    assert out.onnx is not None
    activation, largest = HARDWARE[hardware]
    graph = onnx.load(out.onnx).graph
    values = {w.name: w for w in graph.initializer}
    assert {values[n.input[2]].data_type for n in graph.node if n.op_type == "QuantizeLinear"} == {activation}
    weights = [
        onnx.numpy_helper.to_array(w)
        for w in values.values()
        if w.data_type == onnx.TensorProto.INT8 and len(w.dims) > 1
    ]
    assert weights
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == largest
    assert kernels.count_kernels(out.onnx).float32 == 0


@pytest.mark.parametrize("network", ["residual CNN", "plain CNN, flattened", "MLP with BatchNorm", "encoder"])
def test_models_given_as_onnx_are_quantised_as_well(tmp_path: Path, network: str) -> None:
    start = only_onnx(given(tmp_path, NETWORKS[network]))
    out = quantize.run(stage_context(tmp_path, start))
    assert out.program is None
    assert out.onnx is not None
    assert kernels.count_kernels(out.onnx).float32 == 0
    inputs = images(40, seed=1).take(np.arange(40))[0]
    reference, answers = (parity.onnx_answers(p, inputs) for p in (start.files[Role.ONNX], out.onnx))
    assert parity.typical_difference(reference, answers) < 0.05


def test_excluded_nodes_of_an_onnx_model_compute_in_floating_point(tmp_path: Path) -> None:
    start = only_onnx(given(tmp_path, blocks))
    name = next(n.name for n in onnx.load(start.files[Role.ONNX]).graph.node if "4.body.0.weight" in n.input[1:2])
    out = quantize.run(stage_context(tmp_path, start, exclude=[name]))
    assert out.onnx is not None
    assert kernels.count_kernels(out.onnx).float32 == 1
    assert out.details["excluded"] == [name]
    assert out.warnings == ()
    with pytest.raises(InputError, match=r"quantize\.exclude: `conv-9`"):
        quantize.run(stage_context(tmp_path, start, exclude=["conv-9"]))


def test_what_was_exported_stays_exported_in_its_operator_set(tmp_path: Path) -> None:
    start = given(tmp_path, layers)
    onnx_files.to_onnx(load_program(start.files[Role.PROGRAM]), start.files[Role.ONNX], opset=19, input_names=["image"])
    exported = dataclasses.replace(start, manifest=start.manifest.model_copy(update={"exported": True}))
    out = quantize.run(stage_context(tmp_path, exported))
    assert out.exported
    assert out.onnx is not None
    assert [o.version for o in onnx.load(out.onnx).opset_import if o.domain == ""] == [19]


def test_training_with_rounding_needs_a_program(tmp_path: Path) -> None:
    start = only_onnx(given(tmp_path, layers))
    with pytest.raises(InputError, match=r"pt2"):
        quantize.run(stage_context(tmp_path, start, method="QuantizationAware"))


def test_a_gpu_target_is_refused_with_the_reason(tmp_path: Path) -> None:
    ctx = stage_context(tmp_path, given(tmp_path, layers))
    with pytest.raises(InputError, match="floating point only"):
        quantize.run(dataclasses.replace(ctx, hardware=Hardware.CUDA))


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_quantised_model_is_not_quantised_again(tmp_path: Path, form: str) -> None:
    start = given(tmp_path, layers)
    once = artifact(quantize.run(stage_context(tmp_path, start)))
    with pytest.raises(InputError, match="quantised already"):
        quantize.run(stage_context(tmp_path, once if form == "pt2" else only_onnx(once)))


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_empty_calibration_data_is_refused(tmp_path: Path, form: str) -> None:
    start = given(tmp_path, layers)
    with pytest.raises(InputError, match=r"spec\.data\.calibration: no samples"):
        quantize.run(stage_context(tmp_path, start if form == "pt2" else only_onnx(start), samples=0))


def test_samples_that_overflow_a_layer_are_refused_by_its_name(tmp_path: Path) -> None:
    start = given(tmp_path, layers)
    ctx = stage_context(tmp_path, start)
    # The range is measured behind the activation function (3) of the layer that overflows.
    weights = load_program(start.files[Role.PROGRAM]).state_dict["1.weight"].detach().numpy()
    signs = np.sign(weights[:4]).reshape(4, 1, 16, 16).astype(np.float32)
    huge = Arrays({"image": signs * np.float32(3e38)}, np.zeros(4, np.int64))
    ctx = dataclasses.replace(ctx, data=dataclasses.replace(ctx.data, calibration=huge))
    with pytest.raises(InputError, match=r"layer 3 answers NaN or infinity"):
        quantize.run(ctx)


def test_a_program_with_a_fixed_batch_is_calibrated_on_all_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = networks.export_program(networks.mlp(8), torch.rand(8, 1, 16, 16), dynamic=False)
    pt2, onnx_file = tmp_path / "fixed.pt2", tmp_path / "fixed.onnx"
    save_program(program, pt2)
    onnx_files.to_onnx(program, onnx_file, opset=20, input_names=["image"])
    start = artifact(PassOutput(program=pt2, onnx=onnx_file))
    ctx = stage_context(tmp_path, start, samples=20)
    out = quantize_program.run(ctx, start, ctx.stage.config, types_for(ctx.hardware), "int8")
    assert out.details["calibrationSamples"] == 20


def test_training_from_a_checkpoint_ends_in_the_same_program(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    start = given(tmp_path, layers)
    settings = {"method": "QuantizationAware", "epochs": 3, "batchSize": 25}
    whole = quantize.run(stage_context(tmp_path, start, **settings))
    assert whole.program is not None
    expected = whole.program.read_bytes()
    ctx = stage_context(tmp_path, start, **settings)

    def die_in_epoch_two(progress) -> None:
        if progress.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        quantize.run(dataclasses.replace(ctx, report=die_in_epoch_two))
    resumed = quantize.run(ctx)
    assert resumed.program is not None
    assert len(resumed.details["losses"]) == 1
    assert resumed.program.read_bytes() == expected


SCRIPT = """
import hashlib, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from lathe_optimizers.passes import quantize
from support import networks, quantising as t
folder = Path({folder!r})
start = t.made_now(folder, lambda: networks.{network})
for s in (start, t.only_onnx(start)):
    out = quantize.run(t.stage_context(folder, s))
    for path in (out.onnx, out.program):
        print(hashlib.sha256(path.read_bytes()).hexdigest() if path else "-")
"""


@pytest.mark.parametrize("network", ["residual_cnn(8, blocks=1)", "encoder(16, heads=2, layers=1)"])
def test_the_same_input_gives_the_same_bytes_in_every_process(tmp_path: Path, network: str) -> None:
    processes = []
    for seed in ("0", "1"):
        folder = tmp_path / seed
        folder.mkdir()
        script = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(folder), network=network)
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    first, second = (process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first.count("\n") == 4
    assert first == second


def test_folded_batch_norm_changes_no_answer_and_keeps_eps(tmp_path: Path) -> None:
    from lathe_optimizers.passes.folding import fold_batch_norm

    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    network = networks.ImageNetwork(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, eps=0.1), shared, nn.BatchNorm2d(8, affine=False), shared, nn.ReLU(),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 196, 16), nn.BatchNorm1d(16), nn.Linear(16, 10),
    )  # fmt: skip
    network.train()
    for _ in range(3):
        network(torch.rand(32, 1, 16, 16))
    gm = unlift(networks.export_program(network, torch.rand(2, 1, 16, 16)))
    set_training(gm, on=False)
    x = torch.rand(16, 1, 16, 16)
    before = gm(x)
    # The BatchNorm after ReLU has nothing to be folded into.
    assert fold_batch_norm(gm) == 3
    torch.testing.assert_close(gm(x), before, rtol=1e-5, atol=1e-5)
    assert sum(n.target is torch.ops.aten.batch_norm.default for n in gm.graph.nodes) == 1


def spoiled(folder: Path, form: str) -> tuple[PassContext, Arrays]:
    """A network, and calibration samples with one value far from all others."""
    start = given(folder, blocks)
    data = images(100)
    data.inputs["image"][7, 0, 5, 5] = 1000
    ctx = stage_context(folder, start if form == "pt2" else only_onnx(start))
    return dataclasses.replace(ctx, data=dataclasses.replace(ctx.data, calibration=data)), images(40, seed=1)


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize(("calibration", "better"), [("Percentile", 1.02), ("Entropy", 1.5)])
def test_one_strange_value_spoils_extremes_most(tmp_path: Path, calibration: str, better: float, form: str) -> None:
    ctx, test = spoiled(tmp_path, form)
    inputs = test.take(np.arange(40))[0]
    reference = parity.onnx_answers(given(tmp_path, blocks).files[Role.ONNX], inputs)
    differences = []
    for method in ("MinMax", calibration):
        stage = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static", "calibration": method}}
        out = quantize.run(dataclasses.replace(ctx, stage=Stage.model_validate(stage)))
        assert out.onnx is not None
        assert kernels.count_kernels(out.onnx).float32 == 0
        differences.append(parity.typical_difference(reference, parity.onnx_answers(out.onnx, inputs)))
    assert differences[1] < differences[0] / better


def test_how_far_ranges_depend_on_the_samples_is_told(tmp_path: Path) -> None:
    calm = quantize.run(stage_context(tmp_path, given(tmp_path, blocks))).details["calibrationStability"]
    ctx, _ = spoiled(tmp_path, "pt2")
    data = ctx.data.calibration
    data.inputs["image"] = data.inputs["image"][::-1].copy()
    late = quantize.run(ctx).details["calibrationStability"]
    assert abs(calm["movedInSecondHalf"]) < 0.5 < late["movedInSecondHalf"]
    assert late["range"]
