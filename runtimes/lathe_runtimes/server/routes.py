"""HTTP endpoints of the Open Inference Protocol V2, answered as Triton does."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from google.protobuf import json_format

from lathe_runtimes.server.engine import Result
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.http import Reply, Request
from lathe_runtimes.server.model import Model, Registry
from lathe_runtimes.server.statistics import statistics_of
from lathe_runtimes.server.v2json import Codec, model_metadata, read_json

SERVER_NAME: Final = "lathe"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def error_body(message: str) -> bytes:
    """Error document of the protocol."""
    return json.dumps({"error": message}).encode()


def server_metadata(version: str) -> dict[str, Any]:
    """Answer of GET /v2."""
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


class Api:
    """Answers requests out of a registry.

    Args:
        registry: the models.
        version: version of the server.
    """

    def __init__(self, registry: Registry, version: str) -> None:
        self._registry = registry
        self._codecs = {model: Codec(model) for model in registry.all()}
        self._metadata = json.dumps(server_metadata(version)).encode()

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
            case ["v2"] | ["v2", ""]:
                _only("GET", request)
                reply.json(HTTPStatus.OK, self._metadata)
            case ["v2", "health", "live" | "ready"]:
                _only("GET", request)
                reply.json(HTTPStatus.OK, b"")
            case ["v2", "models", "stats"]:
                _only("GET", request)
                reply.json(HTTPStatus.OK, _stats(self._registry.all()))
            case ["v2", "models", name, "versions", version, *rest] if len(rest) <= 1:
                self._describe(request, reply, (name, version), "".join(rest))
            case ["v2", "models", name, *rest] if len(rest) <= 1:
                self._describe(request, reply, (name, ""), "".join(rest))
            case ["v2", "repository", "index"]:
                _only("POST", request)
                reply.json(HTTPStatus.OK, self._index(request))
            case ["v2", "repository", "models", _, "load" | "unload" as action]:
                raise RequestError(f"{action}: models are loaded at the start of this server", Kind.UNSUPPORTED)
            case _:
                raise RequestError(f"no such endpoint: {request.head.path[:200]!r}", Kind.NOT_FOUND)

    def _infer(self, request: Request, reply: Reply, name: str, version: str) -> None:
        _only("POST", request)
        model = self._registry.find(name, version)
        codec = self._codecs[model]
        plan, arrays = codec.read(request.body, request.head.json_bytes)

        def done(result: Result) -> None:
            if isinstance(result, Exception):
                reply.json(HTTPStatus.INTERNAL_SERVER_ERROR, error_body(str(result)))
                return
            reply.tensors(*codec.write(plan, result))

        model.submit(arrays, done)

    def _describe(self, request: Request, reply: Reply, key: tuple[str, str], what: str) -> None:
        _only("GET", request)
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

    def _index(self, request: Request) -> bytes:
        if len(request.body):
            read_json(bytes(request.body))  # {"ready": true} changes nothing: every model of this server is ready
        return json.dumps(
            [{"name": model.name, "version": model.version, "state": "READY"} for model in self._registry.all()]
        ).encode()


def _only(method: str, request: Request) -> None:
    asked = "GET" if request.head.method == "HEAD" else request.head.method
    if asked != method:
        found = request.head
        raise RequestError(f"{found.path[:200]} takes {method}; found {found.method}", Kind.METHOD_NOT_ALLOWED)


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
