"""Small ONNX models, a repository of them, and one way to ask any server by any client."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import np_to_triton_dtype

from lathe_api.manifest import Signature, TensorSpec
from lathe_api.targets import Batch, Hardware, Serving, ServingMode
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.repository import write_repository

MAX_BATCH = 8
SINGLE = Serving()
DYNAMIC = Serving(mode=ServingMode.DYNAMIC_BATCH, batch=Batch(max_size=MAX_BATCH))
DELAYED = Serving(mode=ServingMode.DYNAMIC_BATCH, batch=Batch(max_size=MAX_BATCH, max_queue_delay="2ms"))

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
Tensors = tuple[tuple[str, str, tuple[int, ...]], ...]


def build(path: Path, nodes: Sequence[Any], inputs: Tensors, outputs: Tensors, weights: Mapping[str, Any]) -> Signature:
    """Write an ONNX model; gives its signature."""

    def values(tensors: Tensors) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                name, TYPES[kind], [f"d{at}" if size == -1 else size for at, size in enumerate(shape)]
            )
            for name, kind, shape in tensors
        ]

    def specs(tensors: Tensors) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in tensors)

    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), path.stem, values(inputs), values(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return Signature(inputs=specs(inputs), outputs=specs(outputs))


def mlp(path: Path) -> Signature:
    """`x` (batch, 16) to `y` (batch, 4)."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((16, 32)).astype(np.float32),
        "w2": random.standard_normal((32, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    return build(path, nodes, (("x", "FP32", (-1, 16)),), (("y", "FP32", (-1, 4)),), weights)


def several(path: Path) -> Signature:
    """Two inputs of different types to three outputs."""
    nodes = [
        helper.make_node("Cast", ["count"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["value", "floats"], ["total"]),
        helper.make_node("Mul", ["count", "count"], ["square"]),
        helper.make_node("Less", ["value", "floats"], ["below"]),
    ]
    inputs: Tensors = (("value", "FP32", (-1, 3)), ("count", "INT64", (-1, 3)))
    outputs: Tensors = (("total", "FP32", (-1, 3)), ("square", "INT64", (-1, 3)), ("below", "BOOL", (-1, 3)))
    return build(path, nodes, inputs, outputs, {})


def free(path: Path) -> Signature:
    """Every size is free: `x` (batch, length) to its running sum."""
    nodes = [helper.make_node("CumSum", ["x", "axis"], ["y"])]
    return build(path, nodes, (("x", "FP32", (-1, -1)),), (("y", "FP32", (-1, -1)),), {"axis": np.array(1, np.int64)})


def lookup(path: Path) -> Signature:
    """`ids` (batch, 2), 0 to 9, to rows of a table; other ids make ONNX Runtime fail."""
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"])]
    table = {"table": np.arange(30, dtype=np.float32).reshape(10, 3)}
    return build(path, nodes, (("ids", "INT64", (-1, 2)),), (("rows", "FP32", (-1, 2, 3)),), table)


def scalar(path: Path) -> Signature:
    """One number per sample: `x` (batch) to `y` (batch)."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return build(path, nodes, (("x", "INT64", (-1,)),), (("y", "INT64", (-1,)),), {})


def fixed(path: Path) -> Signature:
    """A batch dimension that is fixed at one."""
    return build(path, [helper.make_node("Relu", ["x"], ["y"])], (("x", "FP32", (1, 3)),), (("y", "FP32", (1, 3)),), {})


def echo(path: Path) -> Signature:
    """One input and one output of every datatype."""
    nodes = [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in TYPES]
    inputs = tuple((f"in_{kind}", kind, (-1, 2)) for kind in TYPES)
    outputs = tuple((f"out_{kind}", kind, (-1, 2)) for kind in TYPES)
    return build(path, nodes, inputs, outputs, {})


MODELS = (
    ("mlp", mlp, DYNAMIC),
    ("mlp_single", mlp, SINGLE),
    ("mlp_delayed", mlp, DELAYED),
    ("several", several, DYNAMIC),
    ("free", free, DYNAMIC),
    ("lookup", lookup, DYNAMIC),
    ("scalar", scalar, DYNAMIC),
    ("fixed", fixed, SINGLE),
    ("echo", echo, DYNAMIC),
)


def digest_of(path: Path) -> str:
    """As configurations promise it."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def promised(scratch: Path, name: str) -> str:
    """Digest that the configuration of one of the models above promises."""
    path = scratch / f"{name}.onnx"
    {given: make for given, make, _ in MODELS}[name](path)
    return digest_of(path)


def fill_repository(root: Path, scratch: Path, profile: Profile, names: Sequence[str] = ()) -> Path:
    """A repository of the models above, or of those named."""
    for name, make, serving in MODELS:
        if names and name not in names:
            continue
        path = scratch / f"{name}.onnx"
        signature = make(path)
        digest = digest_of(path)
        write_repository(
            root,
            name=name,
            onnx=path,
            signature=signature,
            serving=serving,
            hardware=Hardware.X86_AVX2,
            digest=digest,
            profile=profile,
            threads=1,
        )
    return root


LIBRARIES: dict[str, Any] = {
    "http": tritonclient.http,
    "grpc": tritonclient.grpc,
    "http-aio": tritonclient.http.aio,
    "grpc-aio": tritonclient.grpc.aio,
}


def address(server: Any, kind: str) -> str:
    """Where that kind of client connects."""
    return str(server.http if kind.startswith("http") else server.grpc)


def call(server: Any, kind: str, method: str, *arguments: Any, **options: Any) -> Any:
    """One call of one method of a fresh client."""
    library = LIBRARIES[kind]
    if not kind.endswith("aio"):
        with contextlib.closing(library.InferenceServerClient(address(server, kind))) as client:
            return getattr(client, method)(*arguments, **options)

    async def once() -> Any:
        async with library.InferenceServerClient(address(server, kind)) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(once())


def tensors(kind: str, arrays: Mapping[str, Any], *, binary: bool = True) -> list[Any]:
    """Inputs of a request."""
    found = []
    for name, array in arrays.items():
        given = LIBRARIES[kind].InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if kind.startswith("http"):
            given.set_data_from_numpy(array, binary_data=binary)
        else:
            given.set_data_from_numpy(array)
        found.append(given)
    return found


def infer(server: Any, kind: str, model: str, arrays: Mapping[str, Any], **options: Any) -> Any:
    """One inference; gives the client's result."""
    return call(server, kind, "infer", model, tensors(kind, arrays), **options)


@contextlib.contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    """A bare connection to the HTTP port."""
    host, port = server.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as found:
        yield found


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower-case names) and body of one HTTP answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            raise ConnectionError(f"closed after {data!r}")
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    size = int(headers.get("content-length", "0"))
    while len(body) < size:
        received = connection.recv(65536)
        if not received:
            raise ConnectionError(f"closed within the body: {len(body)} of {size}")
        body += received
    if len(body) != size:
        raise ValueError(f"{len(body) - size} bytes behind the answer")
    return int(lines[0].split()[1]), headers, body
