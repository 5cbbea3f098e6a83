"""Import: any usable model file becomes a program and a baseline that answer the same."""

import numpy as np
import onnx
import pytest
import torch
from support import networks
from support.passing import Arrays, context, images

from lathe_api.data import ModelFormat
from lathe_optimizers.errors import InputError, UnsafeFileError
from lathe_optimizers.passes import import_model, onnx_files, parity, programs

pytestmark = pytest.mark.models


def saved(tmp_path, module, example=None, **options):
    torch.manual_seed(0)
    path = tmp_path / "model.pt2"
    example = torch.rand(2, 1, 16, 16) if example is None else example
    torch.export.save(networks.export_program(module, example, **options), path)
    return path


@pytest.mark.parametrize("name", ["residual_cnn_pt2", "mlp_pt2", "encoder_pt2"])
def test_a_program_becomes_a_program_and_a_baseline_that_answer_the_same(name, request, tmp_path):
    path, data = request.getfixturevalue(name), images()

    output = import_model.run(context(tmp_path, data, source=path))

    given = parity.program_answers(programs.load_program(path), parity.probe(data))
    assert (
        parity.difference(given, parity.program_answers(programs.load_program(output.program), parity.probe(data))) == 0
    )
    assert parity.difference(given, parity.onnx_answers(output.onnx, parity.probe(data))) < 1e-5
    signature = onnx_files.read_signature(output.onnx)
    assert [(t.name, t.datatype, t.shape) for t in signature.inputs] == [("image", "FP32", (-1, 1, 16, 16))]
    assert [(t.name, t.datatype, t.shape) for t in signature.outputs] == [("output", "FP32", (-1, 10))]
    assert output.details["parity"] < 1e-5
    assert output.details["parameters"] == programs.count_parameters(programs.load_program(path))
    assert output.warnings == ()
    assert not output.exported


def test_an_export_in_training_mode_is_switched_to_inference(tmp_path):
    module = networks.plain_cnn()
    path, data = saved(tmp_path, module, training=True), images()

    output = import_model.run(context(tmp_path, data, source=path))

    module.eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(data.inputs["image"])).numpy()
    assert output.details["dropout"] == 1
    assert parity.difference((expected,), parity.onnx_answers(output.onnx, parity.probe(data))) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_freed_where_the_graph_allows_it(batch, tmp_path):
    path, data = saved(tmp_path, networks.plain_cnn(), torch.rand(batch, 1, 16, 16), dynamic=False), images()

    output = import_model.run(context(tmp_path, data, source=path))

    assert onnx_files.read_signature(output.onnx).inputs[0].shape[0] == -1
    assert 0 in programs.dynamic_shapes(programs.load_program(output.program))[0]
    assert f"exactly {batch} samples" in output.warnings[0]


def test_a_batch_that_the_graph_computes_with_is_explained(tmp_path):
    path = saved(tmp_path, networks.encoder(), torch.rand(3, 1, 16, 16), dynamic=False)

    with pytest.raises(InputError, match=r"exactly 3 samples.*dynamic_shapes"):
        import_model.run(context(tmp_path, images(), source=path))


class TwoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, left, right):
        return self.linear(left), self.linear(left + 2 * right)


def two_inputs(tmp_path):
    return saved(tmp_path, TwoInputs(), (torch.rand(2, 4), torch.rand(2, 4)), input_name=("left", "right"))


def columns(**kinds):
    rng = np.random.default_rng(0)
    return Arrays({n: rng.random((20, 4)).astype(k) for n, k in kinds.items()}, np.zeros(20))


def test_several_inputs_and_outputs_keep_their_order_and_get_names(tmp_path):
    data = columns(left=np.float32, right=np.float32)

    output = import_model.run(context(tmp_path, data, source=two_inputs(tmp_path)))

    signature = onnx_files.read_signature(output.onnx)
    assert [t.name for t in signature.inputs] == ["left", "right"]
    assert [t.name for t in signature.outputs] == ["output_0", "output_1"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(columns(left=np.float32), "names left", id="an input is missing"),
        pytest.param(columns(right=np.float32, left=np.float32), "names right, left", id="another order"),
        pytest.param(columns(image=np.float32, right=np.float32), "names image, right", id="another name"),
    ],
)
def test_data_that_does_not_feed_the_inputs_is_refused_with_both_lists(data, found, tmp_path):
    with pytest.raises(InputError, match=rf"spec\.data\.evaluation\.inputs.*{found}.*takes left, right"):
        import_model.run(context(tmp_path, data, source=two_inputs(tmp_path)))


