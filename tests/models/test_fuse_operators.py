"""Fuse by Operators: what becomes one operator, that nothing else changes, what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support import networks
from support.passing import artifact, context, images
from support.quantising import given, only_onnx
from torch import Tensor, nn
from torch.nn import functional

from lathe_api.manifest import Role
from lathe_optimizers.context import Artifact, PassOutput
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes import export, fuse, fuse_operators, onnx_files, onnx_fusions, parity, quantize
from lathe_optimizers.passes.programs import load_program, quiet_torch

pytestmark = pytest.mark.models

TOLERANCE = 1e-4


class Written(nn.Module):
    """An encoder whose attention, norms and GELUs are written out, as other exporters leave them."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.first, self.last = nn.LayerNorm(32), nn.LayerNorm(32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down, self.plain = nn.Linear(32, 64), nn.Linear(64, 32), plain

    def norm(self, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        if not self.plain:
            return layer(x)
        apart = x - x.mean(-1, keepdim=True)
        return apart / (apart.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    def gelu(self, x: Tensor) -> Tensor:
        return x * (torch.erf(x / 2**0.5) + 1.0) * 0.5 if self.plain else functional.gelu(x)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.first, self.embed(image.squeeze(1)))
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, 4, d // 4).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / (d // 4) ** 0.5, -1) @ v
        x = self.norm(self.last, x + self.out(mixed.transpose(1, 2).reshape(b, t, d)))
        return self.head((x + self.down(self.gelu(self.up(x)))).mean(1))


def plain() -> nn.Module:
    return Written(plain=True)


def whole() -> nn.Module:
    return Written(plain=False)


def cnn() -> nn.Module:
    return networks.plain_cnn(8)


def fused(folder: Path, start: Artifact, *operators: str) -> PassOutput:
    settings = {"method": "Operators"} | ({"operators": list(operators)} if operators else {})
    stage = {"name": "fewer", "type": "Fuse", "fuse": settings}
    return fuse.run(context(folder, images(50, seed=1), stage=stage, given=start))


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def unfolded(folder: Path) -> Artifact:
    """A CNN in ONNX whose BatchNorm is still there, behind Conv and behind Gemm."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
        nn.BatchNorm1d(10),
    ).train()
    network(torch.rand(32, 1, 16, 16))
    path = folder / "unfolded.onnx"
    with quiet_torch():
        exported = torch.onnx.export(
        network.eval(), (torch.rand(2, 1, 16, 16),), dynamo=True, optimize=False, verbose=False,
        input_names=["image"], dynamic_shapes=({0: torch.export.Dim("n")},),
    )  # fmt: skip
    assert exported is not None
    onnx_files.write(exported.model_proto, path)
    return artifact(PassOutput(onnx=path))


def same(start: Artifact, out: Path) -> float:
    probe = parity.probe(images(50, seed=3))
    reference = parity.onnx_answers(start.files[Role.ONNX], probe, optimised=False)
    return parity.difference(reference, parity.onnx_answers(out, probe))


def test_batch_norm_of_a_program_is_folded_and_it_stays_a_program(tmp_path: Path) -> None:
    start = given(tmp_path, cnn)
    out = fused(tmp_path, start)
    assert out.onnx is None
    assert out.details["fused"] == {"BatchNorm": 2}
    assert out.details["parity"] <= TOLERANCE
    nodes = load_program(out.program).graph_module.graph.nodes
    assert not [n for n in nodes if "batch_norm" in str(n.target)]


def test_batch_norm_of_a_file_is_folded_into_convolution_and_product(tmp_path: Path) -> None:
    start = unfolded(tmp_path)
    assert kinds(start.files[Role.ONNX])["BatchNormalization"] == 2
    out = fused(tmp_path, start, "BatchNorm")
    assert out.details["fused"] == {"BatchNorm": 2}
    assert not kinds(out.onnx)["BatchNormalization"]
    assert same(start, out.onnx) <= TOLERANCE
    stored = {w.name for w in onnx.load(out.onnx).graph.initializer}
    assert not [name for name in stored if "running" in name]


def test_a_norm_stays_where_the_raw_answer_is_read_too(tmp_path: Path) -> None:
    model = onnx.load(unfolded(tmp_path).files[Role.ONNX])
    layer = next(n for n in model.graph.node if n.op_type == "Conv")
    model.graph.output.append(onnx.helper.make_tensor_value_info(layer.output[0], onnx.TensorProto.FLOAT, None))
    assert onnx_fusions.fold_batch_norm(model) == 1


FUSIONS = {
    "written out": (plain, ("LayerNorm", "Gelu"), {"LayerNormalization": 2, "Gelu": 1}),
    "skip connections": (whole, ("SkipLayerNorm",), {"SkipLayerNormalization": 1}),
    "bias": (whole, ("BiasGelu",), {"BiasGelu": 1}),
    "attention": (whole, ("Attention",), {"Attention": 1, "Softmax": 0}),
    "all of an encoder": (
        plain,
        ("Attention", "SkipLayerNorm", "LayerNorm", "Gelu"),
        {"Attention": 1, "SkipLayerNormalization": 1, "LayerNormalization": 1, "Gelu": 1, "Erf": 0},
    ),
}


@pytest.mark.parametrize("origin", ["program", "file"])
@pytest.mark.parametrize(("network", "operators", "expected"), FUSIONS.values(), ids=FUSIONS)
def test_a_declared_fusion_is_done_and_changes_no_answer(tmp_path, network, operators, expected, origin) -> None:
    start = given(tmp_path, network)
    out = fused(tmp_path, start if origin == "program" else only_onnx(start), *operators)
    assert out.program is None
    found = kinds(out.onnx)
    assert {name: found[name] for name in expected} == expected
    assert all(out.details["fused"][name] for name in operators)
    assert same(start, out.onnx) <= TOLERANCE
    assert out.details["latency"]["rounds"] > 1


def test_by_default_only_what_a_runtime_does_anyway_is_fused_and_the_rest_is_named(tmp_path: Path) -> None:
    out = fused(tmp_path, only_onnx(given(tmp_path, plain)))
    assert out.details["fused"] == {"BatchNorm": 0, "LayerNorm": 2, "Gelu": 1}
    assert not kinds(out.onnx)["SkipLayerNormalization"]
    assert set(out.details["notFused"]) >= {"SkipLayerNorm"}
    assert any("SkipLayerNorm" in w and "longer" in w for w in out.warnings)


def test_a_stage_that_had_nothing_to_do_says_so(tmp_path: Path) -> None:
    out = fused(tmp_path, only_onnx(given(tmp_path, cnn)))
    assert not any(out.details["fused"].values())
    assert any("can be removed" in w for w in out.warnings)


NOTHING = {
    "no attention": (cnn, ("BatchNorm", "Attention"), 1, "BatchNorm 2 times"),
    "no norm": (whole, ("BatchNorm",), 0, "nothing was fused"),
    "already one operator": (whole, ("Gelu",), 0, "is one operator already"),
}


@pytest.mark.parametrize(("network", "operators", "index", "words"), NOTHING.values(), ids=NOTHING)
def test_a_declared_fusion_that_matches_nothing_fails(tmp_path, network, operators, index, words) -> None:
    with pytest.raises(InputError) as refusal:
        fused(tmp_path, given(tmp_path, network), *operators)
    assert refusal.value.where == f"stage fewer: fuse.operators[{index}]"
    assert words in refusal.value.found


def test_a_fusion_that_changes_answers_is_not_passed_on(tmp_path: Path, monkeypatch) -> None:
    real = onnx_fusions.fuse

    def wrong(model, operators):
        model, done = real(model, operators)
        weight = next(w for w in model.graph.initializer if len(w.dims) > 1)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
        return model, done

    monkeypatch.setattr(fuse_operators.onnx_fusions, "fuse", wrong)
    with pytest.raises(StageError, match="differs"):
        fused(tmp_path, only_onnx(given(tmp_path, whole)), "SkipLayerNorm")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    start = given(tmp_path, plain)
    operators = ("Attention", "SkipLayerNorm", "LayerNorm", "Gelu")
    first = fused(tmp_path, start, *operators).onnx.read_bytes()
    assert fused(tmp_path, start, *operators).onnx.read_bytes() == first


@pytest.mark.parametrize("method", ["Dynamic", "Static", "WeightOnly8", "Float16"])
def test_what_was_fused_is_quantised_and_exported(tmp_path: Path, method: str) -> None:
    start = artifact(fused(tmp_path, given(tmp_path, plain), *FUSIONS["all of an encoder"][1]))
    data = images(60, seed=4)
    onnx_context = context(
        tmp_path, images(40, seed=5), stage={"name": "onnx", "type": "Export", "export": {}}, given=start
    )
    exported = export.run(onnx_context)
    assert kinds(exported.onnx)["Attention"] == 1
    stage = {"name": "int8", "type": "Quantize", "quantize": {"method": method}}
    out = quantize.run(context(tmp_path, images(40, seed=5), stage=stage, given=artifact(exported), train=data))
    assert out.details["typicalDifference"] < 0.05
