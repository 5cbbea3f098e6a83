"""`lathe explain` and `lathe reproduce` as a user types them."""

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from support.projects import EXPORT, make_project

from lathe_runtimes.errors import StartError
from lathe_runtimes.launch import start_lathe
from lathe_runtimes.provenance import ENVELOPE

pytestmark = pytest.mark.e2e

GATES = [
    {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.02"},
    {"name": "sites", "metric": "worstSliceDrop", "maxDrop": "0.2", "minSamples": 10},
    {"name": "calibration", "metric": "ece", "maxDrop": "0.01"},
]


def lathe(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lathe_cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def network(save_network):
    import torch
    from support.networks import residual_cnn

    torch.manual_seed(0)
    return save_network("evidence_cnn", residual_cnn(width=8).eval(), torch.rand(2, 1, 16, 16), "image")


@pytest.fixture
def project(tmp_path, network):
    project = make_project(tmp_path / "project", tmp_path / "store", network, [EXPORT])
    with np.load(project.folder / "test.npz") as test:
        project.data("test", x=test["x"], y=test["y"], site=np.arange(len(test["y"])) % 3)
    project.change(gates=GATES, data=project.document["spec"]["data"] | {"slices": "site"})
    return project


def test_a_miss_names_what_changed_and_a_hit_says_so(project):
    first = project.summary()
    out = project.folder / "out"
    told = lathe("explain", out, "onnx")
    assert told.returncode == 0, told.stderr
    assert "miss:" in told.stdout
    assert "no earlier stage of this type" in told.stdout
    assert "gate sites: Passed" in told.stdout
    assert "of 3 slices" in told.stdout
    assert "gate calibration: Passed" in told.stdout
    measured = first["targets"][0]["stages"][-1]["metrics"]
    assert 0 < measured["compressedBytes"] < measured["sizeBytes"]
    assert measured["sessionBytes"] > 0
    assert 0 <= measured["calibrationError"]["value"] <= 1

    project.summary()
    assert "hit: all parts of the key" in lathe("explain", out, "onnx").stdout

    project.summary("--seed", "5")
    told = lathe("explain", out, "onnx").stdout
    assert "nearest earlier result: stage onnx, finished" in told
    assert "  seed: was 0, is 5" in told
    (key,) = [s["key"] for s in first["targets"][0]["stages"] if s["name"] == "onnx"]
    by_key = lathe("explain", key, "--store", project.store)
    assert f"stage onnx (Export), key {key}" in by_key.stdout


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nowhere", "onnx"], "no summary that this version reads"),
        (["sha256:" + "0" * 64, "--store", "empty"], "has no stage"),
    ],
    ids=["no run", "no key"],
)
@pytest.mark.parametrize("command", ["explain", "reproduce"])
def test_what_is_not_there_is_told(tmp_path, command, arguments, wanted):
    done = lathe(command, *(tmp_path / a if a in {"nowhere", "empty"} else a for a in arguments))
    assert done.returncode == 2
    assert wanted in done.stderr


def test_a_stage_gives_the_same_bytes_again_and_a_changed_record_is_noticed(project):
    summary = project.summary()
    out = project.folder / "out"
    same = lathe("reproduce", out, "onnx")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "the same bytes" in same.stdout

    (key,) = [s["key"] for s in summary["targets"][0]["stages"] if s["name"] == "onnx"]
    path = project.store / "stages" / key.removeprefix("sha256:") / "stage.json"
    record = json.loads(path.read_text())
    files = record["artifact"]["files"]
    files["onnx"] = files["predictions"]
    path.write_text(json.dumps(record))
    different = lathe("reproduce", key, "--store", project.store)
    assert different.returncode == 3
    assert "DIFFERENT" in different.stdout


@pytest.fixture
def keys(tmp_path):
    """Files of a private key, its public key, and another public key."""
    found = []
    for name in ("own", "other"):
        key = ed25519.Ed25519PrivateKey.generate()
        pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(pem, pkcs8, none))
        public.write_bytes(key.public_key().public_bytes(pem, spki))
        found += [private, public]
    return found[0], found[1], found[3]


def test_a_signed_run_is_verified_and_served_and_a_changed_one_is_not(project, keys):
    private, public, other = keys
    summary = project.summary("--signing-key", str(private))
    out = project.folder / "out"
    repository = out / summary["targets"][0]["repository"]
    fine = lathe("verify", out, "--key", public)
    assert fine.returncode == 0, fine.stderr
    assert "2 files as signed" in fine.stdout
    served = lathe("serve", out, "--verify-key", public, "--serve-seconds", 1)
    assert served.returncode == 0, served.stderr
    for command in (("verify", out, "--key", other), ("serve", out, "--verify-key", other, "--serve-seconds", 1)):
        refused = lathe(*command)
        assert refused.returncode == 1
        assert "no valid signature of the key" in refused.stderr

    content = json.loads(base64.b64decode(json.loads((repository / "patterns" / ENVELOPE).read_text())["payload"]))
    build, details = (content["predicate"][k] for k in ("buildDefinition", "runDetails"))
    assert build["externalParameters"]["document"]["metadata"]["name"] == "patterns"
    assert {d["name"] for d in build["resolvedDependencies"]} >= {"spec.model", "spec.data.evaluation"}
    assert build["internalParameters"]["versions"]["onnxruntime"]
    verdicts = details["byproducts"][-1]["annotations"]["verdicts"]
    assert [v["gate"] for v in verdicts] == ["accuracy", "sites", "calibration"]

    record = out / summary["targets"][0]["stages"][-1]["record"]
    text = record.read_text()
    record.write_text(text.replace("Export", "Prune"))
    assert "was changed" in lathe("verify", out, "--key", public).stderr
    record.write_text(text)
    config = repository / "patterns" / "config.pbtxt"
    config.write_text(config.read_text() + "\n")
    with start_lathe(repository, verify_key=public) as server, pytest.raises(StartError, match="was changed"):
        server.wait_ready()


def test_a_run_that_is_not_signed_is_not_served_where_a_signature_is_asked_for(project, keys):
    summary = project.summary()
    repository = project.folder / "out" / summary["targets"][0]["repository"]
    assert "not signed" in lathe("verify", project.folder / "out", "--key", keys[1]).stderr
    with start_lathe(repository, verify_key=keys[1]) as server, pytest.raises(StartError, match="not signed"):
        server.wait_ready()


def test_a_key_that_cannot_be_used_is_told_before_the_work(project, keys):
    done = project.run("--signing-key", str(keys[1]))
    assert done.returncode == 2
    assert "--signing-key" in done.stderr
    assert not (project.folder / "out").exists()