def test_training_data_is_checked_too(tmp_path, mlp_pt2):
    with pytest.raises(InputError, match=r"spec\.data\.train\.inputs.*photo.*takes image"):
        import_model.run(context(tmp_path, images(), train=images(name="photo"), source=mlp_pt2))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(Arrays({"image": np.zeros((9, 1, 16, 16))}, np.zeros(9)), "float64", id="element type"),
        pytest.param(Arrays({"image": np.zeros((9, 1, 8, 8), np.float32)}, np.zeros(9)), r"\[1, 8, 8\]", id="shape"),
        pytest.param(Arrays({"image": np.zeros((9, 256), np.float32)}, np.zeros(9)), r"\[256\]", id="dimensions"),
    ],
)
def test_data_of_another_type_or_shape_is_refused(data, found, tmp_path, mlp_pt2):
    with pytest.raises(InputError, match=rf"{found}.*float32 of shape \[1, 16, 16\]"):
        import_model.run(context(tmp_path, data, source=mlp_pt2))


class ReturnsDict(torch.nn.Module):
    def forward(self, image):
        return {"a": image + 1}


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, image):
        self.seen.add_(1)
        return image.flatten(1) + self.seen


@pytest.mark.parametrize(
    ("module", "found"),
    [
        pytest.param(ReturnsDict(), "does not return tensors", id="dictionary"),
        pytest.param(Counts(), "changes `seen`", id="state"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(module, found, tmp_path):
    with pytest.raises(InputError, match=found):
        import_model.run(context(tmp_path, images(), source=saved(tmp_path, module)))


def test_keyword_inputs_are_refused(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(networks.mlp().eval(), (), {"image": torch.rand(2, 1, 16, 16)}), path)

    with pytest.raises(InputError, match="positional tensor inputs"):
        import_model.run(context(tmp_path, images(), source=path))


def test_a_format_that_is_not_built_is_refused_with_those_that_are(tmp_path, mlp_pt2):
    with pytest.raises(InputError, match=r"spec\.model\.format: Keras.*Pt2, Onnx"):
        import_model.run(context(tmp_path, images(), source=mlp_pt2, model_format=ModelFormat.KERAS))


def test_a_refusal_names_the_file_as_the_document_does(tmp_path):
    copy_in_the_store = tmp_path / "0123456789abcdef"
    copy_in_the_store.write_bytes(b"no archive")

    with pytest.raises(UnsafeFileError) as refusal:
        import_model.run(context(tmp_path, images(), source=copy_in_the_store))

    assert refusal.value.where == "model"


@pytest.fixture
def onnx_model(tmp_path, mlp_pt2):
    path = tmp_path / "given.onnx"
    onnx_files.to_onnx(programs.load_program(mlp_pt2), path, opset=18, input_names=["image"])
    return onnx.load(path)


def import_onnx(tmp_path, model, data=None):
    path = tmp_path / "changed.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return import_model.run(context(tmp_path, data or images(), source=path, model_format=ModelFormat.ONNX))


def test_an_onnx_file_is_stripped_and_stays_without_a_program(tmp_path, onnx_model):
    onnx_model.doc_string = "/home/somebody/train.py"
    onnx_model.metadata_props.add(key="path", value="/home/somebody/train.py")
    onnx_model.graph.node[0].doc_string = "/home/somebody/train.py"

    output = import_onnx(tmp_path, onnx_model)

    assert output.program is None
    assert output.details["opset"] == 18
    assert b"somebody" not in output.onnx.read_bytes()
    assert ".pt2" in output.warnings[0]


def test_an_onnx_file_of_an_early_operator_set_is_converted(tmp_path):
    def value(name, shape):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).random((256, 3), dtype=np.float32), "w")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["image"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            onnx.helper.make_node("Softmax", ["logits"], ["answer"], axis=1),
        ],
        "early",
        [value("image", ["n", 1, 16, 16])],
        [value("answer", ["n", 3])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=7)

    output = import_onnx(tmp_path, model)

    assert output.details["givenOpset"] == 12
    assert output.details["opset"] == 20
    assert output.details["parity"] < 1e-6


def external(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")


def custom_operator(model):
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def fixed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


ONNX = {
    "weights in another file": (external, UnsafeFileError, "refers to another file.*one file"),
    "custom operator": (custom_operator, InputError, r"com\.example"),
    "invalid graph": (lambda m: m.graph.node[0].input.append("nowhere"), InputError, "not a valid model"),
    "fixed batch": (fixed_batch, InputError, "first size is fixed"),
    "other input": (lambda m: onnx_rename(m, "photo"), InputError, "takes photo"),
}


def onnx_rename(model, name):
    for node in model.graph.node:
        for i, used in enumerate(node.input):
            if used == "image":
                node.input[i] = name
    model.graph.input[0].name = name


@pytest.mark.parametrize(("change", "error", "found"), ONNX.values(), ids=ONNX)
def test_an_onnx_file_that_cannot_be_used_is_explained(change, error, found, tmp_path, onnx_model):
    change(onnx_model)

    with pytest.raises(error, match=found):
        import_onnx(tmp_path, onnx_model)


def test_a_file_that_is_no_onnx_is_explained(tmp_path):
    with pytest.raises(InputError, match="not an ONNX file"):
        import_onnx(tmp_path, b"\x80\x04 not a model")
