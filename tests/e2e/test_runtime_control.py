"""Loading, unloading, shared memory, classification, settings, streams: one table of calls, both servers.

Where the two differ on purpose, the table says so and why.
"""

import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from support.servers import LIBRARIES, call, connected, fill_repository, infer, read_answer, tensors
from tritonclient.utils import InferenceServerException, shared_memory

from lathe_runtimes.errors import EnvironmentUnavailableError
from lathe_runtimes.launch import RunningServer, start_lathe, start_triton
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.triton import ensure_triton

pytestmark = pytest.mark.e2e
X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
IDENTITY = np.array([[3, 1, 3]], np.float32)
NAMES = ("mlp", "scalar", "fixed", "several")


@pytest.fixture(scope="module", params=["lathe", "triton"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "lathe":
        repository = fill_repository(folder / "models", folder, Profile.ONNXRUNTIME, NAMES)
        arguments = ["--model-control", "explicit", "--load-model", "mlp", "--load-model", "fixed"]
        started = start_lathe(repository, log=folder / "server.log", threads=2, arguments=arguments)
    else:
        try:
            installation = ensure_triton()
        except EnvironmentUnavailableError as error:
            pytest.skip(str(error))
        repository = fill_repository(folder / "models", folder, Profile.PYTHON, NAMES)
        arguments = ["--model-control-mode=explicit", "--load-model=mlp", "--load-model=fixed"]
        started = start_triton(repository, log=folder / "server.log", installation=installation, arguments=arguments)
    with started:
        yield started.wait_ready(120)


@pytest.fixture(params=list(LIBRARIES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_model_is_loaded_and_unloaded(server, kind):
    assert call(server, kind, "is_model_ready", "scalar") is False
    call(server, kind, "load_model", "scalar")
    assert call(server, kind, "is_model_ready", "scalar") is True
    assert infer(server, kind, "scalar", {"x": np.array([[3]])}).as_numpy("y").tolist() == [[6]]
    call(server, kind, "load_model", "scalar")
    call(server, kind, "unload_model", "scalar")
    assert call(server, kind, "is_model_ready", "scalar") is False
    with pytest.raises(InferenceServerException) as caught:
        infer(server, kind, "scalar", {"x": np.array([[3]])})
    assert caught.value.status() in {"404", "StatusCode.NOT_FOUND"}


def test_the_index_tells_what_is_ready_and_what_is_not(server):
    listed = {one["name"]: one.get("state", "") for one in call(server, "http", "get_model_repository_index")}
    remote = {one.name: one.state for one in call(server, "grpc", "get_model_repository_index").models}
    assert listed == remote
    assert (listed["mlp"], listed["several"]) == ("READY", "")


REFUSED = [
    pytest.param("load_model", ("nope",), "500", "INTERNAL", id="load an unknown model"),
    pytest.param("load_model", ("..",), "500", "INTERNAL", id="load a path"),
    pytest.param("get_inference_statistics", ("nope",), "4", "", id="statistics of an unknown model"),
    pytest.param("get_trace_settings", ("nope",), "400", "INVALID_ARGUMENT", id="trace of an unknown model"),
    pytest.param("update_trace_settings", (None, {"trace_rate": "x"}), "400", "INVALID_ARGUMENT", id="trace rate"),
    pytest.param("update_trace_settings", (None, {"trace_file": "/f"}), "501", "UNIMPLEMENTED", id="trace file"),
    pytest.param("update_log_settings", ({"log_file": "/f"},), "501", "UNIMPLEMENTED", id="log file"),
    pytest.param("get_system_shared_memory_status", ("r",), "404", "NOT_FOUND", id="unknown region"),
    pytest.param("register_system_shared_memory", ("r", "/none", 4), "500", "INTERNAL", id="no such memory"),
    pytest.param("register_system_shared_memory", ("r", "/../etc/passwd", 4), "500", "INTERNAL", id="key is a path"),
    pytest.param("get_cuda_shared_memory_status", ("r",), "404", "NOT_FOUND", id="unknown CUDA region"),
]


@pytest.mark.parametrize(("method", "arguments", "http", "remote"), REFUSED)
def test_refused_control_calls(server, kind, method, arguments, http, remote):
    with pytest.raises(InferenceServerException) as caught:
        call(server, kind, method, *arguments)
    expected = http if kind.startswith("http") else f"StatusCode.{remote}"
    if kind == "http-aio" and ".." in arguments:
        expected = "404"  # its library resolves the path itself, and asks for another one
    assert caught.value.status().startswith(expected)


def test_what_is_not_there_can_be_unloaded_and_unregistered(server, kind):
    call(server, kind, "unload_model", "nope")
    call(server, kind, "unregister_system_shared_memory", "nope")
    call(server, kind, "unregister_cuda_shared_memory")
    assert len(list(_regions(call(server, kind, "get_system_shared_memory_status")))) == 0


def _regions(found):
    return found if isinstance(found, list) else found.regions.values()


def test_settings_are_changed_and_reset(server):
    assert call(server, "http", "get_trace_settings")["trace_level"] == ["OFF"]
    assert call(server, "http", "update_trace_settings", None, {"trace_rate": "5"})["trace_rate"] == "5"
    changed = call(server, "grpc", "update_trace_settings", "mlp", {"trace_rate": "9"})
    assert list(changed.settings["trace_rate"].value) == ["9"]
    assert call(server, "http", "get_trace_settings", "fixed")["trace_rate"] == "5"
    assert call(server, "http", "update_trace_settings", "mlp", {"trace_rate": None})["trace_rate"] == "5"
    assert call(server, "http", "update_trace_settings", None, {"trace_rate": None})["trace_rate"] == "1000"
    assert call(server, "http", "update_log_settings", {"log_info": False})["log_info"] is False
    assert call(server, "grpc", "get_log_settings").settings["log_info"].bool_param is False
    assert call(server, "http", "update_log_settings", {"log_info": True})["log_verbose_level"] == 0


CLASSES = [
    pytest.param("fixed", IDENTITY, 2, [b"3.000000:0", b"3.000000:2"], (2,), id="without batch"),
    pytest.param("fixed", IDENTITY, 9, [b"3.000000:0", b"3.000000:2", b"1.000000:1"], (3,), id="more than there are"),
    pytest.param("mlp", np.zeros((2, 16), np.float32), 1, [b"0.000000:0"] * 2, (2, 1), id="each sample"),
]


@pytest.mark.parametrize(("model", "array", "count", "expected", "shape"), CLASSES)
def test_the_largest_classes(server, kind, model, array, count, expected, shape):
    wanted = [LIBRARIES[kind].InferRequestedOutput("y", class_count=count)]
    found = infer(server, kind, model, {"x": array}, outputs=wanted).as_numpy("y")
    assert found.shape == shape
    assert list(found.ravel()) == expected


@pytest.fixture
def region(server):
    handle = shared_memory.create_shared_memory_region("lathe_r", "/lathe_conformance", 256)
    try:
        yield handle
    finally:
        call(server, "http", "unregister_system_shared_memory")
        shared_memory.destroy_shared_memory_region(handle)


def _in_memory(kind, size, offset, room, to):
    given = LIBRARIES[kind].InferInput("x", [2, 16], "FP32")
    given.set_shared_memory("r", size, offset)
    wanted = LIBRARIES[kind].InferRequestedOutput("y")
    wanted.set_shared_memory("r", room, to)
    return [given], [wanted]


def test_tensors_travel_through_shared_memory(server, kind, region):
    shared_memory.set_shared_memory_region(region, [X])
    call(server, kind, "register_system_shared_memory", "r", "/lathe_conformance", 256)
    inputs, outputs = _in_memory(kind, 128, 0, 32, 128)
    result = call(server, kind, "infer", "mlp", inputs, outputs=outputs)
    assert result.get_output("y") is not None
    found = shared_memory.get_contents_as_numpy(region, np.float32, [2, 4], 128)
    np.testing.assert_allclose(found, infer(server, kind, "mlp", {"x": X}).as_numpy("y"), rtol=1e-5)
    with pytest.raises(InferenceServerException):
        call(server, kind, "register_system_shared_memory", "r", "/lathe_conformance", 256)


@pytest.mark.parametrize(
    ("place", "http", "remote"),
    [
        pytest.param((128, 0, 16, 128), "500", "INTERNAL", id="output does not fit"),
        pytest.param((128, 200, 32, 128), "400", "INVALID_ARGUMENT", id="input outside"),
        pytest.param((128, 0, 64, 250), "400", "INVALID_ARGUMENT", id="output outside"),
        pytest.param((64, 0, 32, 128), "400", "INVALID_ARGUMENT", id="input too short"),
    ],
)
def test_shared_memory_is_left_by_nobody(server, kind, region, place, http, remote):
    call(server, kind, "register_system_shared_memory", "r", "/lathe_conformance", 256)
    inputs, outputs = _in_memory(kind, *place)
    with pytest.raises(InferenceServerException) as caught:
        call(server, kind, "infer", "mlp", inputs, outputs=outputs)
    assert caught.value.status() == (http if kind.startswith("http") else f"StatusCode.{remote}")


def test_request_parameters_are_taken(server, kind):
    found = infer(server, kind, "mlp", {"x": X}, priority=2, timeout=5_000_000, parameters={"mine": "a", "n": 1})
    assert found.as_numpy("y").shape == (2, 4)


def test_a_stream_answers_in_order_and_survives_a_bad_request(server):
    answers: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for number, name in enumerate(("mlp", "nope", "mlp")):
            client.async_stream_infer(name, tensors("grpc", {"x": X}), request_id=str(number))
        client.async_stream_infer("mlp", tensors("grpc", {"x": X}), request_id="3", enable_empty_final_response=True)
        found = [answers.get(timeout=30) for _ in range(4)]
        client.stop_stream()
    good = [result.get_response() for result, error in found if error is None]
    assert [one.id for one in good] == ["0", "2", "3"]
    assert good[-1].parameters["triton_final_response"].bool_param is True
    assert len([error for _, error in found if error is not None]) == 1


@pytest.mark.parametrize(
    ("service", "expected"),
    [(b"", b"\x08\x01"), (b"\n\x1einference.GRPCInferenceService", b"\x08\x01"), (b"\n\x01x", None)],
)
def test_the_standard_health_service(server, service, expected):
    if server.name == "Triton":
        pytest.skip("it answers for every name alike, and NOT_SERVING once any load has failed")
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary("/grpc.health.v1.Health/Check")
        if expected is not None:
            assert ask(service, timeout=20) == expected
            return
        with pytest.raises(grpc.RpcError) as caught:
            ask(service, timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_metrics_carry_tritons_names(server):
    if server.name == "Triton":
        pytest.skip("its metrics have a port of their own")
    infer(server, "http", "mlp", {"x": X})
    with connected(server) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        status, headers, body = read_answer(connection)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    rows = dict(line.rsplit(b" ", 1) for line in body.splitlines() if not line.startswith(b"#"))
    assert int(rows[b'nv_inference_request_success{model="mlp",version="1"}']) >= 1
    assert int(rows[b'nv_inference_request_failure{model="mlp",version="1",reason="BACKEND"}']) == 0
    assert int(rows[b'lathe_model_memory_bytes{model="mlp",version="1"}']) > 0
