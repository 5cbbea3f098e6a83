"""HTTP endpoints of the Open Inference Protocol V2, answered as Triton does."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from google.protobuf import json_format

from lathe_runtimes.server.control_routes import ControlApi
from lathe_runtimes.server.engine import Result
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.http import Reply, Request
from lathe_runtimes.server.httpbase import error_body, only
from lathe_runtimes.server.metrics import metrics_text
from lathe_runtimes.server.model import Model
from lathe_runtimes.server.services import Services
from lathe_runtimes.server.statistics import statistics_of
from lathe_runtimes.server.v2json import Codec, model_metadata

SERVER_NAME: Final = "lathe"
EXTENSIONS: Final = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


def server_metadata(version: str) -> dict[str, Any]:
    """Answer of GET /v2."""
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


class Api:
    """Answers requests out of a registry.

    Args:
        services: models, control, settings and shared memory.
        version: version of the server.
    """

    def __init__(self, services: Services, version: str) -> None:
        self._services = services
        self._registry = services.registry
        self._codecs: dict[Model, Codec] = {}
        self._registry.watch(self._forget)
        self._admin = ControlApi(services)
        self._metadata = json.dumps(server_metadata(version)).encode()

    def _forget(self, model: Model) -> None:
        self._codecs.pop(model, None)

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request, at once or from the engine's callback."""
        try:
            self._route(request, reply)
        except RequestError as error:
            reply.json(error.kind.http, error_body(str(error)))

    def _route(self, request: Request, reply: Reply) -> None:
        parts = request.head.path.split("/")[1:]
        match parts:
            case ["v2", "models", name, "infer"]:
                self._infer(request, reply, name, "")
            case ["v2", "models", name, "versions", version, "infer"]:
                self._infer(request, reply, name, version)
            case _:
                self._tell(request, reply, parts)

    def _tell(self, request: Request, reply: Reply, parts: list[str]) -> None:
        """Answer what is not an inference."""
        match parts:
            case ["v2"] | ["v2", ""]:
                only("GET", request)
                reply.json(HTTPStatus.OK, self._metadata)
            case ["v2", "health", "live" | "ready"]:
                only("GET", request)
                live = parts[2] == "live"
                reply.json(HTTPStatus.OK if live or self._services.ready else HTTPStatus.SERVICE_UNAVAILABLE, b"")
            case ["metrics"]:
                only("GET", request)
                reply.text(metrics_text(self._registry.all()))
            case ["v2", "models", "stats"]:
                only("GET", request)
                reply.json(HTTPStatus.OK, _stats(self._registry.all()))
            case ["v2", "models", name, "trace", "setting"]:
                self._admin.trace(request, reply, name)
            case ["v2", "models", name, "versions", version, *rest] if len(rest) <= 1:
                self._describe(request, reply, (name, version), "".join(rest))
            case ["v2", "models", name, *rest] if len(rest) <= 1:
                self._describe(request, reply, (name, ""), "".join(rest))
            case ["v2", "repository" | "systemsharedmemory" | "cudasharedmemory" | "trace" | "logging", *_]:
                self._admin.route(request, reply, parts[1:])
            case _:
                raise RequestError(f"no such endpoint: {request.head.path[:200]!r}", Kind.NOT_FOUND)

    def _infer(self, request: Request, reply: Reply, name: str, version: str) -> None:
        only("POST", request)
        model = self._registry.find(name, version)
        codec = self._codecs.get(model)
        if codec is None:
            codec = self._codecs[model] = Codec(model, self._services.regions)
        plan, arrays = codec.read(request.body, request.head.json_bytes)

        def done(result: Result) -> None:
            if isinstance(result, Exception):
                reply.json(HTTPStatus.INTERNAL_SERVER_ERROR, error_body(str(result)))
                return
            try:
                reply.tensors(*codec.write(plan, result))
            except RequestError as error:
                reply.json(error.kind.http, error_body(str(error)))

        job = model.submit(arrays, done)
        reply.when_gone(lambda: model.engine.cancel(job))

    def _describe(self, request: Request, reply: Reply, key: tuple[str, str], what: str) -> None:
        only("GET", request)
        model = self._registry.find(*key)
        answers: dict[str, Callable[[], bytes]] = {
            "": lambda: json.dumps(model_metadata(model, self._registry.versions(model.name))).encode(),
            "ready": lambda: b"",
            "config": lambda: _config(model),
            "stats": lambda: _stats((model,)),
        }
        if what not in answers:
            raise RequestError(f"no such endpoint: {request.head.path[:200]!r}", Kind.NOT_FOUND)
        reply.json(HTTPStatus.OK, answers[what]())


def _config(model: Model) -> bytes:
    found = json_format.MessageToDict(
        model.config, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )
    found.setdefault("max_batch_size", 0)
    # Protobuf writes 64-bit numbers as JSON strings; Triton writes them as numbers.
    for tensor in [*found.get("input", []), *found.get("output", [])]:
        tensor["dims"] = [int(size) for size in tensor.get("dims", [])]
        if "reshape" in tensor:
            tensor["reshape"]["shape"] = [int(size) for size in tensor["reshape"].get("shape", [])]
    for warm_up in found.get("model_warmup", []):
        for tensor in warm_up["inputs"].values():
            tensor["dims"] = [int(size) for size in tensor["dims"]]
    if "dynamic_batching" in found:
        delay = found["dynamic_batching"].get("max_queue_delay_microseconds", 0)
        found["dynamic_batching"]["max_queue_delay_microseconds"] = int(delay)
    return json.dumps(found).encode()


def _stats(models: tuple[Model, ...]) -> bytes:
    return json.dumps({"model_stats": [statistics_of(model) for model in models]}).encode()
