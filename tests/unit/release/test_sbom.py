"""The bill of materials lists what the lock file installs, with the digests of its files."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "hack" / "sbom.py"


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(bill):
    return {c["name"] for c in bill["components"]}


def test_an_extra_brings_its_packages_and_no_others(sbom):
    lock = (ROOT / "uv.lock").read_bytes()
    runtimes, operator = sbom.bill(lock, ["runtimes"]), sbom.bill(lock, ["operator"])
    assert {"cryptography", "cffi", "onnxruntime", "pydantic", "grpcio"} <= names(runtimes)
    assert not names(runtimes) & {"torch", "kopf", "pytest", "ruff"}
    assert {"kopf", "kubernetes"} <= names(operator)
    assert {"torch", "rich"} <= names(sbom.bill(lock, ["all"]))


def test_versions_and_digests_are_those_of_the_lock(sbom):
    lock = (ROOT / "uv.lock").read_bytes()
    locked = {(p["name"], p["version"]): p for p in tomllib.loads(lock.decode())["package"]}
    for component in sbom.bill(lock, ["all"])["components"]:
        package = locked[component["name"], component["version"]]
        assert component["purl"] == f"pkg:pypi/{package['name']}@{package['version']}"
        hashes = {h["content"] for r in component["externalReferences"] for h in r["hashes"]}
        assert hashes == {
            w["hash"].removeprefix("sha256:") for w in [*package.get("wheels", []), package.get("sdist")] if w
        }
        assert all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes)


def test_what_runs_here_is_listed_with_its_version(sbom):
    components = {(c["name"], c["version"]) for c in sbom.bill((ROOT / "uv.lock").read_bytes(), ["all"])["components"]}
    for name in ("numpy", "onnx", "onnxruntime", "cryptography"):
        assert (name, metadata.version(name)) in components


def test_references_lead_somewhere_and_the_bytes_repeat():
    first, second = (
        subprocess.run([sys.executable, SCRIPT, "runtimes"], capture_output=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    bill = json.loads(first)
    known = {c["bom-ref"] for c in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert len(known) == len(bill["components"]) + 1
    for edge in bill["dependencies"]:
        assert {edge["ref"], *edge["dependsOn"]} <= known
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")


def test_an_unknown_extra_is_refused(sbom):
    with pytest.raises(KeyError, match="nonsense"):
        sbom.bill((ROOT / "uv.lock").read_bytes(), ["nonsense"])
