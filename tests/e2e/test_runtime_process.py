"""The server as a process: start, ports, stop, end of the parent."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support.servers import connected, fill_repository, infer, read_answer

from lathe_runtimes.errors import PortTakenError, StartError
from lathe_runtimes.launch import start_lathe
from lathe_runtimes.modelconfig import Profile

pytestmark = pytest.mark.e2e
X = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    return fill_repository(folder / "models", folder, Profile.ONNXRUNTIME, names=("mlp", "mlp_single"))


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lathe_runtimes.server", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_line_says_where_it_listens(repository):
    with start_lathe(repository) as server:
        server.wait_ready()
        assert infer(server, "http", "mlp", {"x": X}).as_numpy("y").shape == (1, 4)
        assert infer(server, "grpc", "mlp", {"x": X}).as_numpy("y").shape == (1, 4)
        assert {server.http.split(":")[0], server.grpc.split(":")[0]} == {"127.0.0.1"}
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_lets_a_request_that_has_begun_be_answered(repository, number):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}]}).encode()
    with start_lathe(repository) as server:
        server.wait_ready()
        with connected(server) as idle, connected(server) as connection:
            connection.sendall(
                b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 100")
            os.kill(server.pid, number)
            assert idle.recv(10) == b""  # the idle connection is closed: the server has begun to stop
            with pytest.raises(ConnectionRefusedError), connected(server):
                pass
            connection.sendall(body)
            status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert server.process.wait(30) == 0


def test_signals_that_the_parent_has_blocked_still_stop_the_server(repository):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = start_lathe(repository)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with server:
        server.wait_ready()
        assert server.stop(20) == 0


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_taken_port_is_named_with_its_flag(repository, flag):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        both = {"--http-port": 0, "--grpc-port": 0, flag: port}
        done = serve("--repository", repository, *[part for pair in both.items() for part in pair])
        assert done.returncode == 2
        assert flag in done.stderr
        assert str(port) in done.stderr
        assert "Traceback" not in done.stderr
        with pytest.raises(PortTakenError, match=str(port)):
            start_lathe(repository, **{flag.removeprefix("--").replace("-", "_"): port})


def test_two_servers_never_share_a_port(repository):
    with start_lathe(repository) as first:
        first.wait_ready()
        for flag, address in (("--http-port", first.http), ("--grpc-port", first.grpc)):
            other = "--grpc-port" if flag == "--http-port" else "--http-port"
            done = serve("--repository", repository, flag, address.rsplit(":", 1)[1], other, 0)
            assert (done.returncode, flag in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        pytest.param(lambda model: (model / "config.pbtxt").unlink(), 2, "config.pbtxt", id="no configuration"),
        pytest.param(lambda model: (model / "config.pbtxt").write_text("name: {"), 2, "config.pbtxt", id="no protobuf"),
        pytest.param(lambda model: (model / "1" / "model.onnx").write_bytes(b"zzz"), 1, "model.onnx", id="no ONNX"),
        pytest.param(lambda model: (model / "1" / "model.onnx").unlink(), 1, "model.onnx", id="no file"),
        pytest.param(lambda model: (model / "1").rename(model / "one"), 2, "no version", id="no version"),
        pytest.param(
            lambda model: (model / "config.pbtxt").write_text(
                (model / "config.pbtxt").read_text().replace("TYPE_FP32", "TYPE_INT8")
            ), 1, "INT8", id="configuration of another type",
        ),
        pytest.param(
            lambda model: (model / "config.pbtxt").write_text(
                (model / "config.pbtxt").read_text().replace("model.onnx", "../../secret.onnx")
            ), 1, "secret", id="file outside the repository",
        ),
    ],
)  # fmt: skip
def test_a_repository_that_cannot_be_served_is_explained(tmp_path, damage, code, words):
    repository = fill_repository(tmp_path / "models", tmp_path, Profile.ONNXRUNTIME, names=("mlp",))
    damage(repository / "mlp")
    done = serve("--repository", repository, "--http-port", 0, "--grpc-port", 0)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    log = tmp_path / "server.log"
    with start_lathe(repository, log=log) as server, pytest.raises(StartError, match=words):
        server.wait_ready()


def test_a_missing_repository_is_bad_input(tmp_path):
    done = serve("--repository", tmp_path / "nothing", "--http-port", 0, "--grpc-port", 0)
    assert done.returncode == 2
    assert "no such folder" in done.stderr


def test_the_server_ends_with_its_parent(repository, tmp_path):
    parent = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from lathe_runtimes.launch import start_lathe
        server = start_lathe(Path(sys.argv[1]))
        server.wait_ready()
        print(server.pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        handle = os.pidfd_open(server)
        try:
            process.kill()
            assert select.select([handle], [], [], 30)[0], "the server outlived its parent"
        finally:
            os.close(handle)
