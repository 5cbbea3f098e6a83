"""Import of models for tables: agreement with the framework, and what is refused."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from support.passing import Arrays, artifact, context

from lathe_api.data import Metric, ModelFormat, Objective, Task
from lathe_optimizers.context import PassContext
from lathe_optimizers.errors import InputError, UnsafeFileError
from lathe_optimizers.passes import import_model, onnx_files, parity, quantize

pytestmark = pytest.mark.models

SETS = {
    "two classes": load_breast_cancer(return_X_y=True),
    "ten classes": load_digits(return_X_y=True),
    "values": load_diabetes(return_X_y=True),
}


def table(name: str) -> tuple[Any, Any]:
    x, y = SETS[name]
    return x.astype(np.float32), y


def give(folder: Path, name: str, source: Path, model_format: ModelFormat) -> PassContext:
    x, y = table(name)
    made = context(folder, Arrays({"features": x[:200]}, y[:200]), source=source, model_format=model_format)
    if name != "values":
        return made
    return dataclasses.replace(made, objective=Objective(task=Task.REGRESSION, metric=Metric.RMSE))


def sklearn_file(folder: Path, estimator: Any, name: str) -> Path:
    estimator.fit(*table(name))
    skops.io.dump(estimator, folder / "model.skops")
    return folder / "model.skops"


ESTIMATORS = {
    "scaled logistic regression": (make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)), "two classes"),
    "components": (make_pipeline(StandardScaler(), PCA(8), LogisticRegression(max_iter=300)), "ten classes"),
    "random forest": (RandomForestClassifier(10, random_state=0), "ten classes"),
    "boosted trees": (GradientBoostingClassifier(n_estimators=5, random_state=0), "two classes"),
    "decision values": (make_pipeline(StandardScaler(), RidgeClassifier()), "two classes"),
    "multilayer perceptron": (
        make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=30, random_state=0)), "ten classes"
    ),
    "linear regression": (Ridge(), "values"),
    "boosted regression": (HistGradientBoostingRegressor(max_iter=10), "values"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("estimator", "name"), ESTIMATORS.values(), ids=ESTIMATORS)
def test_an_estimator_answers_as_in_scikit_learn(tmp_path: Path, estimator: Any, name: str) -> None:
    source = sklearn_file(tmp_path, estimator, name)
    out = import_model.run(give(tmp_path, name, source, ModelFormat.SKLEARN))
    assert out.onnx is not None
    x = table(name)[0][200:400]
    answers = parity.onnx_answers(out.onnx, (x,))[0]
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(answers, estimator.predict_proba(x), atol=1e-4)
    elif name == "values":
        np.testing.assert_allclose(answers[:, 0], estimator.predict(x), rtol=1e-4)
    else:
        np.testing.assert_array_equal(answers[:, 0] > 0, estimator.predict(x))
    assert out.details["framework"].startswith("scikit-learn ")


def train_xgboost(folder: Path, name: str, **settings: Any) -> tuple[Path, Any]:
    x, y = table(name)
    booster = xgboost.train({"max_depth": 3, "nthread": 2, **settings}, xgboost.DMatrix(x, y), 10)
    booster.save_model(folder / "model.json")
    return folder / "model.json", booster


BOOSTED = {
    "two classes": {"objective": "binary:logistic"},
    "ten classes": {"objective": "multi:softprob", "num_class": 10},
    "values": {"objective": "reg:squarederror"},
}


@pytest.mark.parametrize("name", BOOSTED)
def test_a_booster_of_xgboost_answers_as_before(tmp_path: Path, name: str) -> None:
    source, booster = train_xgboost(tmp_path, name, **BOOSTED[name])
    out = import_model.run(give(tmp_path, name, source, ModelFormat.XGBOOST))
    assert out.onnx is not None
    x = table(name)[0][200:400]
    expected = booster.predict(xgboost.DMatrix(x))
    answers = parity.onnx_answers(out.onnx, (x,))[0]
    np.testing.assert_allclose(answers[:, -1] if expected.ndim == 1 else answers, expected, rtol=1e-4, atol=1e-5)


def test_a_booster_that_answers_labels_gives_scores(tmp_path: Path) -> None:
    source, booster = train_xgboost(tmp_path, "ten classes", objective="multi:softmax", num_class=10)
    out = import_model.run(give(tmp_path, "ten classes", source, ModelFormat.XGBOOST))
    assert out.onnx is not None
    x = table("ten classes")[0][200:400]
    np.testing.assert_array_equal(parity.onnx_answers(out.onnx, (x,))[0].argmax(1), booster.predict(xgboost.DMatrix(x)))


LIGHT = {
    "two classes": {"objective": "binary"},
    "ten classes": {"objective": "multiclass", "num_class": 10},
    "values": {"objective": "regression"},
}


@pytest.mark.parametrize("name", LIGHT)
def test_a_booster_of_lightgbm_answers_as_before(tmp_path: Path, name: str) -> None:
    x, y = table(name)
    booster = lightgbm.train({"verbosity": -1, "num_threads": 2, **LIGHT[name]}, lightgbm.Dataset(x, y), 10)
    booster.save_model(tmp_path / "model.txt")
    out = import_model.run(give(tmp_path, name, tmp_path / "model.txt", ModelFormat.LIGHTGBM))
    assert out.onnx is not None
    expected = booster.predict(x[200:400])
    answers = parity.onnx_answers(out.onnx, (x[200:400],))[0]
    np.testing.assert_allclose(answers[:, -1] if expected.ndim == 1 else answers, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_perceptron_of_scikit_learn_is_quantised(tmp_path: Path) -> None:
    source = sklearn_file(tmp_path, *ESTIMATORS["multilayer perceptron"])
    ctx = give(tmp_path, "ten classes", source, ModelFormat.SKLEARN)
    start = artifact(import_model.run(ctx))
    stage = {"name": "int8", "type": "Quantize", "quantize": {"method": "Dynamic"}}
    x, y = table("ten classes")
    out = quantize.run(context(tmp_path, Arrays({"features": x[:200]}, y[:200]), stage=stage, given=start))
    assert out.onnx is not None
    before, after = (parity.onnx_answers(p, (x,))[0].argmax(1) for p in (start.files["onnx"], out.onnx))
    assert np.mean(before == after) > 0.97
    assert onnx_files.read_signature(out.onnx).outputs[0].shape[0] == -1


def damaged(folder: Path) -> Path:
    path = folder / "model.skops"
    path.write_bytes(b"no archive")
    return path


def of_other_types(folder: Path) -> Path:
    path = sklearn_file(folder, Ridge(), "values")
    with zipfile.ZipFile(path) as archive:
        content = {n: archive.read(n) for n in archive.namelist()}
    schema = json.loads(content["schema.json"])
    schema["__module__"], schema["__class__"] = "subprocess", "Popen"
    content["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def of_words(folder: Path) -> Path:
    x, y = table("two classes")
    words = np.array(["benign", "malign"])[y]
    skops.io.dump(LogisticRegression().fit(StandardScaler().fit_transform(x), words), folder / "model.skops")
    return folder / "model.skops"


def of_a_broken_tree(folder: Path) -> Path:
    tree = DecisionTreeClassifier(max_depth=3).fit(*table("two classes"))
    state = tree.tree_.__getstate__()
    state["nodes"]["left_child"][0] = 10_000
    tree.tree_.__setstate__(state)
    skops.io.dump(tree, folder / "model.skops")
    return folder / "model.skops"


def of_more_features(folder: Path) -> Path:
    return sklearn_file(folder, LogisticRegression(max_iter=20), "ten classes")


REFUSED = {
    "no skops file": (damaged, "two classes", InputError, "not a skops file"),
    "types of other libraries": (of_other_types, "values", UnsafeFileError, "subprocess.Popen"),
    "labels that are words": (of_words, "two classes", InputError, "labels benign, malign.*LabelEncoder"),
    "a tree that leads outside": (of_a_broken_tree, "two classes", UnsafeFileError, "nodes lead outside"),
    "another task": (of_words, "values", InputError, "LogisticRegression for the task Regression"),
    "other features": (of_more_features, "two classes", InputError, "holds 30 features.*takes 64"),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("make", "name", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trusted_or_does_not_fit_is_refused(tmp_path: Path, make, name, error, message) -> None:
    with pytest.raises(error, match=message):
        import_model.run(give(tmp_path, name, make(tmp_path), ModelFormat.SKLEARN))


@pytest.mark.parametrize("model_format", [ModelFormat.XGBOOST, ModelFormat.LIGHTGBM])
def test_a_damaged_booster_is_refused(tmp_path: Path, model_format: ModelFormat) -> None:
    (tmp_path / "model").write_text('{"no": "model"}')
    with pytest.raises(InputError, match="not a model of"):
        import_model.run(give(tmp_path, "two classes", tmp_path / "model", model_format))


def test_a_booster_of_another_task_is_refused(tmp_path: Path) -> None:
    source, _ = train_xgboost(tmp_path, "two classes", **BOOSTED["two classes"])
    with pytest.raises(InputError, match="binary:logistic"):
        import_model.run(give(tmp_path, "values", source, ModelFormat.XGBOOST))


def test_data_of_other_types_is_refused_by_its_field(tmp_path: Path) -> None:
    source = sklearn_file(tmp_path, Ridge(), "values")
    x, y = SETS["values"]
    with pytest.raises(InputError, match=r"spec\.data\.evaluation\.inputs.*float64.*type float32"):
        import_model.run(context(tmp_path, Arrays({"features": x}, y), source=source, model_format=ModelFormat.SKLEARN))
