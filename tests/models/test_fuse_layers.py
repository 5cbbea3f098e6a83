"""Fuse by SimilarLayers: who shares with whom, that the file shrinks, what it costs, what is refused."""

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from support import networks
from support.passing import Arrays, artifact, context, images, stripes
from support.quantising import given, made_now, only_onnx
from torch import nn

from lathe_api.manifest import Role
from lathe_optimizers.context import Artifact, PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import export, fuse, onnx_files, quantize, training
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.programs import load_program, reexport, save_program, set_training, unlift

pytestmark = pytest.mark.models

TRAINED = {"epochs": 2, "learningRate": "0.003", "batchSize": 32}


def encoder() -> nn.Module:
    return networks.encoder(32, heads=4, layers=2)


def cnn() -> nn.Module:
    return networks.residual_cnn(8)


def twins() -> nn.Module:
    """The third hidden layer is the second with its units in another order; the first is of another shape."""
    torch.manual_seed(3)
    layers = [nn.Linear(256, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)]
    order = torch.randperm(32)
    with torch.no_grad():
        layers[2].weight.copy_(layers[1].weight[order])
        layers[2].bias.copy_(layers[1].bias[order])
    hidden = [part for layer in layers for part in (layer, nn.Tanh())]
    return networks.ImageNetwork(nn.Flatten(), *hidden, nn.Linear(32, 10))


def stage_context(folder: Path, start: Artifact, train: Arrays | None = None, **settings) -> PassContext:
    stage = {"name": "alike", "type": "Fuse", "fuse": {"method": "SimilarLayers"} | settings}
    return context(folder, stripes(100, 2), stage=stage, given=start, train=train)


def exported(folder: Path, out: PassOutput, start: Artifact) -> Path:
    given_ = Artifact(
        dataclasses.replace(start).manifest, {Role.PROGRAM: out.program, Role.ONNX: start.files[Role.ONNX]}
    )
    stage = {"name": "onnx", "type": "Export", "export": {}}
    return export.run(context(folder, images(40), stage=stage, given=given_)).onnx


@pytest.mark.parametrize("similarity", ["Cosine", "Cka", "BlockInfluence"])
@pytest.mark.parametrize("network", [encoder, cnn])
def test_layers_share_weights_and_the_file_shrinks_by_them(tmp_path: Path, network, similarity) -> None:
    start = given(tmp_path, network)
    before = exported(tmp_path, PassOutput(program=start.files[Role.PROGRAM]), start).stat().st_size
    out = fuse.run(stage_context(tmp_path, start, similarity=similarity, topK=2))
    details = out.details
    assert len(details["shared"]) == 2
    saved = 4 * (details["parametersBefore"] - details["parametersAfter"])
    assert saved > 0
    file = exported(tmp_path, out, start)
    assert before - file.stat().st_size > 0.75 * saved
    readers = [name for node in onnx.load(file).graph.node for name in node.input]
    stored = {w.name for w in onnx.load(file).graph.initializer if len(w.dims) > 1}
    assert max(readers.count(name) for name in stored) >= 2
    assert len(details["randomPairs"]["quality"]) == 3


def learned(folder: Path, network, epochs: int = 8) -> tuple[Artifact, Arrays]:
    """A network that knows the stripes."""
    start, train = made_now(folder, network), stripes(640, 1)
    ctx = stage_context(folder, start, train)
    gm = unlift(load_program(start.files[Role.PROGRAM]))
    set_training(gm, on=True)
    loss = training.task_loss(ctx.objective.task)
    training.fit(gm, train, loss, training.FitOptions(epochs, 32, 0.01), slot="t", ctx=ctx)
    set_training(gm, on=False)
    program = reexport(gm, load_program(start.files[Role.PROGRAM]))
    save_program(program, start.files[Role.PROGRAM])
    onnx_files.to_onnx(program, start.files[Role.ONNX], opset=20, input_names=["image"])
    return start, train


def answers(out: PassOutput, data: Arrays) -> torch.Tensor:
    gm = unlift(load_program(out.program))
    set_training(gm, on=False)
    with torch.no_grad():
        return gm(torch.from_numpy(data.inputs["image"]))


