"""Prune of single weights: what is zero, what it costs, that it stays zero."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support import networks
from support.passing import artifact, context, images, stripes
from support.quantising import given, only_onnx
from torch import nn

from lathe_optimizers.context import PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import onnx_files, prune, quantize, training
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.programs import load_program, reexport, save_program, set_training, unlift
from lathe_optimizers.passes.prune_weights import weights_of

pytestmark = pytest.mark.models

TRAINED = {"epochs": 2, "learningRate": "0.003", "batchSize": 32}


def cnn() -> nn.Module:
    return networks.plain_cnn(8)


def encoder() -> nn.Module:
    return networks.encoder(16, heads=2, layers=1)


def stage_context(folder: Path, start, train=None, **settings) -> PassContext:
    stage = {"name": "sparse", "type": "Prune", "prune": settings}
    return context(folder, stripes(100, 2), stage=stage, given=start, train=train)


def zeros(out: PassOutput) -> dict[str, float]:
    assert out.program is not None
    gm = unlift(load_program(out.program))
    return {name: float((tensor_at(gm, name) == 0).float().mean()) for name in weights_of(gm)}


METHODS = {
    "by magnitude": {"method": "MagnitudeUnstructured", "sparsity": "0.75"},
    "at random": {"method": "RandomUnstructured", "sparsity": "0.5"},
    "all compete": {"method": "GlobalMagnitude", "sparsity": "0.6"},
    "two of four": {"method": "NM", "pattern": "2:4"},
}


@pytest.mark.parametrize("trained", [False, True], ids=["at once", "in training"])
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("network", [cnn, encoder])
def test_the_share_that_is_asked_for_is_zero(tmp_path: Path, network, settings, trained) -> None:
    start = given(tmp_path, network)
    ctx = stage_context(tmp_path, start, stripes(96, 1), **settings, **({"finetune": TRAINED} if trained else {}))
    out = prune.run(ctx)
    found = zeros(out)
    assert len(found) > 3
    wanted = float(settings.get("sparsity", 0.5))
    if settings["method"] == "NM":
        # The first layer of the CNN has one input: it fills no block.
        assert sorted(set(np.round(list(found.values()), 2))) in ([0.0, 0.5], [0.5])
    else:
        assert out.details["zeros"] == pytest.approx(wanted, abs=0.01)
    if settings["method"] in ("MagnitudeUnstructured", "RandomUnstructured"):
        assert all(share == pytest.approx(wanted, abs=0.02) for share in found.values())
    assert any("Zeros do not make ONNX Runtime faster" in w for w in out.warnings)


def learned(folder: Path):
    """A network that knows the stripes."""
    start = given(folder, cnn)
    train = stripes(640, 1)
    ctx = stage_context(folder, start, train, **METHODS["by magnitude"])
    program = load_program(start.files["program"])
    gm = unlift(program)
    set_training(gm, on=True)
    loss = training.task_loss(ctx.objective.task)
    training.fit(gm, train, loss, training.FitOptions(10, 32, 0.01), slot="t", ctx=ctx)
    set_training(gm, on=False)
    save_program(reexport(gm, program), start.files["program"])
    return start, train, ctx.data.evaluation


def test_training_little_by_little_loses_less_than_at_once(tmp_path: Path) -> None:
    start, train, test = learned(tmp_path)
    settings = {"method": "MagnitudeUnstructured", "sparsity": "0.85"}
    finetune = {"epochs": 6, "learningRate": "0.01", "batchSize": 32}

    def quality(**more) -> float:
        ctx = stage_context(tmp_path, start, train, **settings, **more)
        return training.evaluate(unlift(load_program(prune.run(ctx).program)), test, ctx.objective)

    once, slowly = quality(), quality(finetune=finetune)
    assert slowly > 0.9
    assert slowly > once + 0.2


class KilledError(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("settings", [METHODS["by magnitude"], METHODS["two of four"], METHODS["at random"]])
def test_a_training_that_was_killed_ends_in_the_same_weights(tmp_path: Path, settings) -> None:
    start = given(tmp_path, cnn)
    settings = {**settings, "finetune": {**TRAINED, "epochs": 3}}
    expected = prune.run(stage_context(tmp_path, start, stripes(96, 1), **settings)).program.read_bytes()
    ctx = stage_context(tmp_path, start, stripes(96, 1), **settings)

    def die_in_epoch_two(progress) -> None:
        if progress.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        prune.run(dataclasses.replace(ctx, report=die_in_epoch_two))
    assert prune.run(ctx).program.read_bytes() == expected


def test_zeros_outlive_quantisation_with_training(tmp_path: Path) -> None:
    sparse = prune.run(stage_context(tmp_path, given(tmp_path, cnn), **METHODS["by magnitude"]))
    program = load_program(sparse.program)
    onnx_files.to_onnx(program, tmp_path / "sparse.onnx", opset=20, input_names=["image"])
    start = artifact(PassOutput(program=sparse.program, onnx=tmp_path / "sparse.onnx"))
    stage = {"name": "int8", "type": "Quantize", "quantize": {"method": "QuantizationAware", "epochs": 1}}
    train = images(64)
    ctx = context(tmp_path, images(40, seed=1), stage=stage, given=start, train=train)
    ctx = dataclasses.replace(ctx, data=dataclasses.replace(ctx.data, calibration=train))
    out = quantize.run(ctx)
    weights = [numpy_helper.to_array(w) for w in onnx.load(out.onnx).graph.initializer if len(w.dims) > 1]
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights)
    assert share > 0.74


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_an_onnx_file_is_pruned_without_training(tmp_path: Path, settings) -> None:
    start = only_onnx(given(tmp_path, encoder))
    out = prune.run(stage_context(tmp_path, start, **settings))
    assert out.program is None
    assert out.details["zeros"] == pytest.approx(float(settings.get("sparsity", 0.5)), abs=0.01)
    elements, found = onnx_files.weight_counts(out.onnx)
    assert found > 0.3 * elements


def test_training_needs_a_program(tmp_path: Path) -> None:
    start = only_onnx(given(tmp_path, cnn))
    ctx = stage_context(tmp_path, start, stripes(64, 1), **METHODS["by magnitude"], finetune=TRAINED)
    with pytest.raises(InputError, match=r"\.pt2"):
        prune.run(ctx)


def test_inputs_of_an_onnx_product_are_blocked_along_the_sum(tmp_path: Path) -> None:
    out = prune.run(stage_context(tmp_path, only_onnx(given(tmp_path, encoder)), **METHODS["two of four"]))
    model = onnx.load(out.onnx)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    checked = 0
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            blocks = (weights[node.input[1]] != 0).T.reshape(-1, 4)
            assert (blocks.sum(1) == 2).all()
            checked += 1
    assert checked


def test_the_graph_stays_trainable_afterwards(tmp_path: Path) -> None:
    out = prune.run(stage_context(tmp_path, given(tmp_path, cnn), **METHODS["all compete"]))
    again = prune.run(
        stage_context(
            tmp_path, artifact(dataclasses.replace(out, onnx=given(tmp_path, cnn).files["onnx"])), stripes(96, 1),
            method="StructuredMagnitude", parameters="0.2", roundTo=4,
        )
    )  # fmt: skip
    assert again.program is not None
    assert torch.isfinite(next(unlift(load_program(again.program)).parameters())).all()
