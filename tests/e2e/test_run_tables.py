"""`lathe run` on models for tables, and what the servers answer."""

import numpy as np
import pytest
import tritonclient.http
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from support.projects import Project

from lathe_runtimes.launch import start_lathe

pytestmark = pytest.mark.e2e


@pytest.fixture
def project(tmp_path):
    x, y = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x.astype(np.float32), y, test_size=0.5, random_state=0)
    made = Project(tmp_path / "p", tmp_path / "store")
    made.folder.mkdir()
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(train_x, train_y), 20)
    booster.save_model(made.folder / "model.json")
    made.data("test", x=test_x, y=test_y)
    made.document = {
        "apiVersion": "lathe.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "tumours"},
        "spec": {
            "model": {"uri": "file:model.json", "format": "XGBoost"},
            "data": {"evaluation": {"uri": "test.npz", "inputs": [{"name": "cells", "field": "x"}], "target": "y"}},
            "objective": {"task": "Classification", "metric": "accuracy"},
            "recipe": {"stages": [{"name": "onnx", "type": "Export", "export": {}}]},
            "gates": [{"name": "accuracy", "metric": "accuracy", "min": "0.9"}],
            "targets": [{"name": "cpu", "hardware": "X86Vnni"}],
        },
    }
    return made


def test_a_booster_is_proven_and_served(project):
    (target,) = project.summary()["targets"]
    assert target["state"] == "Built"
    assert target["overall"]["final"] > 0.9
    booster = xgboost.Booster(model_file=project.folder / "model.json")
    with np.load(project.folder / "test.npz") as test:
        x, y = test["x"], test["y"]
    expected = booster.predict(xgboost.DMatrix(x))
    assert np.mean((expected > 0.5) == y) == pytest.approx(target["overall"]["final"], abs=1e-9)
    given = tritonclient.http.InferInput("cells", x.shape, "FP32")
    given.set_data_from_numpy(x)
    with start_lathe(project.folder / "out" / target["repository"], log=project.folder / "log", threads=1) as started:
        server = started.wait_ready(60)
        with tritonclient.http.InferenceServerClient(server.http) as client:
            answer = client.infer("tumours", [given])
    np.testing.assert_allclose(answer.as_numpy("probabilities")[:, 1], expected, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("label"), expected > 0.5)


def test_integers_are_refused_for_trees(project):
    project.change(recipe={"stages": [{"name": "int8", "type": "Quantize", "quantize": {"method": "Dynamic"}}]})
    done = project.run()
    assert done.returncode == 2
    assert "a model without constant float32 matrices" in done.stderr
