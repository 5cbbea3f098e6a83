"""HTTP endpoints that control the server: repository, shared memory, trace and log settings.

Those that change something need a token where tokens are configured.
"""

import asyncio
import json
import logging
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.http import Reply, Request
from lathe_runtimes.server.httpbase import error_body, only
from lathe_runtimes.server.services import Services
from lathe_runtimes.server.v2json import read_json

log = logging.getLogger(__name__)


class ControlApi:
    """Answers control calls.

    Args:
        services: what they control.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, request: Request, reply: Reply, parts: list[str]) -> None:
        """Answer one call; `parts` are those of the path behind `/v2`.

        Raises:
            RequestError: it is refused.
        """
        match parts:
            case ["repository", "index"]:
                only("POST", request)
                ready = _document(request).get("ready", False) is True
                _answer(reply, self._services.control.index(ready=ready))
            case ["repository", "models", name, "load" | "unload" as action]:
                self._changing(request)
                self._repository(request, reply, name, action)
            case ["systemsharedmemory" | "cudasharedmemory" as kind, *rest]:
                self._memory(request, reply, kind.removesuffix("sharedmemory"), rest)
            case ["trace", "setting"]:
                self.trace(request, reply)
            case ["logging"]:
                settings = self._services.log
                if request.head.method in {"GET", "HEAD"}:
                    _answer(reply, settings.all())
                    return
                self._changing(request)
                _answer(reply, settings.update(_document(request)))
            case _:
                raise RequestError(f"no such endpoint: {request.head.path[:200]!r}", Kind.NOT_FOUND)

    def trace(self, request: Request, reply: Reply, model: str = "") -> None:
        """Trace settings of the server or of a model.

        Raises:
            RequestError: the call is refused.
        """
        if model and not self._services.registry.of(model):
            raise RequestError(f"Request for unknown model : {model[:200]}")
        if request.head.method in {"GET", "HEAD"}:
            _answer(reply, self._services.trace.of(model))
            return
        self._changing(request)
        _answer(reply, self._services.trace.update(_document(request), model))

    def _changing(self, request: Request) -> None:
        only("POST", request)
        self._services.access.check(request.head.credential)

    def _repository(self, request: Request, reply: Reply, name: str, action: str) -> None:
        parameters = _document(request).get("parameters", {})
        if not isinstance(parameters, dict):
            raise RequestError("'parameters' must be an object")
        if action == "load":
            refuse_override(parameters)
            self._later(self._services.control.load(name), reply)
        else:
            self._later(self._services.control.unload(name), reply)

    def _memory(self, request: Request, reply: Reply, kind: str, rest: list[str]) -> None:
        regions = self._services.regions
        match rest:
            case ["status"] | ["region", _, "status"]:
                only("GET", request)
                name = rest[1] if len(rest) > 1 else ""
                _answer(reply, regions.status(name) if kind == "system" else cuda_status(name))
            case ["unregister"] | ["region", _, "unregister"]:
                self._changing(request)
                if kind == "system":
                    regions.unregister(rest[1] if len(rest) > 1 else "")
                reply.json(HTTPStatus.OK, b"")
            case ["region", name, "register"]:
                self._changing(request)
                if kind != "system":
                    raise RequestError("CUDA shared memory is not served: register system shared memory")
                found = _document(request)
                key, offset, size = found.get("key"), found.get("offset", 0), found.get("byte_size")
                if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
                    raise RequestError(
                        "Shared memory register request needs 'key' (a string), 'byte_size' and, if not 0, 'offset' "
                        "(whole numbers)"
                    )
                regions.register(name, key, offset, size)
                reply.json(HTTPStatus.OK, b"")
            case _:
                raise RequestError(f"no such endpoint: {request.head.path[:200]!r}", Kind.NOT_FOUND)

    def _later(self, work: Coroutine[Any, Any, None], reply: Reply) -> None:
        task = asyncio.get_running_loop().create_task(_finish(work, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def refuse_override(parameters: Any) -> None:
    """Refuse to load anything but what the repository holds.

    Raises:
        RequestError: the parameters carry a configuration or files.
    """
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise RequestError(
                f"load parameter {name[:80]!r} is not supported: publish the model to the repository, then load it",
                Kind.UNSUPPORTED,
            )


def cuda_status(name: str) -> list[Any]:
    """Registered CUDA regions: none.

    Raises:
        RequestError: one is asked for by name.
    """
    if name:
        raise RequestError(f"Unable to find cuda shared memory region: {name[:200]!r}", Kind.NOT_FOUND)
    return []


async def _finish(work: Coroutine[Any, Any, None], reply: Reply) -> None:
    try:
        await work
    except RequestError as error:
        reply.json(error.kind.http, error_body(str(error)))
    except Exception:  # one call must not end the server
        log.exception("a control call failed")
        reply.json(HTTPStatus.INTERNAL_SERVER_ERROR, error_body("internal error; the server's log has the cause"))
    else:
        reply.json(HTTPStatus.OK, b"")


def _document(request: Request) -> dict[str, Any]:
    return read_json(bytes(request.body)) if len(request.body) else {}


def _answer(reply: Reply, document: Any) -> None:
    reply.json(HTTPStatus.OK, json.dumps(document).encode())
