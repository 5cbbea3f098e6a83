"""Bad input: a clear error that names the field or file, and nothing half-written."""

import hashlib
import socket
import subprocess

import numpy as np
import pytest
from support.projects import EXPORT, PRUNE, STATIC, images, make_project, train

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def trained_mlp(save_network):
    import torch
    from support.networks import mlp

    torch.manual_seed(0)
    return save_network("trained_mlp", train(mlp(width=32)), torch.rand(2, 1, 16, 16), "image")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def project(tmp_path, shared_store, trained_mlp):
    return make_project(tmp_path / "project", shared_store, trained_mlp, [STATIC, EXPORT])


def missing_model(p):
    (p.folder / "model.pt2").unlink()


def wrong_digest(p):
    p.change(model={"uri": "file:model.pt2", "format": "Pt2", "digest": "sha256:" + "0" * 64})


def not_an_archive(p):
    (p.folder / "model.pt2").write_bytes(b"not a zip file at all")


def train_data(**arrays):
    def change(p):
        x, y = images(400, 1)
        p.data("train", **{"x": x, "y": y} | {k: f(x, y) for k, f in arrays.items()})

    return change


def test_data(**arrays):
    def change(p):
        x, y = images(300, 2)
        p.data("test", **{"x": x, "y": y} | {k: f(x, y) for k, f in arrays.items()})

    return change


test_data.__test__ = False


def with_nan(x, y):
    x = x.copy()
    x[5, 0, 3, 3] = np.nan
    return x


def spec(**changes):
    return lambda p: p.change(**changes)


def stages(*items):
    return spec(recipe={"stages": list(items)})


def without_field(p):
    x, _ = images(300, 2)
    p.data("test", x=x)


