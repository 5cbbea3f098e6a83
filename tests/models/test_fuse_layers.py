"""Fuse by SimilarLayers: who shares with whom, that the file shrinks, what it costs, what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import networks
from support.data import digits, part
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
    assert before - file.stat().st_size > 0.95 * saved
    readers = [name for node in onnx.load(file).graph.node for name in node.input]
    stored = {w.name for w in onnx.load(file).graph.initializer if len(w.dims) > 1}
    assert max(readers.count(name) for name in stored) >= 2
    assert len(details["randomPairs"]["quality"]) == 3
