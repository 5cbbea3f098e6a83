"""What arrives on the wire: malformed, partial, pipelined and hostile requests, then a good one."""

import json
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from support.servers import call, connected, fill_repository, infer, promised, read_answer
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from lathe_runtimes.launch import RunningServer, start_lathe
from lathe_runtimes.modelconfig import Profile

pytestmark = pytest.mark.e2e
X = np.arange(16, dtype=np.float32).reshape(1, 16) / 16
INPUT = {"name": "x", "shape": [1, 16], "datatype": "FP32"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("requests")
    repository = fill_repository(folder / "models", folder, Profile.ONNXRUNTIME)
    with start_lathe(repository, log=folder / "server.log", threads=2) as started:
        yield started.wait_ready()


def post(document: object, blob: bytes = b"", *, path: str = "/v2/models/mlp/infer", headers: str = "") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text) + len(blob)}\r\n"
    if blob:
        head += f"Inference-Header-Content-Length: {len(text)}\r\n"
    return f"{head}{headers}\r\n".encode() + text + blob


def with_data(**changes: object) -> dict[str, object]:
    return {"inputs": [{**INPUT, "data": X.ravel().tolist(), **changes}]}


def with_blob(size: object = 64, **changes: object) -> dict[str, object]:
    return {"inputs": [{**INPUT, "parameters": {"binary_data_size": size}, **changes}]}


GOOD = post(with_blob(), X.tobytes())
BLOB = X.tobytes()


def head_only(fields: str, line: str = "POST /v2/models/mlp/infer HTTP/1.1") -> bytes:
    return f"{line}\r\nHost: x\r\n{fields}\r\n".encode()


