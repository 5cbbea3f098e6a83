"""`lathe run` on recipes that fuse: files that are truly smaller, graphs with fewer operators, refusals before harm."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from support.projects import EXPORT, make_project, train

pytestmark = pytest.mark.e2e

ALIKE = {
    "name": "alike",
    "type": "Fuse",
    "fuse": {"method": "SimilarLayers", "similarity": "Cka", "topK": 4, "finetune": {"epochs": 4}},
}
FEWER = {"name": "fewer", "type": "Fuse", "fuse": {"method": "Operators", "operators": ["SkipLayerNorm"]}}
WHOLE = {"name": "whole", "type": "Fuse", "fuse": {"method": "Operators", "operators": ["Attention", "BatchNorm"]}}


@pytest.fixture
def encoder(save_network):
    import torch
    from support import networks

    torch.manual_seed(0)
    network = train(networks.encoder(32, heads=4, layers=3), 6)
    return save_network("fused_encoder", network, torch.rand(2, 1, 16, 16), "image")


def record(project, target, name):
    (stage,) = (s for s in target["stages"] if s["name"] == name)
    return json.loads((project.folder / "out" / stage["record"]).read_text())


def test_layers_that_share_weights_make_a_smaller_file_that_is_still_right(encoder, tmp_path):
    project = make_project(tmp_path / "p", tmp_path / "store", encoder, [ALIKE, EXPORT])
    (target,) = project.summary()["targets"]
    overall = target["overall"]
    assert target["state"] == "Built"
    assert overall["original"] > 0.8
    assert overall["drop"] < 0.05
    assert overall["sizeRatio"] > 1.1
    details = record(project, target, "alike")["details"]
    assert len(details["shared"]) == 4
    file = project.folder / "out" / target["modelFile"]
    read = Counter(name for node in onnx.load(file).graph.node for name in node.input)
    weights = {w.name for w in onnx.load(file).graph.initializer if len(w.dims) > 1}
    assert sum(read[name] - 1 for name in weights) == 4
    with np.load(project.folder / "test.npz") as test:
        answers = onnxruntime.InferenceSession(file).run(None, {"image": test["x"]})[0].argmax(1)
        assert np.mean(answers == test["y"]) == pytest.approx(overall["final"], abs=1e-9)


def test_a_declared_fusion_reaches_the_served_file(encoder, tmp_path):
    project = make_project(tmp_path / "p", tmp_path / "store", encoder, [FEWER, EXPORT])
    (target,) = project.summary()["targets"]
    details = record(project, target, "fewer")["details"]
    kinds = Counter(n.op_type for n in onnx.load(project.folder / "out" / target["modelFile"]).graph.node)
    assert kinds["SkipLayerNormalization"] == details["fused"]["SkipLayerNorm"] > 0
    assert target["overall"]["drop"] == 0


def test_a_declared_fusion_that_matches_nothing_ends_the_run(encoder, tmp_path):
    project = make_project(tmp_path / "p", tmp_path / "store", encoder, [WHOLE, EXPORT])
    done = project.run()
    assert done.returncode != 0
    assert "matches nothing in this model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_that_needs_a_program_after_one_that_leaves_none_is_refused_before_work(encoder, tmp_path):
    project = make_project(tmp_path / "p", tmp_path / "store", encoder, [FEWER, ALIKE, EXPORT])
    done = project.run()
    assert done.returncode == 2
    assert "move alike before fewer" in done.stderr
    assert not project.store.exists()
