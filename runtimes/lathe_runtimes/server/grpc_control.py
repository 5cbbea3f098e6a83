"""gRPC calls that control the server, and the standard health service (`grpc.health.v1`)."""

import asyncio
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from lathe_runtimes.server.control_routes import cuda_status, refuse_override
from lathe_runtimes.server.errors import RequestError
from lathe_runtimes.server.http import credential_of
from lathe_runtimes.server.services import Services

HEALTH: Final = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2
_WATCH_SECONDS: Final = 1.0
_LOG_FIELDS: Final = {bool: "bool_param", int: "uint32_param", str: "string_param"}

Context = Any  # grpc.aio.ServicerContext: the library ships no types


class GrpcControl:
    """Answers control calls.

    Args:
        services: what they control.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def index(self, asked: Any, _: Context) -> Message:
        """RepositoryIndex."""
        answer: Any = pb.RepositoryIndexResponse()
        for row in self._services.control.index(ready=asked.ready):
            answer.models.add(**row)
        done: Message = answer
        return done

    async def load(self, asked: Any, context: Context) -> Message:
        """RepositoryModelLoad."""
        self._check(context)
        refuse_override(asked.parameters)
        await self._services.control.load(asked.model_name)
        done: Message = pb.RepositoryModelLoadResponse()
        return done

    async def unload(self, asked: Any, context: Context) -> Message:
        """RepositoryModelUnload."""
        self._check(context)
        await self._services.control.unload(asked.model_name)
        done: Message = pb.RepositoryModelUnloadResponse()
        return done

    async def memory_status(self, asked: Any, _: Context) -> Message:
        """SystemSharedMemoryStatus."""
        answer: Any = pb.SystemSharedMemoryStatusResponse()
        for row in self._services.regions.status(asked.name):
            region = answer.regions[row["name"]]
            region.name, region.key, region.offset, region.byte_size = row.values()
        done: Message = answer
        return done

    async def memory_register(self, asked: Any, context: Context) -> Message:
        """SystemSharedMemoryRegister."""
        self._check(context)
        self._services.regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        done: Message = pb.SystemSharedMemoryRegisterResponse()
        return done

    async def memory_unregister(self, asked: Any, context: Context) -> Message:
        """SystemSharedMemoryUnregister."""
        self._check(context)
        self._services.regions.unregister(asked.name)
        done: Message = pb.SystemSharedMemoryUnregisterResponse()
        return done

    async def cuda_memory_status(self, asked: Any, _: Context) -> Message:
        """CudaSharedMemoryStatus."""
        cuda_status(asked.name)
        done: Message = pb.CudaSharedMemoryStatusResponse()
        return done

    async def cuda_memory_register(self, _: Any, context: Context) -> Message:
        """CudaSharedMemoryRegister."""
        self._check(context)
        raise RequestError("CUDA shared memory is not served: register system shared memory")

    async def cuda_memory_unregister(self, _: Any, context: Context) -> Message:
        """CudaSharedMemoryUnregister."""
        self._check(context)
        done: Message = pb.CudaSharedMemoryUnregisterResponse()
        return done

    async def trace(self, asked: Any, context: Context) -> Message:
        """TraceSetting."""
        if asked.model_name and not self._services.registry.of(asked.model_name):
            raise RequestError(f"Request for unknown model : {asked.model_name[:200]}")
        if asked.settings:
            self._check(context)
            changes = {name: _trace_value(name, list(given.value)) for name, given in asked.settings.items()}
            self._services.trace.update(changes, asked.model_name)
        answer: Any = pb.TraceSettingResponse()
        for name, value in self._services.trace.of(asked.model_name).items():
            answer.settings[name].value.extend(value if isinstance(value, list) else [value])
        done: Message = answer
        return done

    async def logging(self, asked: Any, context: Context) -> Message:
        """LogSettings."""
        if asked.settings:
            self._check(context)
            self._services.log.update(
                {name: getattr(given, given.WhichOneof("parameter_choice")) for name, given in asked.settings.items()}
            )
        answer: Any = pb.LogSettingsResponse()
        for name, value in self._services.log.all().items():
            setattr(answer.settings[name], _LOG_FIELDS[type(value)], value)
        done: Message = answer
        return done

    def _check(self, context: Context) -> None:
        found = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        credential = credential_of(found.get("authorization", "").encode(), found.get("x-api-key", "").encode())
        self._services.access.check(credential)


def _trace_value(name: str, values: list[str]) -> Any:
    if not values:
        return None
    return values if name == "trace_level" else values[0]


class Health:
    """The standard health service: the server as a whole, and the inference service under its name.

    Args:
        services: whose readiness is told.
        names: services that are known; others are NOT_FOUND.
    """

    def __init__(self, services: Services, names: tuple[str, ...]) -> None:
        self._services = services
        self._names = {"", *names}
        self._request, self._response = _messages()

    def handlers(self) -> Any:
        """Generic handlers for `grpc.aio.Server.add_generic_rpc_handlers`."""
        options = {
            "request_deserializer": self._request.FromString,
            "response_serializer": lambda answer: answer.SerializeToString(),
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **options),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **options),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    async def _check(self, asked: Any, context: Context) -> Any:
        if asked.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._response(status=self._status())

    async def _watch(self, asked: Any, context: Context) -> None:
        last = 0
        while True:
            status = self._status() if asked.service in self._names else 3
            if status != last:
                await context.write(self._response(status=status))
                last = status
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self) -> int:
        return SERVING if self._services.ready else NOT_SERVING


def _messages() -> tuple[Any, Any]:
    """Messages of `grpc.health.v1`, in a pool of their own: another library may have registered them, too."""
    file = descriptor_pb2.FileDescriptorProto(name="health.proto", package="grpc.health.v1", syntax="proto3")
    asked = file.message_type.add(name="HealthCheckRequest")
    asked.field.add(
        name="service",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    answer = file.message_type.add(name="HealthCheckResponse")
    answer.field.add(  # an enumeration travels as its number
        name="status",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kinds = [pool.FindMessageTypeByName(f"grpc.health.v1.{one.name}") for one in (asked, answer)]
    request, response = (message_factory.GetMessageClass(kind) for kind in kinds)
    return request, response
