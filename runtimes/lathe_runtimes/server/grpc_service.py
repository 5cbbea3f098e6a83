"""The gRPC service of the Open Inference Protocol V2 (`inference.GRPCInferenceService`)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from lathe_runtimes.datatypes import Array
from lathe_runtimes.server.engine import Result
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.grpc_control import GrpcControl
from lathe_runtimes.server.model import Model, Tensor
from lathe_runtimes.server.routes import server_metadata
from lathe_runtimes.server.services import Services
from lathe_runtimes.server.shared_memory import Place, Regions, class_count, place_of
from lathe_runtimes.server.statistics import statistics_of
from lathe_runtimes.server.tensors import MAX_DIMS, from_raw, from_values, text_tensor, to_raw
from lathe_runtimes.server.v2json import classify_output

STREAM_DEPTH: Final = 64
"""Requests of one stream that are worked on at a time."""
SERVICE: Final = "inference.GRPCInferenceService"

Answer = Any
"""A message of the service; its generated classes have no types."""
Call = Callable[[Any, Any], Awaitable[Any]]
Context = Any  # grpc.aio.ServicerContext: the library ships no types


class GrpcService:
    """Answers out of a registry.

    Args:
        services: models, control, settings and shared memory.
        version: version of the server.
    """

    def __init__(self, services: Services, version: str) -> None:
        self._services = services
        self._registry = services.registry
        self._control = GrpcControl(services)
        self._version = version

    def handlers(self) -> Any:
        """Generic handlers for `grpc.aio.Server.add_generic_rpc_handlers`; other calls answer UNIMPLEMENTED."""
        table: dict[str, tuple[Call, type[Message]]] = {
            "ServerLive": (self._server_live, pb.ServerLiveRequest),
            "ServerReady": (self._server_ready, pb.ServerReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self._model_config, pb.ModelConfigRequest),
            "ModelStatistics": (self._model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self._control.index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self._control.load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self._control.unload, pb.RepositoryModelUnloadRequest),
            "SystemSharedMemoryStatus": (self._control.memory_status, pb.SystemSharedMemoryStatusRequest),
            "SystemSharedMemoryRegister": (self._control.memory_register, pb.SystemSharedMemoryRegisterRequest),
            "SystemSharedMemoryUnregister": (self._control.memory_unregister, pb.SystemSharedMemoryUnregisterRequest),
            "CudaSharedMemoryStatus": (self._control.cuda_memory_status, pb.CudaSharedMemoryStatusRequest),
            "CudaSharedMemoryRegister": (self._control.cuda_memory_register, pb.CudaSharedMemoryRegisterRequest),
            "CudaSharedMemoryUnregister": (self._control.cuda_memory_unregister, pb.CudaSharedMemoryUnregisterRequest),
            "TraceSetting": (self._control.trace, pb.TraceSettingRequest),
            "LogSettings": (self._control.logging, pb.LogSettingsRequest),
            "ModelInfer": (self._infer, pb.ModelInferRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(call), request.FromString, lambda answer: answer.SerializeToString()
            )
            for name, (call, request) in table.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, pb.ModelInferRequest.FromString, lambda answer: answer.SerializeToString()
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _server_live(self, _: Message, __: Context) -> Answer:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: Message, __: Context) -> Answer:
        return pb.ServerReadyResponse(ready=self._services.ready)

    async def _server_metadata(self, _: Message, __: Context) -> Answer:
        return pb.ServerMetadataResponse(**server_metadata(self._version))

    async def _model_ready(self, asked: pb.ModelReadyRequest, _: Context) -> Answer:
        try:
            self._registry.find(asked.name, asked.version)
        except RequestError:  # a model that is not there is not ready: an answer, no failure, as with Triton
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _model_metadata(self, asked: pb.ModelMetadataRequest, _: Context) -> Answer:
        model = self._registry.find(asked.name, asked.version)
        answer = pb.ModelMetadataResponse(name=model.name, platform=model.config.platform)
        answer.versions.extend(self._registry.versions(model.name))
        for tensors, fields in ((model.inputs.values(), answer.inputs), (model.outputs, answer.outputs)):
            for tensor in tensors:
                fields.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        return answer

    async def _model_config(self, asked: pb.ModelConfigRequest, _: Context) -> Answer:
        return pb.ModelConfigResponse(config=self._registry.find(asked.name, asked.version).config)

    async def _model_statistics(self, asked: pb.ModelStatisticsRequest, _: Context) -> Answer:
        models = (self._registry.find(asked.name, asked.version),) if asked.name else self._registry.all()
        found = {"model_stats": [statistics_of(model) for model in models]}
        return json_format.ParseDict(found, pb.ModelStatisticsResponse())

    async def _infer(self, asked: pb.ModelInferRequest, _: Context) -> Answer:
        model = self._registry.find(asked.model_name, asked.model_version)
        arrays = read_inputs(model, asked, self._services.regions)
        outputs = read_outputs(model, asked)
        for output in outputs:
            if output.place is not None:
                self._services.regions.check(output.place)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(result: Result) -> None:
            if not future.done():  # the client may have left
                future.set_result(result)

        job = model.submit(arrays, done)
        try:
            result = await future
        except asyncio.CancelledError:
            model.engine.cancel(job)
            raise
        if isinstance(result, Exception):
            raise RequestError(str(result), Kind.INTERNAL)
        return write_outputs(model, asked.id, outputs, result, self._services.regions)

    async def _stream(self, requests: Any, context: Context) -> None:
        """Requests run side by side; their answers are sent in the order of the requests."""
        waiting: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue(STREAM_DEPTH)

        async def read() -> None:
            async for asked in requests:
                await waiting.put(asyncio.create_task(self._streamed(asked, context)))
            await waiting.put(None)

        reader = asyncio.create_task(read())
        task: asyncio.Task[Answer] | None = None
        try:
            while (task := await waiting.get()) is not None:
                await context.write(await task)
            await reader
        finally:
            reader.cancel()
            if task is not None:
                task.cancel()
            while not waiting.empty():
                left = waiting.get_nowait()
                if left is not None:
                    left.cancel()

    async def _streamed(self, asked: pb.ModelInferRequest, context: Context) -> Answer:
        try:
            found = await self._infer(asked, context)
        except RequestError as error:
            return pb.ModelStreamInferResponse(
                error_message=str(error), infer_response=pb.ModelInferResponse(id=asked.id)
            )
        if asked.parameters["triton_enable_empty_final_response"].bool_param:
            found.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=found)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One requested output."""

    at: int
    classes: int = 0
    place: Place | None = None