BAD = [
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, id="TLS to a plain port"),
    pytest.param(b"GET\r\n\r\n", 400, id="no path"),
    pytest.param(b"\r\n\r\n\r\n\r\n", 400, id="empty lines only"),
    pytest.param(head_only("Content-Length: ten\r\n"), 400, id="content length is no number"),
    pytest.param(head_only("Content-Length: -5\r\n"), 400, id="negative content length"),
    pytest.param(head_only("Content-Length: 5\r\nContent-Length: 6\r\n"), 400, id="two content lengths"),
    pytest.param(head_only(f"Content-Length: {10**14}\r\n"), 413, id="body too large"),
    pytest.param(head_only("Content-Length: 9" + "9" * 40 + "\r\n"), 400, id="content length beyond any size"),
    pytest.param(head_only("Transfer-Encoding: chunked\r\n"), 411, id="chunked body"),
    pytest.param(head_only("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400, id="chunked with a length"),
    pytest.param(head_only("X: " + "a" * 40_000 + "\r\n"), 431, id="huge header"),
    pytest.param(head_only("bad header\r\n"), 400, id="header without a colon"),
    pytest.param(head_only("Content-Encoding: br\r\nContent-Length: 0\r\n"), 415, id="unknown encoding"),
    pytest.param(
        head_only("Inference-Header-Content-Length: x\r\nContent-Length: 0\r\n"), 400, id="JSON length is no number"
    ),
    pytest.param(post(b"", headers="Content-Encoding: gzip\r\n"), 400, id="empty gzip"),
    pytest.param(post(b"abc", headers="Content-Encoding: gzip\r\n"), 400, id="damaged gzip"),
    pytest.param(post(b""), 400, id="no body"),
    pytest.param(post(b"{"), 400, id="broken JSON"),
    pytest.param(post(b"\xff\xfe{}"), 400, id="JSON that is no UTF-8"),
    pytest.param(post(b"[" * 100_000), 400, id="JSON nested without end"),
    pytest.param(post([1]), 400, id="JSON list"),
    pytest.param(post({}), 400, id="no inputs"),
    pytest.param(post({"inputs": 3}), 400, id="inputs is no list"),
    pytest.param(post({"inputs": [3]}), 400, id="input is no object"),
    pytest.param(post(with_data(name=7)), 400, id="name is no string"),
    pytest.param(post(with_data(name="other")), 400, id="unknown input"),
    pytest.param(post({"inputs": [{**INPUT, "data": [0] * 16}] * 2}), 400, id="input given twice"),
    pytest.param(post(with_data(datatype="FP64")), 400, id="wrong datatype"),
    pytest.param(post(with_data(datatype=["FP32"])), 400, id="datatype is no string"),
    pytest.param(post(with_data(shape=[1, 15])), 400, id="wrong shape"),
    pytest.param(post(with_data(shape=[0, 16], data=[])), 400, id="empty batch"),
    pytest.param(post(with_data(shape=[-1, 16])), 400, id="negative size"),
    pytest.param(post(with_data(shape=[1.0, 16])), 400, id="size is no whole number"),
    pytest.param(post(with_data(shape=[True, 16])), 400, id="size is a boolean"),
    pytest.param(post(with_data(shape="1x16")), 400, id="shape is no list"),
    pytest.param(post(with_data(shape=[2**31 - 1] * 32)), 400, id="astronomic shape"),
    pytest.param(post(with_data(shape=[1] * 100)), 400, id="too many dimensions"),
    pytest.param(post(with_data(data=[0] * 15)), 400, id="too few values"),
    pytest.param(post(with_data(data=["a"] * 16)), 400, id="text for numbers"),
    pytest.param(post(with_data(data=[[0] * 8, [0] * 7])), 400, id="ragged values"),
    pytest.param(post(with_data(data=[None] * 16)), 400, id="null values"),
    pytest.param(post(with_data(data=[10**400] * 16)), 400, id="numbers beyond any type"),
    pytest.param(post(with_data(data={"a": 1})), 400, id="data is an object"),
    pytest.param(post({"inputs": [INPUT]}), 400, id="no data"),
    pytest.param(post(with_blob(60), BLOB), 400, id="binary size too small for the shape"),
    pytest.param(post(with_blob(65), BLOB), 400, id="binary size beyond the body"),
    pytest.param(post(with_blob(-1), BLOB), 400, id="negative binary size"),
    pytest.param(post(with_blob("64"), BLOB), 400, id="binary size is no number"),
    pytest.param(post(with_blob(), BLOB + b"zz"), 400, id="bytes behind the last tensor"),
    pytest.param(post(with_blob(data=[0] * 16), BLOB), 400, id="data and bytes"),
    pytest.param(post({**with_data(), "id": 5}), 400, id="id is no string"),
    pytest.param(post({**with_data(), "outputs": [{"name": "nope"}]}), 400, id="unknown output"),
    pytest.param(post({**with_data(), "outputs": [{"name": "y"}, {"name": "y"}]}), 400, id="output asked for twice"),
    pytest.param(
        post({**with_data(), "outputs": [{"name": "y", "parameters": {"classification": -1}}]}), 400, id="no classes"
    ),
    pytest.param(
        post(with_data(parameters={"shared_memory_region": "r"})), 400, id="shared memory that was not registered"
    ),
    pytest.param(post(with_data(), path="/v2/models/nope/infer"), 404, id="unknown model"),
    pytest.param(post(with_data(), path="/v2/models/mlp/versions/9/infer"), 404, id="unknown version"),
    pytest.param(post(with_data(), path="/v2/models/..%2f..%2fetc/infer"), 404, id="path traversal, encoded"),
    pytest.param(post(with_data(), path="/v2/models/../../etc/infer"), 404, id="path traversal"),
    pytest.param(post(with_data(), path="/v2/models/%00/infer"), 404, id="null byte in the name"),
    pytest.param(post(with_data(), path="/v1/models/mlp:predict"), 404, id="another protocol"),
    pytest.param(head_only("", "GET /v2/models/mlp/infer HTTP/1.1"), 405, id="GET of an inference"),
    pytest.param(head_only("Content-Length: 0\r\n", "POST /v2/models/mlp HTTP/1.1"), 405, id="POST of metadata"),
    pytest.param(
        head_only("Content-Length: 0\r\n", "POST /v2/repository/models/mlp/load HTTP/1.1"), 503, id="load at run time"
    ),
    pytest.param(
        post({"inputs": [{"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [0.5, 1]}]},
             path="/v2/models/lookup/infer"), 400, id="fractions for integers",
    ),
    pytest.param(
        post({"inputs": [{"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [2**63, 1]}]},
             path="/v2/models/lookup/infer"), 400, id="integer out of range",
    ),
    pytest.param(
        post({"inputs": [{"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [True, False]}]},
             path="/v2/models/lookup/infer"), 400, id="booleans for integers",
    ),
]  # fmt: skip


def good_answer(server: RunningServer) -> np.ndarray:
    return infer(server, "http", "mlp", {"x": X}).as_numpy("y")


@pytest.mark.parametrize(("request_bytes", "status"), BAD)
def test_bad_requests_get_their_status_and_the_server_goes_on(server, request_bytes, status):
    with connected(server) as connection:
        connection.sendall(request_bytes)
        found, _, body = read_answer(connection)
    assert found == status
    assert json.loads(body)["error"]
    assert good_answer(server).shape == (1, 4)


@pytest.mark.parametrize("length", [1, 20, 60, len(GOOD) - 65, len(GOOD) - 1])
def test_a_client_that_leaves_within_a_request_harms_nobody(server, length):
    with connected(server) as connection:
        connection.sendall(GOOD[:length])
    assert good_answer(server).shape == (1, 4)


def test_a_request_in_single_bytes_is_answered_like_a_whole_one(server):
    with connected(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GOOD:
            connection.send(bytes([byte]))
        status, _, body = read_answer(connection)
    assert status == 200
    np.testing.assert_allclose(json.loads(body)["outputs"][0]["data"], good_answer(server).ravel(), rtol=1e-5)


def test_pipelined_requests_are_answered_in_order(server):
    count = 300
    values = np.arange(count, dtype=np.int64)
    requests = []
    for value in values:
        document = {
            "id": str(value),
            "inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [int(value)]}],
        }
        requests.append(post(document, path="/v2/models/scalar/infer"))
    with ThreadPoolExecutor(1) as pool, connected(server) as connection:
        sending = pool.submit(connection.sendall, b"".join(requests))
        with connection.makefile("rb") as stream:
            for value in values:
                assert stream.readline().startswith(b"HTTP/1.1 200")
                size = 0
                while (line := stream.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                answer = json.loads(stream.read(size))
                assert answer["id"] == str(value)
                assert answer["outputs"][0]["data"] == [2 * value]
        sending.result()


def test_expect_continue_is_granted(server):
    with connected(server) as connection:
        head, _, body = post(with_blob(), BLOB, headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection)[0] == 200


def test_a_client_that_has_said_all_still_gets_its_answer(server):
    with connected(server) as connection:
        connection.sendall(GOOD)
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(connection)[0] == 200


def test_a_gzip_bomb_is_refused(server):
    import gzip

    bomb = gzip.compress(bytes(65 * 1024 * 1024), 9)
    with connected(server) as connection:
        connection.sendall(post(bomb, headers="Content-Encoding: gzip\r\n"))
        assert read_answer(connection)[0] == 413
    assert good_answer(server).shape == (1, 4)


def test_http_10_closes_after_the_answer(server):
    with connected(server) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert connection.recv(10) == b""


def test_metadata_names_the_digest_of_the_artifact(server, tmp_path):
    found = call(server, "http", "get_model_metadata", "mlp")["properties"]
    assert found == {"lathe.digest": promised(tmp_path, "mlp")}


def test_a_large_tensor_goes_through_in_one_piece(server):
    x = np.random.default_rng(3).standard_normal((4, 500_000)).astype(np.float32)
    for kind in ("http", "grpc"):
        np.testing.assert_allclose(infer(server, kind, "free", {"x": x}).as_numpy("y"), np.cumsum(x, 1), atol=0.5)


def test_text_of_bad_lengths_is_refused(server):
    elements = struct.pack("<I", 1000) + b"abc"
    inputs = [{"name": "in_BYTES", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": 7}}]
    with connected(server) as connection:
        connection.sendall(post({"inputs": inputs}, elements, path="/v2/models/echo/infer"))
        status, _, body = read_answer(connection)
    assert status == 400
    assert "1000" in json.loads(body)["error"]


@pytest.mark.parametrize("model", ["mlp", "mlp_delayed", "mlp_single", "lookup"])
@pytest.mark.parametrize("library", [http_client, grpc_client], ids=["http", "grpc"])
def test_thirty_two_clients_each_get_their_own_answers(server, model, library):
    name = "ids" if model == "lookup" else "x"
    table = np.arange(30, dtype=np.float32).reshape(10, 3)

    def work(seed: int) -> int:
        random = np.random.default_rng(seed)
        client = library.InferenceServerClient(server.http if library is http_client else server.grpc)
        right = 0
        for _ in range(10):
            count = int(random.integers(1, 4))
            if model == "lookup":
                array = random.integers(0, 10, (count, 2))
                expected = table[array]
            else:
                array = random.standard_normal((count, 16)).astype(np.float32)
                weights = np.random.default_rng(0)
                w1, w2 = (weights.standard_normal(shape).astype(np.float32) for shape in ((16, 32), (32, 4)))
                expected = np.maximum(array @ w1, 0) @ w2
            given = library.InferInput(name, list(array.shape), "INT64" if model == "lookup" else "FP32")
            given.set_data_from_numpy(array)
            found = client.infer(model, [given])
            right += np.allclose(found.as_numpy("rows" if model == "lookup" else "y"), expected, rtol=1e-3, atol=1e-4)
        client.close()
        return right

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(work, range(32))) == 320


def test_one_bad_request_in_a_batch_fails_alone(server):
    def work(number: int) -> str:
        ids = np.array([[1, 99 if number % 4 == 0 else 2]])
        try:
            found = infer(server, "http", "lookup", {"ids": ids}).as_numpy("rows")
        except InferenceServerException as error:
            return str(error.status())
        return "right" if found[0, 1, 0] == 6 else "wrong"

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(work, range(64)))
    assert results == ["500" if number % 4 == 0 else "right" for number in range(64)]


def typed(**contents: object) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="mlp")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 16], contents=contents or None)
    return request


def two_raw() -> service_pb2.ModelInferRequest:
    request = typed()
    request.raw_input_contents.extend([BLOB, BLOB])
    return request


GRPC_BAD = [
    pytest.param(typed(), id="no contents"),
    pytest.param(typed(fp32_contents=[0.0] * 15), id="too few values"),
    pytest.param(typed(int_contents=[0] * 16), id="values of another type"),
    pytest.param(two_raw(), id="more raw contents than inputs"),
]


@pytest.mark.parametrize("request_message", GRPC_BAD)
def test_bad_grpc_requests_are_invalid_arguments(server, request_message):
    import grpc

    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            ask(request_message, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        answer = ask(typed(fp32_contents=X.ravel().tolist()), timeout=20)
    np.testing.assert_allclose(
        np.frombuffer(answer.raw_output_contents[0], np.float32), good_answer(server).ravel(), rtol=1e-5
    )


def test_garbage_on_the_grpc_port_harms_nobody(server):
    host, port = server.grpc.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)) * 50)
    assert infer(server, "grpc", "mlp", {"x": X}).as_numpy("y").shape == (1, 4)


def test_damaged_requests_never_reach_an_internal_error(server):
    random = np.random.default_rng(11)
    for _ in range(400):
        damaged = bytearray(GOOD)
        for _ in range(int(random.integers(1, 6))):
            at = int(random.integers(0, len(damaged)))
            if random.random() < 0.5:
                damaged[at] = int(random.integers(0, 256))
            else:
                del damaged[at : at + int(random.integers(1, 20))]
        with connected(server) as connection:
            connection.sendall(damaged)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        assert not answer.startswith(b"HTTP/1.1 5"), bytes(damaged)
    assert good_answer(server).shape == (1, 4)
