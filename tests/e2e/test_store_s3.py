"""Stores, models and data in a real S3-compatible object store."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.eventually import eventually
from support.jobs import Pod, make_pod, revision_of, spec
from support.servers import digest_of

from devcluster import programs
from lathe_operator.settings import Settings
from lathe_optimizers.errors import StoreError
from lathe_optimizers.store import Store
from lathe_runtimes.ports import free_port
from lathe_runtimes.repository import read_repository

pytestmark = pytest.mark.e2e
SETTINGS = Settings(store_uri="s3://lathe/kept", files_uri="s3://files/digits")


@dataclass(frozen=True)
class Minio:
    """A server with the buckets `lathe` and `files`, and a client of it."""

    keys: dict[str, str]
    client: Any


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    folder: Path = tmp_path_factory.mktemp("minio")
    port = free_port("127.0.0.1")
    secret = uuid.uuid4().hex
    command = [
        programs.path(programs.MINIO),
        "server",
        "--quiet",
        "--address",
        f"127.0.0.1:{port}",
        str(folder / "data"),
    ]
    environment = os.environ | {"MINIO_ROOT_USER": "lathe", "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off"}
    keys = {
        "AWS_ACCESS_KEY_ID": "lathe",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = fsspec.filesystem(
        "s3", key="lathe", secret=secret, endpoint_url=keys["AWS_ENDPOINT_URL"], use_listings_cache=False
    )

    def works() -> bool:
        try:
            return client.ls("") is not None
        except OSError:
            return False

    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder) as server,
    ):
        try:
            eventually(works)
            for bucket in ("lathe", "files"):
                client.mkdir(bucket)
            yield Minio(keys, client)
        finally:
            server.kill()


@pytest.fixture
def pod(minio: Minio, tmp_path: Path) -> Iterator[Pod]:
    """A pod whose model and data are in the bucket `files`, and no volume has anything."""
    found = make_pod(tmp_path)
    for path in found.files.iterdir():
        minio.client.put_file(str(path), f"files/digits/{path.name}")
        path.unlink()
    found.environment |= minio.keys
    found.give(revision_of(spec(), "vision", SETTINGS))
    yield found
    found.end()


@pytest.fixture
def store(minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in minio.keys.items():
        monkeypatch.setenv(name, value)
    return Store("s3://lathe/unit", tmp_path / "cache")


def test_a_revision_is_done_with_nothing_on_any_disk(minio, pod, tmp_path):
    for segment in (0, 1):
        done = pod.run(segment)
        assert done.returncode == 0, done.stderr
    name = json.loads((pod.folder / "revision.json").read_text())["metadata"]["name"]
    assert f"s3://lathe/kept/repositories/{name}/cpu" in done.stdout
    assert minio.client.exists(f"lathe/kept/reports/{name}/report.html")
    # As KServe fetches it for a server.
    minio.client.get(f"lathe/kept/repositories/{name}/cpu/", str(tmp_path / "models"), recursive=True)
    (model,) = read_repository(tmp_path / "models")
    assert model.config.name == "patterns"
    assert model.digest == digest_of(model.folder / "1" / "model.onnx")
    assert not list(pod.volumes.rglob("*.onnx"))

    again = Pod(tmp_path / "again", pod.environment)
    again.give(json.loads((pod.folder / "revision.json").read_text()))
    done = again.run(1)
    assert done.returncode == 0, done.stderr
    assert "0 stages done, 3 cached" in done.stdout


def test_blobs_and_records_survive_and_damage_is_noticed(store, tmp_path, minio):
    file = tmp_path / "blob"
    file.write_bytes(b"x" * 100_000)
    blob = store.put(file)
    assert store.put(file) == blob
    found = store.get(blob)
    assert found.read_bytes() == file.read_bytes()
    found.unlink()
    value = blob.digest.removeprefix("sha256:")
    place = f"lathe/unit/blobs/sha256/{value[:2]}/{value}"
    minio.client.pipe_file(place, b"y" * 100_000)
    assert store.find(blob) is None
    minio.client.rm_file(place)
    assert store.find(blob) is None
    with pytest.raises(StoreError, match="is missing or damaged"):
        store.get(blob)
    assert store.record(blob.digest) is None


def test_what_another_process_wrote_is_seen_at_once(store, minio):
    slots = store.checkpoints("sha256:12")
    assert not slots.exist()
    minio.client.pipe_file("lathe/unit/checkpoints/12/epoch", b"state")
    assert slots.exist()
    assert slots.load("epoch") == b"state"
    slots.save("epoch", b"newer")
    assert minio.client.cat_file("lathe/unit/checkpoints/12/epoch") == b"newer"
    store.place.drop("checkpoints/12")
    assert not slots.exist()
    store.place.drop("checkpoints/12")


@pytest.mark.parametrize(
    ("store_uri", "environment", "status", "told"),
    [
        pytest.param(
            "s3://lathe/kept",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            1,
            "access is denied (Forbidden). Check the keys in the Secret of `spec.store.credentials`",
            id="wrong key",
        ),
        pytest.param(
            "s3://nowhere/kept", {}, 1, "s3://nowhere/kept: there is no such bucket. Make it", id="no such bucket"
        ),
        pytest.param(
            "s3://lathe/kept",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            1,
            "the object store does not answer as it should",
            id="no server",
        ),
        pytest.param(
            "s3://lathe/kept",
            {"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"},
            1,
            "there are no credentials. Name a Secret with them",
            id="no key",
        ),
        pytest.param("s4://lathe/kept", {}, 2, "s4://lathe/kept cannot be opened", id="unknown protocol"),
    ],
)
def test_a_store_that_cannot_be_used_is_explained(pod, minio, store_uri, environment, status, told):
    pod.give(revision_of(spec() | {"store": {"uri": store_uri}}, "vision", SETTINGS))
    pod.environment |= environment
    done = pod.run(0)
    assert done.returncode == status, done.stderr
    assert told in pod.reason
    # Found out before any work.
    assert "started" not in done.stdout
    assert not minio.client.exists("nowhere")


def test_an_object_that_is_missing_is_named_by_its_field(pod, minio):
    minio.client.rm_file("files/digits/test.npz")
    done = pod.run(0)
    assert done.returncode == 2
    assert pod.reason == (
        "spec.data.evaluation.uri: there is nothing at s3://files/digits/test.npz. Write the URI of an existing object"
    )
