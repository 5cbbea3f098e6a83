"""Export: what is served answers as the program does, says nothing of its origin, and is the same every time."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import networks
from support.passing import artifact, context, images

from lathe_api import hostclass
from lathe_api.data import ModelFormat
from lathe_api.hostclass import HOST_KEY
from lathe_api.manifest import Role
from lathe_optimizers.context import PassOutput
from lathe_optimizers.errors import StageError
from lathe_optimizers.passes import export, import_model, onnx_files, parity, programs, registry
from lathe_runtimes.backends.onnxruntime_backend import OnnxSession
from lathe_runtimes.errors import ModelLoadError

pytestmark = pytest.mark.models


def stage(**settings):
    return {"name": "onnx", "type": "Export", "export": settings}


@pytest.fixture(scope="module")
def imported(tmp_path_factory, encoder_pt2):
    folder = tmp_path_factory.mktemp("imported")
    return artifact(import_model.run(context(folder, images(), source=encoder_pt2)))


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_the_file_answers_as_the_program_in_the_operator_set_that_is_asked_for(opset, imported, tmp_path):
    output = export.run(context(tmp_path, images(), stage=stage(opset=opset), given=imported))

    model = onnx.load(output.onnx)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    assert output.details["opset"] == opset
    assert output.details["parity"]["asWrittenLargest"] < 1e-5
    assert output.details["parity"]["optimisedLargest"] < 1e-5
    assert output.details["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 16, 16]}]
    assert output.details["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}]
    assert output.exported
    assert output.program == imported.files[Role.PROGRAM]
    data = parity.probe(images())
    expected = parity.program_answers(programs.load_program(output.program), data)
    for batch in (1, 5):
        assert parity.difference(expected, parity.onnx_answers(output.onnx, data, batch=batch)) < 1e-5


def test_the_file_says_nothing_of_where_it_was_made(imported, tmp_path):
    output = export.run(context(tmp_path, images(), stage=stage(), given=imported))

    content = output.onnx.read_bytes()
    for trace in (str(Path(__file__).parents[2]), str(tmp_path), ".py", "torch", "nn_module", "support.networks"):
        assert trace.encode() not in content, trace


def test_the_same_program_gives_the_same_bytes(imported, tmp_path):
    outputs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        outputs.append(export.run(context(tmp_path / name, images(), stage=stage(), given=imported)).onnx.read_bytes())

    assert outputs[0] == outputs[1]


def test_a_file_that_answers_otherwise_stops_the_stage(imported, tmp_path, monkeypatch):
    write = onnx_files.to_onnx

    def broken(program, path, **options):
        write(program, path, **options)
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda w: np.prod(w.dims))
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_files, "to_onnx", broken)

    with pytest.raises(StageError, match=r"stage onnx: the exported file differs.*export\.tolerance"):
        export.run(context(tmp_path, images(), stage=stage(), given=imported))


def test_a_host_tuned_file_is_marked_and_refused_on_other_kinds_of_cpu(imported, tmp_path, monkeypatch):
    output = export.run(context(tmp_path, images(), stage=stage(portability="HostTuned"), given=imported))

    properties = {p.key: p.value for p in onnx.load(output.onnx).metadata_props}
    assert properties == {HOST_KEY: hostclass.host_class()}
    assert hostclass.host_class() in output.warnings[0]
    assert output.details["parity"]["tunedLargest"] < 1e-4
    content = output.onnx.read_bytes()
    OnnxSession(content, output.onnx, [], threads=1)
    monkeypatch.setattr("lathe_runtimes.backends.onnxruntime_backend.host_class", lambda: "riscv64")
    with pytest.raises(ModelLoadError, match=r"tuned for CPUs of the kind .*this one is riscv64.*Portable"):
        OnnxSession(content, output.onnx, [], threads=1)


@pytest.mark.parametrize(("asked", "written"), [(18, 20), (22, 22)], ids=["not newer", "newer"])
def test_a_model_without_a_program_is_passed_on_and_converted_upwards_only(asked, written, imported, tmp_path):
    source = imported.files[Role.ONNX]
    given = artifact(import_model.run(context(tmp_path, images(), source=source, model_format=ModelFormat.ONNX)))

    output = export.run(context(tmp_path, images(), stage=stage(opset=asked), given=given))

    assert output.program is None
    assert output.details["opset"] == written
    assert output.details["parity"]["asWrittenLargest"] < 1e-5


class Quantised(torch.nn.Module):
    """An int8 linear layer as torchao writes it: uint8 activations, int8 weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randint(-127, 128, (10, 256), generator=generator, dtype=torch.int8))

    def forward(self, image):
        ops = torch.ops.quantized_decomposed
        x = ops.quantize_per_tensor(image.flatten(1), 1 / 255, 0, 0, 255, torch.uint8)
        x = ops.dequantize_per_tensor(x, 1 / 255, 0, 0, 255, torch.uint8)
        w = ops.dequantize_per_tensor(self.weight, 0.002, 0, -127, 127, torch.int8)
        y = torch.nn.functional.linear(x, w)
        y = ops.quantize_per_tensor(y, 0.05, 128, 0, 255, torch.uint8)
        return ops.dequantize_per_tensor(y, 0.05, 128, 0, 255, torch.uint8)


def test_a_quantised_program_is_held_to_the_typical_difference(tmp_path):
    program = networks.export_program(Quantised(), torch.rand(2, 1, 16, 16))
    saved, baseline = tmp_path / "int8.pt2", tmp_path / "int8.onnx"
    programs.save_program(program, saved)
    onnx_files.to_onnx(program, baseline, opset=20, input_names=["image"])
    given = artifact(PassOutput(program=saved, onnx=baseline))

    output = export.run(context(tmp_path, images(), stage=stage(), given=given))

    assert export.is_quantised(programs.load_program(saved))
    assert output.details["parity"]["asWrittenTypical"] < export.QUANTISED_TOLERANCE
    assert output.details["parity"]["optimisedTypical"] < export.INTEGER_TOLERANCE
    kinds = {n.op_type for n in onnx.load(output.onnx).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


ARRAYS = {
    "equal": ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], 0.0),
    "relative to the range": ([0.0, 5.0, 10.0], [0.0, 5.0, 9.0], 0.1),
    "constant answers": ([4.0, 4.0], [4.0, 5.0], 0.25),
    "all zero": ([0.0, 0.0], [0.0, 0.5], 0.5),
    "NaN in the same place": ([0.0, float("nan"), 1.0], [0.0, float("nan"), 1.0], 0.0),
    "NaN in one only": ([0.0, 1.0], [0.0, float("nan")], float("inf")),
    "equal infinities": ([0.0, float("inf"), 1.0], [0.0, float("inf"), 1.0], 0.0),
    "opposite infinities": ([0.0, float("inf"), 1.0], [0.0, float("-inf"), 1.0], float("inf")),
    "other shape": ([0.0, 1.0], [0.0], float("inf")),
}


@pytest.mark.parametrize(("reference", "other", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_differences_are_relative_to_the_range_of_the_answers(reference, other, expected):
    a, b = (np.array(x, np.float32) for x in (reference, other))

    assert parity.difference((a,), (b,)) == pytest.approx(expected)


def test_whole_numbers_are_compared_for_equality():
    assert parity.difference((np.array([1, 2, 3, 4]),), (np.array([1, 2, 3, 9]),)) == 0.25


@pytest.mark.parametrize("kind", [kind for kind, known in registry.PASSES.items() if known.module])
def test_every_stage_type_of_the_table_has_a_pass(kind):
    assert callable(registry.load(kind))
