"""The real Triton as a process. What it answers is tested beside the Lathe runtime in test_runtime_conformance."""

import os
import select
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support.servers import call, fill_repository, infer

from lathe_runtimes.errors import EnvironmentUnavailableError, PortTakenError, StartError
from lathe_runtimes.launch import start_triton
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.triton import TRITON_VERSION, Installation, ensure_triton

pytestmark = pytest.mark.e2e
X = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def installation() -> Installation:
    try:
        return ensure_triton()
    except EnvironmentUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    return fill_repository(folder / "models", folder, Profile.PYTHON, names=("mlp_single",))


def test_it_is_the_announced_version_and_stops_when_asked(installation, repository):
    with start_triton(repository, installation=installation) as server:
        server.wait_ready(120)
        assert call(server, "http", "get_server_metadata")["version"] == TRITON_VERSION
        assert infer(server, "grpc", "mlp_single", {"x": X}).as_numpy("y").shape == (1, 4)
        assert server.stop() == 0


def test_a_taken_port_is_named_before_anything_is_started(installation, repository):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)):
            start_triton(repository, grpc_port=port, installation=installation)


def test_a_model_that_cannot_be_loaded_is_quoted(installation, tmp_path):
    repository = fill_repository(tmp_path / "models", tmp_path, Profile.PYTHON, names=("mlp_single",))
    (repository / "mlp_single" / "1" / "model.onnx").write_bytes(b"zzz")
    with start_triton(repository, installation=installation) as server, pytest.raises(StartError, match="mlp_single"):
        server.wait_ready(120)


def test_it_ends_with_its_parent(installation, repository):
    parent = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from lathe_runtimes.launch import start_triton
        server = start_triton(Path(sys.argv[1]))
        server.wait_ready(120)
        print(server.pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        handle = os.pidfd_open(int(process.stdout.readline()))
        try:
            process.kill()
            assert select.select([handle], [], [], 60)[0], "Triton outlived its parent"
        finally:
            os.close(handle)
