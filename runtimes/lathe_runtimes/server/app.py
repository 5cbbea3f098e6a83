"""One server process: load, listen, answer, drain."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import grpc

from lathe_runtimes.errors import ModelLoadError, PortTakenError
from lathe_runtimes.ports import bind
from lathe_runtimes.provenance import Verifier
from lathe_runtimes.repository import read_repository
from lathe_runtimes.server.access import Access
from lathe_runtimes.server.control import ModelControl
from lathe_runtimes.server.errors import RequestError
from lathe_runtimes.server.grpc_control import Health
from lathe_runtimes.server.grpc_service import SERVICE, GrpcService
from lathe_runtimes.server.http import Connection, Connections, Limits
from lathe_runtimes.server.httpbase import error_body
from lathe_runtimes.server.registry import Registry
from lathe_runtimes.server.routes import Api
from lathe_runtimes.server.services import Services

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 30.0
SWEEP_SECONDS: Final = 1.0
SWITCH_SECONDS: Final = 2e-4
"""How long a thread may keep the interpreter from the event loop."""


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    repository: Path
    host: str
    http_port: int
    grpc_port: int
    threads: int
    max_body_bytes: int
    stop_with_stdin: bool
    """Stop when the standard input ends: the parent is gone."""
    verifier: Verifier | None = None
    """Load only what is signed with this key."""
    explicit: bool = False
    """Clients load and unload models; only `load_models` are loaded at the start."""
    load_models: tuple[str, ...] = ()
    """Names; `*` for all."""
    memory_bytes: int = 0
    """What the models may take; 0 for no limit."""
    control_tokens: Path | None = None
    """File of the tokens that control calls need."""
    linger_seconds: int = 0
    """How long the server goes on after SIGTERM, not ready, before it stops taking connections."""


async def serve(options: Options, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight is answered.

    Args:
        options: what to serve, where.
        announce: called with one line of JSON once requests are answered: `http`, `grpc`, `pid`, `models`.

    Raises:
        InputError: the repository cannot be read, or a port is taken (found before the models are loaded).
        ModelLoadError: a model cannot be served.
        ProvenanceError: a model is not signed with the key that was asked for, or was changed since.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.stop_with_stdin:
        _watch_stdin(loop, stop)
    limits = Limits(body_bytes=options.max_body_bytes)
    with bind(options.host, options.http_port, "--http-port") as listener:
        remote = _grpc_server(limits)
        grpc_port = _bind_grpc(remote, options)
        services = await _services(options)
        registry = services.registry
        service, health = GrpcService(services, _version()), Health(services, (SERVICE,))
        remote.add_generic_rpc_handlers((service.handlers(), health.handlers()))
        connections = Connections(limits)
        handle = Api(services, _version()).handle
        try:
            local = await loop.create_server(
                lambda: Connection(handle, limits, connections, error_body), sock=listener, backlog=1024
            )
        except OSError as error:  # somebody began to listen while the models were loading
            raise PortTakenError(
                "--http-port", f"port {options.http_port} cannot be used: {error.strerror}", "Choose another, or 0."
            ) from error
        await remote.start()
        # Nothing of what is loaded by now ever becomes garbage; collections need not look at it.
        gc.collect()
        gc.freeze()
        announce(_ready(options, listener.getsockname()[1], grpc_port, registry))
        await _until(stop, connections)
        services.ready = False
        await asyncio.sleep(options.linger_seconds)  # whoever balances load must see first that no more may come
        await _drain(local, remote, connections)
    for model in registry.all():
        model.engine.close()


async def _services(options: Options) -> Services:
    registry = Registry()
    control = ModelControl(
        options.repository,
        registry,
        threads=options.threads,
        explicit=options.explicit,
        budget=options.memory_bytes,
        verifier=options.verifier,
    )
    services = Services(registry, control, Access(options.control_tokens))
    for stored in read_repository(options.repository, options.verifier):
        if not options.explicit or stored.config.name in options.load_models or "*" in options.load_models:
            try:
                await control.start(stored)
            except RequestError as error:
                raise ModelLoadError(str(error)) from error
    return services


async def _until(stop: asyncio.Event, connections: Connections) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SWEEP_SECONDS)
        connections.sweep()


async def _drain(local: asyncio.Server, remote: Any, connections: Connections) -> None:
    local.close()
    await asyncio.gather(connections.drain(DRAIN_SECONDS), remote.stop(DRAIN_SECONDS))


def _grpc_server(limits: Limits) -> Any:
    return grpc.aio.server(
        options=[
            # Two servers would share one port, and each would get some of the requests.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
        ],
        maximum_concurrent_rpcs=limits.connections,
    )


def _bind_grpc(remote: Any, options: Options) -> int:
    host = f"[{options.host}]" if ":" in options.host else options.host
    # The library's own message has no cause; the trial bind names it.
    if options.grpc_port:
        bind(options.host, options.grpc_port, "--grpc-port").close()
    try:
        return int(remote.add_insecure_port(f"{host}:{options.grpc_port}"))
    except RuntimeError as error:
        raise PortTakenError(
            "--grpc-port", f"port {options.grpc_port} on {options.host} cannot be used", "Choose another, or 0."
        ) from error


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    handle = sys.stdin.fileno()

    def ended() -> None:
        if not os.read(handle, 4096):
            loop.remove_reader(handle)
            stop.set()

    loop.add_reader(handle, ended)


def _ready(options: Options, http_port: int, grpc_port: int, registry: Registry) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    models = [{"name": model.name, "version": model.version, "digest": model.digest} for model in registry.all()]
    return json.dumps(
        {"http": f"{host}:{http_port}", "grpc": f"{host}:{grpc_port}", "pid": os.getpid(), "models": models}
    )


def _version() -> str:
    try:
        return version("lathe-platform")
    except PackageNotFoundError:
        return "0"
