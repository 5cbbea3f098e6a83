"""The gRPC service of the Open Inference Protocol V2 (`inference.GRPCInferenceService`)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from lathe_runtimes.datatypes import Array
from lathe_runtimes.server.engine import Result
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.model import Model, Registry, Tensor
from lathe_runtimes.server.routes import server_metadata
from lathe_runtimes.server.statistics import statistics_of
from lathe_runtimes.server.tensors import MAX_DIMS, from_raw, from_values, text_tensor, to_raw

SERVICE: Final = "inference.GRPCInferenceService"

Answer = Any
"""A message of the service; its generated classes have no types."""
Context = Any  # grpc.aio.ServicerContext: the library ships no types


class GrpcService:
    """Answers out of a registry.

    Args:
        registry: the models.
        version: version of the server.
    """

    def __init__(self, registry: Registry, version: str) -> None:
        self._registry = registry
        self._version = version

    def handlers(self) -> Any:
        """Generic handlers for `grpc.aio.Server.add_generic_rpc_handlers`; other calls answer UNIMPLEMENTED."""
        table: dict[str, tuple[Callable[[Any], Awaitable[Answer]], type[Message]]] = {
            "ServerLive": (self._server_live, pb.ServerLiveRequest),
            "ServerReady": (self._server_ready, pb.ServerReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self._model_config, pb.ModelConfigRequest),
            "ModelStatistics": (self._model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self._repository_index, pb.RepositoryIndexRequest),
            "ModelInfer": (self._infer, pb.ModelInferRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(call), request.FromString, lambda answer: answer.SerializeToString()
            )
            for name, (call, request) in table.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _server_live(self, _: Message) -> Answer:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: Message) -> Answer:
        return pb.ServerReadyResponse(ready=True)

    async def _server_metadata(self, _: Message) -> Answer:
        return pb.ServerMetadataResponse(**server_metadata(self._version))

    async def _model_ready(self, asked: pb.ModelReadyRequest) -> Answer:
        try:
            self._registry.find(asked.name, asked.version)
        except RequestError:  # a model that is not there is not ready: an answer, no failure, as with Triton
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _model_metadata(self, asked: pb.ModelMetadataRequest) -> Answer:
        model = self._registry.find(asked.name, asked.version)
        answer = pb.ModelMetadataResponse(name=model.name, platform=model.config.platform)
        answer.versions.extend(self._registry.versions(model.name))
        for tensors, fields in ((model.inputs.values(), answer.inputs), (model.outputs, answer.outputs)):
            for tensor in tensors:
                fields.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        return answer

    async def _model_config(self, asked: pb.ModelConfigRequest) -> Answer:
        return pb.ModelConfigResponse(config=self._registry.find(asked.name, asked.version).config)

    async def _model_statistics(self, asked: pb.ModelStatisticsRequest) -> Answer:
        models = (self._registry.find(asked.name, asked.version),) if asked.name else self._registry.all()
        found = {"model_stats": [statistics_of(model) for model in models]}
        return json_format.ParseDict(found, pb.ModelStatisticsResponse())

    async def _repository_index(self, _: Message) -> Answer:
        answer = pb.RepositoryIndexResponse()
        for model in self._registry.all():
            answer.models.add(name=model.name, version=model.version, state="READY")
        return answer

    async def _infer(self, asked: pb.ModelInferRequest) -> Answer:
        model = self._registry.find(asked.model_name, asked.model_version)
        arrays = read_inputs(model, asked)
        for output in asked.outputs:
            _refuse_parameters(output, f"output {output.name!r}")
        wanted = model.wanted([output.name for output in asked.outputs])
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(result: Result) -> None:
            if not future.done():  # the client may have left
                future.set_result(result)

        model.submit(arrays, done)
        result = await future
        if isinstance(result, Exception):
            raise RequestError(str(result), Kind.INTERNAL)
        return write_outputs(model, asked.id, wanted, result)


def read_inputs(model: Model, asked: pb.ModelInferRequest) -> dict[str, Array]:
    """Tensors of a request: all as raw bytes, or all as typed contents.

    Raises:
        RequestError: they do not fit the model.
    """
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise RequestError(
            f"{len(raw)} raw_input_contents for {len(asked.inputs)} inputs: send one for each, or typed contents only"
        )
    arrays: dict[str, Array] = {}
    for at, given in enumerate(asked.inputs):
        tensor = model.tensor(given.name, given.datatype)
        _refuse_parameters(given, f"input {given.name!r}")
        if given.name in arrays:
            raise RequestError(f"input {given.name!r} is given twice")
        shape = tuple(given.shape)
        if len(shape) > MAX_DIMS or any(not 0 <= size < 2**31 for size in shape):
            raise RequestError(f"input {given.name!r}: shape {list(shape)[:MAX_DIMS]} has sizes out of range")
        if raw:
            if given.HasField("contents"):
                raise RequestError(f"input {given.name!r} has both raw_input_contents and contents")
            arrays[given.name] = from_raw(tensor, shape, memoryview(raw[at]))
        else:
            arrays[given.name] = _from_contents(tensor, shape, given.contents)
    return arrays


def write_outputs(model: Model, identity: str, wanted: Sequence[int], results: Sequence[Array]) -> Answer:
    """Response with raw output contents."""
    answer = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=identity)
    for at in wanted:
        array = model.outer(at, results[at])
        answer.outputs.add(name=model.outputs[at].name, datatype=model.outputs[at].datatype.name, shape=array.shape)
        answer.raw_output_contents.append(bytes(to_raw(array)))
    return answer


def _from_contents(tensor: Tensor, shape: tuple[int, ...], contents: pb.InferTensorContents) -> Array:
    field = tensor.datatype.contents
    if field is None:
        raise RequestError(f"input {tensor.name!r}: {tensor.datatype.name} is sent in raw_input_contents")
    others = [other.name for other, _ in contents.ListFields() if other.name != field]
    if others:
        raise RequestError(
            f"input {tensor.name!r}: {tensor.datatype.name} values are sent in {field}; found {others[0]}"
        )
    values = getattr(contents, field)
    if field == "bytes_contents":
        try:
            return text_tensor(tensor.name, shape, [value.decode() for value in values])
        except UnicodeDecodeError as error:
            raise RequestError(f"input {tensor.name!r}: an element is no UTF-8: {error}") from error
    return from_values(tensor, shape, list(values))


def _refuse_parameters(given: Any, where: str) -> None:
    for name in ("shared_memory_region", "classification"):
        if name in given.parameters:
            raise RequestError(f"{where}: parameter {name!r} is not supported by this server")


def _answering(call: Callable[[Any], Awaitable[Answer]]) -> Callable[[Any, Context], Awaitable[Answer]]:
    async def answer(request: Any, context: Context) -> Answer:
        try:
            return await call(request)
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.kind.grpc], str(error))
            raise

    return answer
