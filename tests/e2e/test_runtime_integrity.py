"""A server answers for the very bytes that were published, and works as the container of a pod."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.eventually import eventually
from support.servers import call, digest_of, fill_repository, infer, promised

from lathe_runtimes.errors import EnvironmentUnavailableError, StartError
from lathe_runtimes.launch import start_lathe, start_triton
from lathe_runtimes.modelconfig import DIGEST_PARAMETER, Profile
from lathe_runtimes.ports import free_port
from lathe_runtimes.repository import read_repository
from lathe_runtimes.server import model as server_model
from lathe_runtimes.triton import ensure_triton

pytestmark = pytest.mark.e2e
X = np.ones((1, 16), np.float32)


def swap_weights(repository: Path, scratch: Path) -> str:
    """Another good model in the place of the published one; its digest."""
    other = fill_repository(scratch / "other", scratch, Profile.ONNXRUNTIME, names=("mlp",))
    source = other / "mlp" / "1" / "model.onnx"
    (repository / "mlp_single" / "1" / "model.onnx").write_bytes(source.read_bytes())
    return digest_of(source)


def test_a_file_that_was_changed_after_publication_is_refused(tmp_path):
    repository = fill_repository(tmp_path / "models", tmp_path, Profile.ONNXRUNTIME, names=("mlp_single",))
    found, wanted = swap_weights(repository, tmp_path), promised(tmp_path, "mlp_single")
    with start_lathe(repository) as server, pytest.raises(StartError) as refused:
        server.wait_ready()
    assert "exit code 1" in str(refused.value)
    assert f"has {found}, but its configuration promises {wanted}" in str(refused.value)


def test_triton_refuses_it_too_where_the_model_is_run_by_our_code(tmp_path):
    try:
        installation = ensure_triton()
    except EnvironmentUnavailableError as error:
        pytest.skip(str(error))
    repository = fill_repository(tmp_path / "models", tmp_path, Profile.PYTHON, names=("mlp_single",))
    found = swap_weights(repository, tmp_path)
    with start_triton(repository, installation=installation) as server, pytest.raises(StartError, match=found):
        server.wait_ready(120)


def test_what_was_loaded_is_reported_where_nothing_was_promised(tmp_path):
    repository = fill_repository(tmp_path / "models", tmp_path, Profile.ONNXRUNTIME, names=("mlp",))
    config = repository / "mlp" / "config.pbtxt"
    text = config.read_text()
    config.write_text(text.replace(DIGEST_PARAMETER, "some.other"))
    assert read_repository(repository)[0].digest is None
    with start_lathe(repository) as server:
        found = call(server.wait_ready(), "http", "get_model_config", "mlp")
    assert found["parameters"][DIGEST_PARAMETER]["string_value"] == promised(tmp_path, "mlp")


def test_it_serves_as_the_container_of_a_pod_does(tmp_path):
    """A read-only repository, all addresses, no standard input, ended by SIGTERM."""
    repository = fill_repository(tmp_path / "models", tmp_path, Profile.ONNXRUNTIME, names=("mlp",))
    for path in (repository, *repository.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    http, grpc = free_port("127.0.0.1"), free_port("127.0.0.1")
    command = [sys.executable, "-m", "lathe_runtimes.server", f"--repository={repository}", "--host=0.0.0.0"]
    process = subprocess.Popen(
        [*command, f"--http-port={http}", f"--grpc-port={grpc}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = SimpleNamespace(http=f"127.0.0.1:{http}", grpc=f"127.0.0.1:{grpc}")
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        for kind in ("http", "grpc"):
            assert infer(server, kind, "mlp", {"x": X}).as_numpy("y").shape == (1, 4)
        config = call(server, "http", "get_model_config", "mlp")
        assert config["parameters"][DIGEST_PARAMETER]["string_value"] == promised(tmp_path, "mlp")
        process.send_signal(signal.SIGTERM)
        eventually(lambda: process.poll() is not None)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({"cpu.max": "100000 100000\n"}, 1, id="one core"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="half a core"),
        pytest.param({"cpu.max": "max 100000\n"}, None, id="no limit"),
        pytest.param({"cpu.max": "900000000 100000\n"}, None, id="more than there are"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1, id="half a core, version 1"
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, id="no limit, version 1"
        ),
    ],
)
def test_threads_fit_the_share_of_the_container(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(server_model, "CONTROL_GROUP", tmp_path)
    everything = server_model.available_cores()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert server_model.available_cores() == (cores or everything)