def test_a_layer_whose_units_are_in_another_order_is_found_and_shared_at_no_cost(tmp_path: Path) -> None:
    start = made_now(tmp_path, twins)
    data = images(100)
    right = answers(PassOutput(program=start.files[Role.PROGRAM]), data).argmax(1).numpy()
    known = Arrays(data.inputs, right)
    ctx = stage_context(tmp_path, start)
    out = fuse.run(dataclasses.replace(ctx, data=dataclasses.replace(ctx.data, evaluation=known)))
    assert out.details["qualityShared"] == 1.0
    best = out.details["mostSimilar"][0]
    assert best["layers"] == ["3", "5"]
    assert best["similarity"] == pytest.approx(1, abs=1e-5)
    assert all(p["similarity"] < 0.3 for p in out.details["mostSimilar"][1:])
    before = answers(PassOutput(program=start.files[Role.PROGRAM]), data)
    assert torch.allclose(answers(out, data), before, atol=1e-5)
    assert out.details["parametersBefore"] - out.details["parametersAfter"] == 32 * 32


def test_pairs_that_cost_too_much_are_left(tmp_path: Path) -> None:
    start, train = learned(tmp_path, twins)
    out = fuse.run(stage_context(tmp_path, start, train, topK=3, maxDrop="0.15"))
    details = out.details
    assert details["qualityBefore"] - details["qualityShared"] <= 0.15 + 1e-6
    assert 1 <= len(details["shared"]) < 3
    assert all(details["qualityBefore"] - pair["quality"] > 0.15 for pair in details["refused"])
    assert any("of 3 pairs" in w for w in out.warnings)


def test_what_is_alike_costs_less_than_what_is_drawn(tmp_path: Path) -> None:
    start, train = learned(tmp_path, twins)
    details = fuse.run(stage_context(tmp_path, start, train)).details
    assert details["qualityShared"] > details["randomPairs"]["mean"]


def test_training_keeps_the_sharing_and_recovers_what_it_cost(tmp_path: Path) -> None:
    start, train = learned(tmp_path, cnn)
    out = fuse.run(stage_context(tmp_path, start, train, topK=3, finetune=TRAINED))
    assert out.details["qualityTuned"] > out.details["qualityShared"] + 0.2
    gm = unlift(load_program(out.program))
    for weight, readers in out.details["readers"].items():
        uses = [n for n in gm.graph.nodes if n.op == "get_attr" and n.target == weight]
        assert sum(len(n.users) for n in uses) == len(readers) >= 2


def test_frozen_weights_stay_while_the_rest_is_trained(tmp_path: Path) -> None:
    start, train = learned(tmp_path, encoder, epochs=1)
    plain = fuse.run(stage_context(tmp_path, start, train))
    expected = unlift(load_program(plain.program))
    out = fuse.run(stage_context(tmp_path, start, train, shared="Frozen", finetune=TRAINED))
    found = unlift(load_program(out.program))
    assert out.frozen == tuple(out.details["frozen"]) == tuple(plain.details["readers"])
    (weight,) = out.frozen
    assert torch.equal(tensor_at(found, weight), tensor_at(expected, weight))
    assert not torch.equal(tensor_at(found, "embed.weight"), tensor_at(expected, "embed.weight"))


def test_a_later_stage_does_not_train_frozen_weights(tmp_path: Path) -> None:
    start, train = learned(tmp_path, encoder, epochs=1)
    manifest = start.manifest.model_copy(update={"frozen": ("embed.weight",)})
    ctx = stage_context(tmp_path, dataclasses.replace(start, manifest=manifest), train)
    gm = unlift(load_program(start.files[Role.PROGRAM]))
    before = {name: p.detach().clone() for name, p in gm.named_parameters()}
    training.finetune(gm, ctx, epochs=1, batch_size=32, learning_rate=0.01)
    moved = {name for name, p in gm.named_parameters() if not torch.equal(p, before[name])}
    assert "embed.weight" not in moved
    assert "head.weight" in moved
    assert all(p.requires_grad for p in gm.parameters())