def empty_calibration(p):
    x, y = images(8, 1)
    p.data("calibration", x=x[:0], y=y[:0])
    data = p.document["spec"]["data"]
    data["calibration"] = {
        "source": {"uri": "calibration.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}
    }
    p.change(data=data)


def wrong_input_name(p):
    data = p.document["spec"]["data"]
    for name in ("train", "evaluation"):
        data[name]["inputs"] = [{"name": "picture", "field": "x"}]
    p.change(data=data)


def pickled_data(p):
    x, _ = images(300, 2)
    np.savez(p.folder / "test.npz", x=x, y=np.array([{"a": 1}] * 300, dtype=object))


REFUSALS = {
    "missing model file": (missing_model, ["spec.model", "model.pt2"]),
    "wrong digest": (wrong_digest, ["spec.model.digest", "sha256:"]),
    "model is no archive": (not_an_archive, ["model.pt2"]),
    "missing data file": (lambda p: (p.folder / "test.npz").unlink(), ["spec.data.evaluation", "test.npz"]),
    "missing array": (without_field, ["spec.data.evaluation.target", "y"]),
    "pickled array": (pickled_data, ["spec.data.evaluation", "test.npz"]),
    "data of another type": (
        test_data(x=lambda x, y: x.astype(np.float64)),
        ["spec.data.evaluation", "float64", "float32"],
    ),
    "data of another shape": (
        test_data(x=lambda x, y: x[:, :, :8]),
        ["spec.data.evaluation", "8", "16"],
    ),
    "unequal lengths": (test_data(y=lambda x, y: y[:-1]), ["spec.data.evaluation", "300", "299"]),
    "label out of range": (test_data(y=lambda x, y: np.where(y == 3, 10, y)), ["spec.data.evaluation.target", "10"]),
    "negative label": (test_data(y=lambda x, y: y - 1), ["spec.data.evaluation.target", "-1"]),
    "fractional label": (test_data(y=lambda x, y: y + 0.5), ["spec.data.evaluation.target", "float"]),
    "NaN in evaluation data": (test_data(x=with_nan), ["spec.data.evaluation", "NaN", "5"]),
    "NaN in training data": (train_data(x=with_nan), ["spec.data.train", "NaN"]),
    "empty calibration set": (empty_calibration, ["spec.data.calibration", "0"]),
    "unknown input name": (wrong_input_name, ["picture", "image"]),
    "unknown stage field": (
        stages(PRUNE | {"prune": PRUNE["prune"] | {"parametres": "0.3"}}),
        ["model.yaml:", "spec.recipe.stages[0].prune.parametres", "parameters"],
    ),
    "stages in an impossible order": (stages(STATIC, PRUNE, EXPORT), ["spec.recipe.stages[1]", "before"]),
    "stage that is not built": (
        stages({"name": "p", "type": "Prune", "prune": {"method": "StructuredMagnitude", "latency": "0.5"}}),
        ["spec.recipe.stages[0].prune.latency", "not available"],
    ),
    "number without quotes": (
        spec(gates=[{"name": "size", "metric": "sizeRatio", "min": 3.5}]),
        ["spec.gates[0].min", '"3.5"'],
    ),
    "two targets of one name": (
        spec(targets=[{"name": "cpu", "hardware": "X86Vnni"}] * 2),
        ["spec.targets", "cpu"],
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSALS.values(), ids=REFUSALS)
def test_bad_input_is_refused_by_name_and_leaves_nothing(project, change, words):
    change(project)
    before = project.left
    done = project.run()
    assert done.returncode == 2, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert project.left == before


def test_an_earlier_result_stays_when_a_later_run_is_refused(project):
    digest = hashlib.sha256((project.folder / "model.pt2").read_bytes()).hexdigest()
    project.change(model={"uri": "file:model.pt2", "format": "Pt2", "digest": f"sha256:{digest}"})
    first = project.summary()
    wrong_digest(project)
    assert project.run().returncode == 2
    assert str(first["revision"]) in (project.folder / "out" / "summary.json").read_text()


def test_a_folder_with_something_else_is_not_replaced(project):
    (project.folder / "out").mkdir()
    (project.folder / "out" / "thesis.tex").write_text("years of work")
    done = project.run()
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert (project.folder / "out" / "thesis.tex").read_text() == "years of work"


def test_a_taken_port_is_told_before_any_work(project, tmp_path):
    project.store = tmp_path / "untouched"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = project.run("--serve", "lathe", "--http-port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "--http-port" in done.stderr
    assert not project.store.exists()


def test_a_full_disk_is_told_and_leaves_nothing(project, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting a small file system needs privileges that this process lacks")
    try:
        project.store = disk / "store"
        done = project.run()
        assert done.returncode == 1
        assert "no space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert "out" not in project.left
        assert not [p for p in disk.rglob("*") if p.is_file() and "locks" not in p.parts]
    finally:
        subprocess.run(["umount", disk], check=True)


ACCURACY = {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.02"}


def test_a_failed_gate_exits_3_names_the_stage_and_says_what_to_try(project):
    project.change(gates=[{"name": "size", "metric": "sizeRatio", "min": "100"}])
    summary = project.summary(status=3)
    assert summary["verdict"] == "Failed"
    (gate,) = summary["targets"][0]["gates"]
    assert (gate["verdict"], gate["stage"]) == ("Failed", "onnx")
    assert gate["remedy"]
    assert summary["targets"][0]["artifact"] is None
    done = project.run()
    assert done.returncode == 3
    text = " ".join((done.stdout + done.stderr).split())
    assert "onnx" in text
    assert "size" in text


def test_too_few_samples_are_inconclusive_and_never_passed(project):
    x, y = images(30, 2)
    project.data("test", x=x, y=y)
    project.change(gates=[ACCURACY | {"minSamples": 10}])
    summary = project.summary(status=4)
    (gate,) = summary["targets"][0]["gates"]
    assert gate["verdict"] == "Inconclusive"
    assert "30" in gate["reason"]
    assert summary["verdict"] == "Inconclusive"


def test_fewer_samples_than_the_gate_wants_are_inconclusive(project):
    project.change(gates=[ACCURACY | {"minSamples": 301}])
    assert project.summary(status=4)["targets"][0]["gates"][0]["verdict"] == "Inconclusive"


def test_an_inconclusive_gate_may_be_told_to_go_on(project):
    project.change(gates=[ACCURACY | {"minSamples": 301, "onInconclusive": "Continue"}])
    assert project.summary()["targets"][0]["state"] == "Built"


def test_a_stage_over_its_memory_limit_is_stopped_and_named(project, tmp_path):
    project.store = tmp_path / "memory-store"
    project.change(recipe={"stages": [STATIC | {"resources": {"memory": "64Mi"}}, EXPORT]})
    done = project.run()
    assert done.returncode == 1
    assert "stage int8" in done.stderr
    assert "64 MiB" in done.stderr


def test_a_stage_over_its_time_budget_is_stopped_and_named(project, tmp_path):
    project.store = tmp_path / "time-store"
    project.change(recipe={"stages": [STATIC | {"timeout": "100ms"}, EXPORT]})
    done = project.run()
    assert done.returncode == 1
    assert "stage int8" in done.stderr
    assert "0.1 s" in done.stderr
