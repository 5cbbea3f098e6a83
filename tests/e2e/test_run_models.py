"""`lathe run` on kinds of models that nothing in it is made for."""

import numpy as np
import onnxruntime
import pytest
from support.projects import EXPORT, STATIC, images, make_project, train

pytestmark = pytest.mark.e2e

DISTILL = {
    "name": "student",
    "type": "Distill",
    "distill": {
        "student": {"from": "Teacher", "width": "0.75"},
        "losses": [{"type": "Response"}, {"type": "Feature", "weight": "0.1"}],
        "epochs": 12,
    },
}
PRUNE = {
    "name": "slim",
    "type": "Prune",
    "prune": {"method": "StructuredMagnitude", "parameters": "0.2", "roundTo": 4, "finetune": {"epochs": 8}},
}
QAT = {"name": "int8", "type": "Quantize", "quantize": {"method": "QuantizationAware", "epochs": 3}}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def pt2(save_network, name, epochs):
    import torch
    from support import networks

    torch.manual_seed(0)
    return save_network(name, train(getattr(networks, name)(), epochs), torch.rand(2, 1, 16, 16), "image")


@pytest.mark.parametrize(("name", "epochs"), [("encoder", 6), ("mlp", 4)])
def test_the_whole_recipe_works_on(name, epochs, save_network, tmp_path, store):
    project = make_project(tmp_path / "p", store, pt2(save_network, name, epochs), [DISTILL, PRUNE, QAT, EXPORT])
    (target,) = project.summary()["targets"]
    overall = target["overall"]
    assert target["state"] == "Built"
    assert overall["original"] > 0.8
    assert overall["drop"] < 0.1
    assert overall["sizeRatio"] > 2
    assert overall["int8Coverage"] == 1.0


@pytest.mark.filterwarnings("default::FutureWarning")  # of torch's exporter, about torch
def test_a_given_onnx_file_is_quantised_and_served(save_network, tmp_path, store):
    import torch
    from support.networks import export_program, plain_cnn

    torch.manual_seed(0)
    network = train(plain_cnn())
    project = make_project(tmp_path / "p", store, save_network("plain", network, torch.rand(2, 1, 16, 16), "image"), [])
    program = export_program(network, torch.rand(2, 1, 16, 16), "image")
    torch.onnx.export(program, dynamo=True, input_names=["image"], verbose=False).save(project.folder / "model.onnx")
    project.change(model={"uri": "model.onnx", "format": "Onnx"}, recipe={"stages": [STATIC, EXPORT]})
    (target,) = project.summary()["targets"]
    assert target["state"] == "Built"
    assert target["overall"]["int8Coverage"] == 1.0
    assert target["overall"]["sizeRatio"] > 2

    project.change(recipe={"stages": [PRUNE, EXPORT]})
    done = project.run()
    assert done.returncode == 2
    assert "Pt2" in done.stderr or ".pt2" in done.stderr


def test_a_regression_model_is_judged_by_its_error(save_network, tmp_path, store):
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, _ = images(600, 7)
    weights = np.random.default_rng(0).standard_normal((256, 2)).astype(np.float32) / 16
    y = x.reshape(len(x), -1) @ weights

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2))

        def forward(self, image):
            return self.body(image)

    network = Net()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        loss = nn.functional.mse_loss(network(torch.from_numpy(x)), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = save_network("regression", network.eval(), torch.rand(2, 1, 16, 16), "image")
    project = make_project(tmp_path / "p", store, model, [QAT])
    for name, count, seed in (("train", 400, 1), ("test", 300, 2)):
        inputs, _ = images(count, seed)
        project.data(name, x=inputs, y=inputs.reshape(count, -1) @ weights)
    project.change(
        objective={"task": "Regression", "metric": "rmse"},
        gates=[{"name": "error", "metric": "rmse", "maxDrop": "0.5", "dropType": "Relative"}],
    )
    summary = project.summary()
    (target,) = summary["targets"]
    assert [s["name"] for s in target["stages"]] == ["import", "int8", "export"]
    assert [(g["gate"], g["verdict"]) for g in target["gates"]] == [("error", "Passed")]
    session = onnxruntime.InferenceSession(project.folder / "out" / target["modelFile"])
    assert [i.name for i in session.get_inputs()] == ["image"]