@pytest.mark.parametrize("similarity", ["Cosine", "Cka"])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, similarity) -> None:
    start, train = given(tmp_path, encoder), stripes(96, 1)
    settings = {"similarity": similarity, "topK": 2, "finetune": {**TRAINED, "epochs": 1}}
    first = fuse.run(stage_context(tmp_path, start, train, **settings))
    content = first.program.read_bytes()
    again = fuse.run(stage_context(tmp_path, start, train, **settings))
    assert again.program.read_bytes() == content
    assert again.details == first.details


def test_constants_of_a_file_are_shared_without_training(tmp_path: Path) -> None:
    start = only_onnx(given(tmp_path, encoder))
    out = fuse.run(stage_context(tmp_path, start, topK=2))
    assert out.program is None
    saved = 4 * (out.details["parametersBefore"] - out.details["parametersAfter"])
    assert saved > 0
    assert start.files[Role.ONNX].stat().st_size - out.onnx.stat().st_size > 0.95 * saved
    onnx_files.session(out.onnx).run(None, {"image": images(3).inputs["image"]})
    assert any(r"`.pt2`" in w for w in out.warnings)


def test_the_units_of_a_file_are_compared_as_they_are(tmp_path: Path) -> None:
    out = fuse.run(stage_context(tmp_path, only_onnx(made_now(tmp_path, twins))))
    assert all(p["similarity"] < 0.3 for p in out.details["mostSimilar"])


@pytest.mark.parametrize("method", ["Static", "WeightOnly8"])
def test_shared_weights_are_stored_once_after_quantisation(tmp_path: Path, method) -> None:
    start = given(tmp_path, encoder)
    out = fuse.run(stage_context(tmp_path, start, topK=3))
    sizes = []
    for program in (start.files[Role.PROGRAM], out.program):
        file = exported(tmp_path, PassOutput(program=program), start)
        source = artifact(PassOutput(program=program if method == "Static" else None, onnx=file))
        stage = {"name": "int8", "type": "Quantize", "quantize": {"method": method}}
        ctx = context(tmp_path, images(40, seed=1), stage=stage, given=source, train=images(60))
        sizes.append(quantize.run(ctx).onnx.stat().st_size)
    gone = out.details["parametersBefore"] - out.details["parametersAfter"]
    assert sizes[0] - sizes[1] > 0.8 * gone


def test_a_norm_behind_each_layer_is_told(tmp_path: Path) -> None:
    out = fuse.run(stage_context(tmp_path, given(tmp_path, cnn), stripes(96, 1)))
    assert any("BatchNorm" in w for w in out.warnings)


def lonely() -> nn.Module:
    return networks.ImageNetwork(nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 10))


REFUSED = {
    "no equal shapes": (lonely, "program", {}, "fuse.method", "without two layers of equal shape"),
    "no equal shapes in a file": (lonely, "file", {}, "fuse.method", "without two layers of equal shape"),
    "activations of a file": (encoder, "file", {"similarity": "Cka"}, "fuse.similarity", "inside of a program"),
    "training of a file": (encoder, "file", {"finetune": {"epochs": 1}}, "fuse", "was given as ONNX"),
    "training without samples": (encoder, "program", {"finetune": {"epochs": 1}}, "spec.data.train", "nothing"),
}


@pytest.mark.parametrize(("network", "origin", "settings", "field", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_shared_is_refused_by_its_field(tmp_path, network, origin, settings, field, words) -> None:
    start = given(tmp_path, network)
    with pytest.raises(InputError) as refusal:
        fuse.run(stage_context(tmp_path, start if origin == "program" else only_onnx(start), **settings))
    assert field in refusal.value.where
    assert words in refusal.value.found


@pytest.mark.parametrize("origin", ["program", "file"])
def test_a_budget_that_no_pair_keeps_is_refused_with_the_nearest(tmp_path: Path, origin) -> None:
    def net() -> nn.Module:
        return networks.ImageNetwork(
            nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
            nn.Linear(16, 10),
        )  # fmt: skip

    start, train = learned(tmp_path, net)
    with pytest.raises(InputError, match="come nearest") as refusal:
        fuse.run(stage_context(tmp_path, start if origin == "program" else only_onnx(start), train, maxDrop="0.001"))
    assert refusal.value.where.endswith("maxDrop")
