"""Runs one stage in a process of its own, within a memory limit and a time budget."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lathe_api.base import number, seconds
from lathe_api.recipe import StageResources
from lathe_optimizers import memory, wire
from lathe_optimizers.errors import StageError, StageMemoryError, StageTimeoutError
from lathe_optimizers.request import StageRequest

POLL_SECONDS: Final = 0.1
IMPORT_TIMEOUT: Final = "1h"
LOG_LINES: Final = 25
_LESS_MEMORY: Final = "Raise the stage's `resources.memory`, or lower its `batchSize`"
DEFAULT_SHARE: Final = 0.9
"""Share of this machine's memory that a stage without a limit may use: past it the kernel would choose a victim."""


@dataclass(frozen=True)
class Limits:
    """What a stage may use."""

    memory_bytes: int
    seconds: float
    memory_reason: str = ""
    """Where the memory limit comes from, when the document sets none."""


def limits_of(request: StageRequest) -> Limits:
    """The stage's own limits, or this machine's."""
    stage = request.stage
    resources = stage.resources if stage is not None else StageResources()
    time_limit = seconds(stage.timeout if stage is not None else IMPORT_TIMEOUT)
    if resources.memory is not None:
        return Limits(int(number(resources.memory)), time_limit)
    available = memory.limit()
    reason = f" ({DEFAULT_SHARE:.0%} of the {available / 2**20:.0f} MiB of this machine or container)"
    return Limits(int(available * DEFAULT_SHARE), time_limit, reason)


def threads_of(resources: StageResources | None) -> int:
    """Threads of a stage: its whole cores, or all that this process may use."""
    available = len(os.sched_getaffinity(0))
    if resources is None or resources.cpu is None:
        return available
    return max(1, min(available, int(number(resources.cpu))))


def run_stage(request: StageRequest, store_uri: str, scratch: Path, tell: Callable[[wire.Message], None]) -> None:
    """Do a stage; its record is in the store when this returns.

    Raises:
        InputError: the stage refused what it was given.
        StageTimeoutError: it took longer than its budget.
        StageMemoryError: it used more than its memory limit.
        StageError: it failed otherwise; the message ends with the last lines of its log.
        StoreError: the store is full or not writable.
    """
    request_file, log = scratch / "request.json", scratch / "log.txt"
    request_file.write_text(request.model_dump_json(by_alias=True), encoding="utf-8")
    kills = memory.kills()
    with _child(request, store_uri, request_file, log) as (pid, messages):
        status, failure = _watch(request.name, pid, messages, limits_of(request), tell)
    if failure is not None:
        raise wire.error_of(failure, request.name)
    if status == -signal.SIGKILL and memory.kills() > kills:
        raise StageMemoryError(
            request.name,
            f"the kernel ended its process, because the container reached its limit of {memory.limit() / 2**20:.0f} "
            f"MiB of memory. {_LESS_MEMORY}",
        )
    if status != 0:
        raise StageError(request.name, _ending(status, log))


@contextlib.contextmanager
def _child(request: StageRequest, store_uri: str, request_file: Path, log: Path) -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    command = [
        sys.executable, "-m", "lathe_optimizers.child",
        "--request", str(request_file), "--store", store_uri, "--events-fd", str(writer), "--parent", str(os.getpid()),
    ]  # fmt: skip
    threads = str(request.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            env=environment,
        )
    os.close(writer)
    try:
        yield process.pid, reader
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def _watch(
    name: str, pid: int, messages: int, limits: Limits, tell: Callable[[wire.Message], None]
) -> tuple[int, wire.Failure | None]:
    """Relay messages until the process ends; return its status (negative: signal) and the failure it told of."""
    deadline = time.monotonic() + limits.seconds
    failure: wire.Failure | None = None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(messages, selectors.EVENT_READ)
        while True:
            if selector.select(POLL_SECONDS):
                data = os.read(messages, 1 << 16)
                if not data:
                    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), failure
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    message = wire.Message.model_validate_json(line)
                    failure = message.failure or failure
                    tell(message)
            if (used := resident_bytes(pid)) > limits.memory_bytes:
                raise StageMemoryError(
                    name,
                    f"it used {used / 2**20:.0f} MiB of memory, its limit is {limits.memory_bytes / 2**20:.0f} MiB"
                    f"{limits.memory_reason}. {_LESS_MEMORY}",
                )
            if time.monotonic() > deadline:
                raise StageTimeoutError(
                    name,
                    f"it took longer than its timeout of {limits.seconds:g} s. Raise the stage's `timeout`; "
                    "a stage that trains goes on from its last epoch when it is run again",
                )


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _ending(status: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    tail = "".join(f"\n    {line}" for line in lines)
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (the kernel does so when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}. A stage that trains goes on from its last epoch{tail}"
    return f"its process ended with status {status}{tail}"