def read_outputs(model: Model, asked: pb.ModelInferRequest) -> list[Wanted]:
    """Requested outputs; all where none is named.

    Raises:
        RequestError: one is unknown, asked for twice, or its parameters cannot be used.
    """
    positions = model.wanted([output.name for output in asked.outputs])
    if not asked.outputs:
        return [Wanted(at) for at in positions]
    found = []
    for at, output in zip(positions, asked.outputs, strict=True):
        given, where = _parameters(output), f"output {output.name!r}"
        one = Wanted(at, class_count(given, where), place_of(given, where))
        if one.classes and one.place is not None:
            raise RequestError(f"{where}: classes cannot be put into shared memory")
        found.append(one)
    return found


def read_inputs(model: Model, asked: pb.ModelInferRequest, regions: Regions) -> dict[str, Array]:
    """Tensors of a request: all as raw bytes, or all as typed contents; those in shared memory are not counted.

    Raises:
        RequestError: they do not fit the model.
    """
    raw = asked.raw_input_contents
    places = [place_of(_parameters(given), f"input {given.name!r}") for given in asked.inputs]
    if raw and len(raw) != places.count(None):
        raise RequestError(
            f"{len(raw)} raw_input_contents for {len(asked.inputs)} inputs: send one for each, or typed contents only"
        )
    arrays: dict[str, Array] = {}
    blobs = iter(raw)
    for given, place in zip(asked.inputs, places, strict=True):
        tensor = model.tensor(given.name, given.datatype)
        if given.name in arrays:
            raise RequestError(f"input {given.name!r} is given twice")
        shape = tuple(given.shape)
        if len(shape) > MAX_DIMS or any(not 0 <= size < 2**31 for size in shape):
            raise RequestError(f"input {given.name!r}: shape {list(shape)[:MAX_DIMS]} has sizes out of range")
        if place is not None:
            if given.HasField("contents"):
                raise RequestError(f"input {given.name!r} has values besides its shared memory region")
            arrays[given.name] = from_raw(tensor, shape, regions.read(place))
        elif raw:
            if given.HasField("contents"):
                raise RequestError(f"input {given.name!r} has both raw_input_contents and contents")
            arrays[given.name] = from_raw(tensor, shape, memoryview(next(blobs)))
        else:
            arrays[given.name] = _from_contents(tensor, shape, given.contents)
    return arrays


def write_outputs(
    model: Model, identity: str, wanted: Sequence[Wanted], results: Sequence[Array], regions: Regions
) -> Answer:
    """Response with raw output contents; those of an output in shared memory are empty.

    Raises:
        RequestError: an output does not fit its place, or holds no numbers to classify.
    """
    answer = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=identity)
    for one in wanted:
        tensor, array = model.outputs[one.at], model.outer(one.at, results[one.at])
        kind = tensor.datatype.name
        if one.classes:
            array, kind = classify_output(model, one.at, array, one.classes), "BYTES"
        data = to_raw(array)
        described = answer.outputs.add(name=tensor.name, datatype=kind, shape=array.shape)
        if one.place is None:
            answer.raw_output_contents.append(bytes(data))
            continue
        regions.write(one.place, tensor.name, data)
        described.parameters["shared_memory_region"].string_param = one.place.region
        described.parameters["shared_memory_offset"].int64_param = one.place.offset
        described.parameters["shared_memory_byte_size"].int64_param = len(data)
        answer.raw_output_contents.append(b"")
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


def _parameters(given: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "int64_param")
        for name, value in given.parameters.items()
    }


def _answering(call: Call) -> Call:
    async def answer(request: Any, context: Context) -> Answer:
        try:
            return await call(request, context)
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.kind.grpc], str(error))
            raise

    return answer
