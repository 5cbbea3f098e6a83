"""`lathe serve FOLDER`, and `lathe run --serve`: start a server, say where it is, stop it."""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput

from lathe_api.manifest import StageRecord
from lathe_api.summary import Summary, TargetResult, TargetState
from lathe_cli import texts
from lathe_cli.provenance import check
from lathe_runtimes.datatypes import BY_CONFIG
from lathe_runtimes.errors import InputError, LatheRuntimeError, PortTakenError
from lathe_runtimes.launch import RunningServer, start_lathe, start_triton
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.ports import check_port
from lathe_runtimes.provenance import load_verifier
from lathe_runtimes.repository import ONNX, read_repository, write_repository

START_SECONDS: Final = 300.0
"""Making Triton's environment and loading a large model take a while."""


def serve(options: argparse.Namespace) -> int:
    """Serve a finished run or a model repository until it is stopped; exit status.

    Raises:
        InputError: the folder holds neither, or nothing that the runtime can serve.
        LatheRuntimeError: the server did not start, or ended by itself.
    """
    check_ports(options)
    if (options.folder / "summary.json").is_file():
        serve_run(options.folder, options, runtime=options.runtime, target=options.target)
    elif options.folder.is_dir() and any(options.folder.glob("*/config.pbtxt")):
        if options.verify_key is not None:
            check(options.folder, load_verifier(options.verify_key, "--verify-key"))
        _check_backend(options.folder, options.runtime)
        _serve(options.folder, options, options.runtime)
    else:
        raise InputError(
            str(options.folder),
            "neither a run folder (summary.json) nor a model repository (*/config.pbtxt)",
            "Name the folder that `lathe run` wrote",
        )
    return 0


def serve_run(folder: Path, options: argparse.Namespace, *, runtime: str, target: str | None) -> None:
    """Serve one target of a finished run until it is stopped.

    Args:
        folder: of the run.
        options: `host`, `http_port`, `grpc_port` and `serve_seconds` of the command line.
        runtime: `lathe` or `triton`.
        target: name; by default the first that was built.

    Raises:
        InputError: the run has built no such target.
        LatheRuntimeError: the server did not start, or ended by itself.
    """
    chosen = _built(folder, target)
    if options.verify_key is not None:
        # The repository for Triton is written anew: what it is made from is verified here.
        check(folder / (chosen.repository or ""), load_verifier(options.verify_key, "--verify-key"))
    with _repository(folder, chosen, runtime) as repository:
        _serve(repository, options, runtime)


def check_ports(options: argparse.Namespace) -> None:
    """Fail before the work rather than after it.

    Raises:
        PortTakenError: a port that was asked for is in use, or both are the same.
    """
    if options.http_port and options.http_port == options.grpc_port:
        raise PortTakenError("--grpc-port", f"{options.grpc_port} is also the --http-port", "Choose two ports")
    for port, flag in ((options.http_port, "--http-port"), (options.grpc_port, "--grpc-port")):
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
    states = "; ".join(f"{t.name}: {t.state}, {t.reason}" for t in summary.targets)
    wanted = f"no built target {name!r}" if name else "no built target"
    raise InputError(str(path), f"{wanted} with a model repository ({states})", "Run `lathe run` until one is built")


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
    record = StageRecord.model_validate_json((folder / target.stages[-1].record).read_bytes())
    for model in read_repository(stored):
        write_repository(
            place,
            name=model.folder.name,
            onnx=model.folder / str(model.versions[-1]) / ONNX,
            signature=record.artifact.signature,
            serving=target.serving,
            hardware=target.hardware,
            digest=target.artifact or "",
            profile=Profile.PYTHON,
        )


def _check_backend(repository: Path, runtime: str) -> None:
    other = [m.folder.name for m in read_repository(repository) if m.config.backend != "python"]
    if runtime == "triton" and other:
        raise InputError(
            str(repository),
            f"{', '.join(other)} needs the ONNX Runtime backend, which the Triton of the Python package lacks",
            "Name the run folder, which is served behind the python backend, or leave out --runtime triton",
        )


def _serve(repository: Path, options: argparse.Namespace, runtime: str) -> None:
    models = [_served(m.config) for m in read_repository(repository)]
    where = {"http_port": options.http_port, "grpc_port": options.grpc_port, "host": options.host}
    with (
        _terminable(),
        start_lathe(repository, **where, verify_key=options.verify_key)
        if runtime == "lathe"
        else start_triton(repository, **where) as server,
    ):
        server.wait_ready(START_SECONDS)
        _announce(server, models, as_json=getattr(options, "json", False))
        _wait(server, options.serve_seconds)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that servers are stopped and folders removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _announce(server: RunningServer, models: list[texts.Served], *, as_json: bool) -> None:
    if as_json:
        event = {"event": "Serving", "http": server.http, "grpc": server.grpc, "models": [m.name for m in models]}
        print(json.dumps(event), file=sys.stderr, flush=True)
    else:
        sys.stdout.write(texts.serving(server.http, server.grpc, models))
        sys.stdout.flush()


def _wait(server: RunningServer, limit: float | None) -> None:
    """Until Ctrl-C, SIGTERM or the end of the time, all of which are good ends.

    Raises:
        LatheRuntimeError: the server ended by itself.
    """
    try:
        code = server.process.wait(limit)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        return
    raise LatheRuntimeError(f"{server.name} ended by itself with exit code {code}")


def _served(config: ModelConfig) -> texts.Served:
    return texts.Served(
        name=config.name,
        inputs=tuple(_tensor(given, batched=config.max_batch_size > 0) for given in config.input),
        outputs=tuple(given.name for given in config.output),
    )


def _tensor(given: ModelInput, *, batched: bool) -> texts.Tensor:
    datatype = BY_CONFIG[given.data_type]
    sizes = (1, *given.dims) if batched else given.dims
    return texts.Tensor(
        name=given.name,
        datatype=datatype.name,
        shape=tuple(max(size, 1) for size in sizes),
        # BF16, which numpy lacks, is given as float32.
        dtype="float32" if datatype.dtype is None else datatype.dtype.name,
    )
