"""`lathe serve FOLDER`, and `lathe run --serve`: start a server, say where it is, stop it."""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from lathe_api.summary import Summary, TargetResult, TargetState
from lathe_cli import texts
from lathe_optimizers.errors import InputError
from lathe_runtimes.launch import RunningServer, start_lathe, start_triton
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.ports import check_port
from lathe_runtimes.repository import read_repository, write_repository

START_SECONDS = 300.0
"""Making Triton's environment and loading a large model take a while."""


def serve(options: argparse.Namespace) -> int:
    """Serve a finished run or a model repository until it is stopped.

    Raises:
        InputError: the folder holds neither.
    """
    check_ports(options)
    if (options.folder / "summary.json").is_file():
        serve_run(options.folder, options, runtime=options.runtime, target=options.target)
    elif options.folder.is_dir() and any(options.folder.glob("*/config.pbtxt")):
        _serve(options.folder, options, options.runtime)
    else:
        raise InputError(
            str(options.folder),
            "neither a run folder (summary.json) nor a model repository (*/config.pbtxt)",
            "Name the folder that `lathe run` wrote",
        )
    return 0


def serve_run(folder: Path, options: argparse.Namespace, *, runtime: str, target: str | None) -> None:
    """Serve one target of a finished run.

    Raises:
        InputError: the run has built no such target.
    """
    chosen = _built(folder, target)
    with _repository(folder, chosen, runtime) as repository:
        _serve(repository, options, runtime)


def check_ports(options: argparse.Namespace) -> None:
    """Fail now rather than after the work.

    Raises:
        PortTakenError: a port that was asked for is in use.
    """
    for port, flag in ((options.http_port, "--http-port"), (options.grpc_port, "--grpc-port")):
        if port:
            check_port(port, options.host, flag)


def _built(folder: Path, name: str | None) -> TargetResult:
    path = folder / "summary.json"
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(str(path), "not a summary that this version reads", "Run `lathe run` again") from error
    for target in summary.targets:
        if target.state is TargetState.BUILT and target.repository and name in {None, target.name}:
            return target
    states = ", ".join(f"{t.name} {t.state}" for t in summary.targets)
    raise InputError(str(path), f"no built target{f' {name}' if name else ''} ({states})", "Mend the run first")


@contextlib.contextmanager
def _repository(folder: Path, target: TargetResult, runtime: str) -> Iterator[Path]:
    """The model repository in the form that the server reads."""
    stored = folder / (target.repository or "")
    if runtime == "lathe":
        yield stored
        return
    # The Triton of the Python package has no ONNX Runtime backend: the same model, behind the python backend.
    with tempfile.TemporaryDirectory(prefix="lathe-triton-") as place:
        _rewrite(folder, stored, Path(place), target)
        yield Path(place)


def _rewrite(folder: Path, stored: Path, place: Path, target: TargetResult) -> None:
    from lathe_api.manifest import StageRecord

    record = StageRecord.model_validate_json((folder / target.stages[-1].record).read_bytes())
    for model in read_repository(stored):
        write_repository(
            place,
            name=model.folder.name,
            onnx=folder / (target.model_file or ""),
            signature=record.artifact.signature,
            serving=target.serving,
            hardware=target.hardware,
            digest=target.artifact or "",
            profile=Profile.PYTHON,
        )


def _serve(repository: Path, options: argparse.Namespace, runtime: str) -> None:
    names = [m.folder.name for m in read_repository(repository)]
    start = start_lathe if runtime == "lathe" else start_triton
    # Blocked before the start, so that Ctrl-C meant for the server's parent ends both in order.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with start(repository, http_port=options.http_port, grpc_port=options.grpc_port, host=options.host) as server:
        server.wait_ready(START_SECONDS)
        _announce(server, names, as_json=getattr(options, "json", False))
        _wait(server, ends, options.serve_seconds)


def _announce(server: RunningServer, names: list[str], *, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"event": "Serving", "http": server.http, "grpc": server.grpc, "models": names})
        print(line, file=sys.stderr, flush=True)
    else:
        sys.stdout.write(texts.serving(server.http, server.grpc, names))
        sys.stdout.flush()


def _wait(server: RunningServer, ends: set[signal.Signals], seconds: float | None) -> None:
    """Until a signal, the end of the time, or the end of the server."""
    left = seconds
    step = 0.5
    while left is None or left > 0:
        if signal.sigtimedwait(ends, step if left is None else min(step, left)) is not None:
            return
        if server.process.poll() is not None:
            return
        left = None if left is None else left - step
