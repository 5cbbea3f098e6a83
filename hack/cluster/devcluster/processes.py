"""Programs that run in the background, each with a log, stopped by process id in the reverse order of their start."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_PAUSE: Final = 0.1
_PATIENCE: Final = 10.0
_LOG_TAIL: Final = 2000


class StartError(Exception):
    """A program ended, or did not get ready in time; the message has the end of its log."""


class Processes:
    """The programs of one cluster.

    Args:
        folder: for logs and the list of process ids.
        prefix: command in front of every program, such as one that enters a network namespace.
        bound: whether the programs are killed with the process that started them.
    """

    def __init__(self, folder: Path, prefix: Sequence[str], *, bound: bool) -> None:
        self.folder = folder
        self.prefix = (*(("setpriv", "--pdeathsig", "KILL") if bound else ()), *prefix)
        self.pids: dict[str, int] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start a program; its output goes to `<name>.log`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.prefix, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.pids[name] = process.pid
        self._children[name] = process
        (self.folder / "pids.json").write_text(json.dumps(self.pids))

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Return when the program is ready.

        Raises:
            StartError: it ended, or took longer.
        """
        end = time.monotonic() + seconds
        while not ready():
            if not self.runs(name) or time.monotonic() > end:
                state = f"not ready after {seconds} s" if self.runs(name) else "ended"
                raise StartError(f"{name} {state}: {self.log(name)}")
            time.sleep(_PAUSE)

    def runs(self, name: str) -> bool:
        """Whether the program has not ended."""
        child = self._children.get(name)
        return _exists(self.pids[name]) if child is None else child.poll() is None

    def log(self, name: str) -> str:
        """The end of its output."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-_LOG_TAIL:]

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a program; it is killed where it does not follow."""
        _signal(self.pids[name], how)
        end = time.monotonic() + _PATIENCE
        while self.runs(name):
            if time.monotonic() > end:
                _signal(self.pids[name], signal.SIGKILL)
            time.sleep(_PAUSE / 5)
        del self.pids[name]
        self._children.pop(name, None)

    def stop_all(self) -> None:
        """End every program, the youngest first."""
        for name in reversed(list(self.pids)):
            self.stop(name)

    @classmethod
    def adopt(cls, folder: Path, prefix: Sequence[str]) -> "Processes":
        """The programs that another process has started with this folder and that still run."""
        found = cls(folder, prefix, bound=False)
        pids = folder / "pids.json"
        if pids.exists():
            found.pids = {n: p for n, p in json.loads(pids.read_text()).items() if _exists(p)}
        return found


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
