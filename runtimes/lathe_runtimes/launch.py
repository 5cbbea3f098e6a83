"""Servers as child processes: start, wait until ready, stop. A child never outlives its parent."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from lathe_runtimes import tether
from lathe_runtimes.errors import PortTakenError, StartError
from lathe_runtimes.ports import check_port, free_port
from lathe_runtimes.triton import Installation, ensure_triton

STOP_SECONDS: Final = 40.0
"""Longer than a server takes to answer what is in flight."""
_POLL_SECONDS: Final = 0.05
_TAIL_BYTES: Final = 65_536
_TAIL_CHARACTERS: Final = 4096
_ERROR: Final = re.compile(r"E[0-9]{4} |error: ")
"""How Triton and the Lathe runtime begin a line that says what is wrong."""


class RunningServer:
    """A server process. Leaving the `with` block stops it.

    Args:
        name: for messages.
        process: the child; its standard input, if a pipe, ends it.
        http: `host:port`; may be replaced once the child has said which it got.
        grpc: as `http`.
        messages: what the child writes to.
        announcement: read the addresses from the child's first line of standard output.
    """

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        *,
        http: str,
        grpc: str,
        messages: IO[bytes],
        announcement: Callable[[bytes], tuple[str, str]] | None = None,
    ) -> None:
        self.name = name
        self.process = process
        self.http = http
        self.grpc = grpc
        self._messages = messages
        self._announcement = announcement

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    def wait_ready(self, timeout: float = 60.0) -> Self:
        """Wait until every model is loaded and requests are answered.

        Args:
            timeout: seconds.

        Raises:
            StartError: it ended, or was not ready in time; quotes its last messages.
        """
        deadline = time.monotonic() + timeout
        if self._announcement is not None:
            self._read_announcement(deadline)
        while not _answers_ready(self.http):
            self._check_alive()
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready within {timeout:.0f} s.{self._tail()}")
            time.sleep(_POLL_SECONDS)
        return self

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Ask the server to finish what is in flight and end, kill it after `timeout` seconds; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._messages):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read_announcement(self, deadline: float) -> None:
        pipe, self_announced = self.process.stdout, self._announcement
        if pipe is None or self_announced is None:
            return
        os.set_blocking(pipe.fileno(), False)
        line = b""
        while not line.endswith(b"\n"):
            line += pipe.readline()
            if line.endswith(b"\n"):
                break
            self._check_alive()
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not load its models in time.{self._tail()}")
            time.sleep(_POLL_SECONDS)
        self.http, self.grpc = self_announced(line)
        self._announcement = None

    def _check_alive(self) -> None:
        code = self.process.poll()
        if code is None:
            return
        tail = self._tail()
        raise StartError(f"{self.name} ended with exit code {code} before it was ready.{tail}")

    def _tail(self) -> str:
        if self._messages.closed:
            return ""
        handle = self._messages.fileno()
        size = os.fstat(handle).st_size
        text = os.pread(handle, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")
        errors = [line for line in text.splitlines() if _ERROR.match(line)]
        found = "\n".join(errors) or text[-_TAIL_CHARACTERS:]
        return f" Its last messages:\n{found}" if found else ""


def start_lathe(
    repository: Path,
    *,
    http_port: int = 0,
    grpc_port: int = 0,
    host: str = "127.0.0.1",
    log: Path | None = None,
    threads: int | None = None,
    verify_key: Path | None = None,
    arguments: Sequence[str] = (),
) -> RunningServer:
    """Start the Lathe runtime on a model repository.

    Args:
        repository: folder from `write_repository`.
        http_port: 0 for a free one.
        grpc_port: 0 for a free one.
        host: address to listen on.
        log: file for the server's messages (appended); by default they are kept until it stops.
        threads: cores that it may use; by default all.
        verify_key: public key (PEM); models that are not signed with it are refused.
        arguments: further ones for `python -m lathe_runtimes.server`.

    Raises:
        PortTakenError: a port is taken.
    """
    _check_ports(host, http_port, grpc_port)
    command = [sys.executable, "-m", "lathe_runtimes.server", "--repository", str(repository), "--host", host]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), "--stop-with-stdin"]
    if threads is not None:
        command += ["--threads", str(threads)]
    if verify_key is not None:
        command += ["--verify-key", str(verify_key)]
    command += arguments
    messages = _log(log)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # closed by the kernel when this process ends: the server then stops
        stdout=subprocess.PIPE,
        stderr=messages,
        start_new_session=True,  # Ctrl-C is for the parent to handle
    )
    addresses = {"http": f"{host}:{http_port}", "grpc": f"{host}:{grpc_port}"}
    return RunningServer("the Lathe runtime", process, **addresses, messages=messages, announcement=_addresses)


def start_triton(
    repository: Path,
    *,
    http_port: int = 0,
    grpc_port: int = 0,
    host: str = "127.0.0.1",
    log: Path | None = None,
    installation: Installation | None = None,
    arguments: Sequence[str] = (),
) -> RunningServer:
    """Start the real Triton on a model repository of the PYTHON profile.

    Installs it on first use. The process gets SIGTERM when the *thread* that calls this ends: call it from a thread
    that lives as long as the server is needed.

    Args:
        repository: folder from `write_repository`.
        http_port: 0 for a free one.
        grpc_port: 0 for a free one.
        host: address to listen on.
        log: file for the server's messages (appended); by default they are kept until it stops.
        installation: from `ensure_triton`; by default found or made.
        arguments: further ones for `tritonserver`.

    Raises:
        PortTakenError: a port is taken.
        EnvironmentUnavailableError: Triton cannot be installed here.
    """
    _check_ports(host, http_port, grpc_port)
    found = installation or ensure_triton()
    http_port, grpc_port = http_port or free_port(host), grpc_port or free_port(host)
    command = [sys.executable, "-I", "-S", str(Path(tether.__file__)), str(os.getpid()), str(found.binary)]
    command += [f"--model-repository={repository}", f"--backend-directory={found.backends}"]
    command += [f"--http-address={host}", f"--http-port={http_port}", f"--grpc-address={host}"]
    command += [f"--grpc-port={grpc_port}", "--allow-metrics=false", "--exit-timeout-secs=30"]
    # What is not declared stays undeclared: no completion by Triton.
    command += ["--disable-auto-complete-config", "--log-verbose=0", *arguments]
    messages = _log(log)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=messages,
        stderr=messages,
        env={**os.environ, **found.environment},
        start_new_session=True,
    )
    return RunningServer("Triton", process, http=f"{host}:{http_port}", grpc=f"{host}:{grpc_port}", messages=messages)


def _check_ports(host: str, http_port: int, grpc_port: int) -> None:
    check_port(http_port, host, "--http-port")
    check_port(grpc_port, host, "--grpc-port")
    if http_port and http_port == grpc_port:
        raise PortTakenError("--grpc-port", f"{grpc_port} is also the --http-port", "Choose two ports.")


def _log(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab+")


def _addresses(line: bytes) -> tuple[str, str]:
    found = json.loads(line)
    return found["http"], found["grpc"]


def _answers_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
