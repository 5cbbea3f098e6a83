"""One table of calls, every kind of `tritonclient`, both servers: they must behave alike."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.servers import LIBRARIES, MAX_BATCH, TYPES, call, fill_repository, infer, promised, tensors
from tritonclient.utils import InferenceServerException

from lathe_runtimes.errors import EnvironmentUnavailableError
from lathe_runtimes.launch import RunningServer, start_lathe, start_triton
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.triton import ensure_triton

pytestmark = pytest.mark.e2e
RANDOM = np.random.default_rng(7)


def rows(count: int, width: int) -> np.ndarray:
    return RANDOM.standard_normal((count, width)).astype(np.float32)


def mlp_answer(x: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(0)
    w1, w2 = (random.standard_normal(shape).astype(np.float32) for shape in ((16, 32), (32, 4)))
    return np.maximum(x @ w1, 0) @ w2


def one_of_each() -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {
        "BOOL": np.array([[True, False]]),
        "FP16": np.array([[0.5, -2]], np.float16),
        "FP32": np.array([[1e30, -0.25]], np.float32),
        "FP64": np.array([[1e300, -0.125]]),
        "BYTES": np.array([["äpfel", ""]], np.object_),
    }
    for kind in TYPES:
        if kind not in values:
            limits = np.iinfo(np.dtype(kind.lower()))
            values[kind] = np.array([[limits.min, limits.max]], limits.dtype)
    return {f"in_{kind}": values[kind] for kind in TYPES}


@pytest.fixture(scope="module", params=["lathe", "triton"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "lathe":
        repository = fill_repository(folder / "models", folder, Profile.ONNXRUNTIME)
        started = start_lathe(repository, log=folder / "server.log", threads=2)
    else:
        try:
            installation = ensure_triton()
        except EnvironmentUnavailableError as error:
            pytest.skip(str(error))
        repository = fill_repository(folder / "models", folder, Profile.PYTHON)
        started = start_triton(repository, log=folder / "server.log", installation=installation)
    with started:
        yield started.wait_ready(120)


@pytest.fixture(params=list(LIBRARIES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


X = rows(3, 16)
VALUE, COUNT = rows(2, 3), np.array([[1, 2, 3], [-4, 5, 6]])
FREE = rows(2, 5)
ANSWERS = [
    pytest.param("mlp", {"x": X}, {"y": mlp_answer(X)}, id="dynamic batch"),
    pytest.param("mlp", {"x": X[:1]}, {"y": mlp_answer(X[:1])}, id="dynamic batch of one"),
    pytest.param("mlp_delayed", {"x": X}, {"y": mlp_answer(X)}, id="dynamic batch with a queue delay"),
    pytest.param("mlp_single", {"x": X}, {"y": mlp_answer(X)}, id="single sample"),
    pytest.param(
        "several",
        {"value": VALUE, "count": COUNT},
        {"total": VALUE + COUNT.astype(np.float32), "square": COUNT * COUNT, "below": VALUE < COUNT},
        id="several inputs and outputs",
    ),
    pytest.param("free", {"x": FREE}, {"y": np.cumsum(FREE, axis=1)}, id="free sizes"),
    pytest.param("free", {"x": FREE[:, :2]}, {"y": np.cumsum(FREE[:, :2], axis=1)}, id="free sizes, another length"),
    pytest.param("scalar", {"x": np.array([[3], [4]])}, {"y": np.array([[6], [8]])}, id="one number per sample"),
    pytest.param(
        "fixed", {"x": np.array([[1, -1, 0]], np.float32)}, {"y": np.array([[1, 0, 0]], np.float32)}, id="fixed batch"
    ),
    pytest.param(
        "lookup", {"ids": np.array([[1, 9]])}, {"rows": np.arange(30, dtype=np.float32).reshape(10, 3)[[[1, 9]]]},
        id="integer input",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "arrays", "expected"), ANSWERS)
def test_answers_are_right_by_every_client(server, kind, model, arrays, expected):
    result = infer(server, kind, model, arrays)
    for name, array in expected.items():
        found = result.as_numpy(name)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-5)


def test_every_datatype_goes_both_ways(server, kind):
    arrays = one_of_each()
    result = infer(server, kind, "echo", arrays)
    for name, array in arrays.items():
        found = result.as_numpy(name.replace("in_", "out_"))
        if name == "in_BYTES":
            assert [item.decode() for item in found.ravel()] == list(array.ravel())
        else:
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_the_request_id_comes_back(server, kind):
    result = infer(server, kind, "mlp", {"x": X}, request_id="abc-1")
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "abc-1"


def test_only_the_requested_outputs_are_sent(server, kind):
    wanted = [LIBRARIES[kind].InferRequestedOutput("square")]
    result = infer(server, kind, "several", {"value": VALUE, "count": COUNT}, outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("square"), COUNT * COUNT)
    assert result.as_numpy("total") is None


def test_a_version_can_be_named(server, kind):
    result = infer(server, kind, "mlp", {"x": X}, model_version="1")
    np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-4, atol=1e-5)


def test_json_tensors_are_read_and_written(server):
    library = LIBRARIES["http"]
    given = tensors("http", {"value": VALUE, "count": COUNT}, binary=False)
    wanted = [library.InferRequestedOutput(name, binary_data=False) for name in ("total", "square", "below")]
    result = call(server, "http", "infer", "several", given, outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("total"), VALUE + COUNT, rtol=1e-5)
    np.testing.assert_array_equal(result.as_numpy("square"), COUNT * COUNT)
    np.testing.assert_array_equal(result.as_numpy("below"), VALUE < COUNT)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_requests_and_answers(server, encoding):
    result = infer(
        server, "http", "mlp", {"x": X}, request_compression_algorithm=encoding, response_compression_algorithm=encoding
    )
    np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-4, atol=1e-5)


REFUSED = [
    pytest.param("nope", {"x": X}, {}, 404, "NOT_FOUND", id="unknown model"),
    pytest.param("../mlp", {"x": X}, {}, 404, "NOT_FOUND", id="path in the model name"),
    pytest.param("mlp", {"z": X}, {}, 400, "INVALID_ARGUMENT", id="unknown input"),
    pytest.param("mlp", {"x": X.astype(np.float64)}, {}, 400, "INVALID_ARGUMENT", id="wrong datatype"),
    pytest.param("mlp", {"x": X[:, :9].copy()}, {}, 400, "INVALID_ARGUMENT", id="wrong shape"),
    pytest.param("mlp", {"x": X[0]}, {}, 400, "INVALID_ARGUMENT", id="wrong rank"),
    pytest.param("mlp", {"x": rows(MAX_BATCH + 1, 16)}, {}, 400, "INVALID_ARGUMENT", id="batch too large"),
    pytest.param("mlp", {"x": X, "z": X}, {}, 400, "INVALID_ARGUMENT", id="one input too many"),
    pytest.param("several", {"value": VALUE}, {}, 400, "INVALID_ARGUMENT", id="missing input"),
    pytest.param("several", {"value": VALUE, "count": COUNT[:1]}, {}, 400, "INVALID_ARGUMENT", id="unequal batches"),
    pytest.param("lookup", {"ids": np.array([[1, 99]])}, {}, 500, "INTERNAL", id="failure inside the network"),
]


@pytest.mark.parametrize(("model", "arrays", "options", "http", "grpc"), REFUSED)
def test_refusals_have_the_right_status(server, kind, model, arrays, options, http, grpc):
    with pytest.raises(InferenceServerException) as caught:
        infer(server, kind, model, arrays, **options)
    assert caught.value.status() == (str(http) if kind.startswith("http") else f"StatusCode.{grpc}")
    assert caught.value.message()


@pytest.mark.parametrize(("version", "status"), [("7", "NOT_FOUND"), ("seven", "INVALID_ARGUMENT")])
def test_unknown_versions_are_refused(server, version, status):
    with pytest.raises(InferenceServerException) as caught:
        infer(server, "grpc", "mlp", {"x": X}, model_version=version)
    assert caught.value.status() == f"StatusCode.{status}"


def test_health_and_readiness(server, kind):
    assert call(server, kind, "is_server_live") is True
    assert call(server, kind, "is_server_ready") is True
    assert call(server, kind, "is_model_ready", "mlp") is True
    assert call(server, kind, "is_model_ready", "mlp", "1") is True
    assert call(server, kind, "is_model_ready", "nope") is False


def test_metadata_names_inputs_and_outputs(server):
    expected = {
        "mlp": ([("x", "FP32", [-1, 16])], [("y", "FP32", [-1, 4])]),
        "mlp_single": ([("x", "FP32", [-1, 16])], [("y", "FP32", [-1, 4])]),
        "scalar": ([("x", "INT64", [-1, 1])], [("y", "INT64", [-1, 1])]),
        "fixed": ([("x", "FP32", [1, 3])], [("y", "FP32", [1, 3])]),
    }
    for name, sides in expected.items():
        found = call(server, "http", "get_model_metadata", name)
        remote = call(server, "grpc", "get_model_metadata", name)
        assert found["versions"] == list(remote.versions) == ["1"]
        for key, side in zip(("inputs", "outputs"), sides, strict=True):
            assert [(one["name"], one["datatype"], one["shape"]) for one in found[key]] == side
            assert [(one.name, one.datatype, list(one.shape)) for one in getattr(remote, key)] == side


def test_the_configuration_carries_digest_and_mode(server, tmp_path):
    dynamic = call(server, "http", "get_model_config", "mlp_delayed")
    single = call(server, "http", "get_model_config", "mlp_single")
    assert dynamic["parameters"]["lathe.digest"]["string_value"] == promised(tmp_path, "mlp_delayed")
    assert dynamic["max_batch_size"] == MAX_BATCH
    assert dynamic["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert single["max_batch_size"] == 0
    assert "dynamic_batching" not in single
    assert single["input"][0]["dims"] == [-1, 16]
    remote = call(server, "grpc", "get_model_config", "mlp").config
    assert remote.parameters["lathe.digest"].string_value == promised(tmp_path, "mlp")


def test_server_metadata_and_index(server):
    assert "binary_tensor_data" in call(server, "http", "get_server_metadata")["extensions"]
    assert "binary_tensor_data" in call(server, "grpc", "get_server_metadata").extensions
    listed = {(one["name"], one["state"]) for one in call(server, "http", "get_model_repository_index")}
    remote = {(one.name, one.state) for one in call(server, "grpc", "get_model_repository_index").models}
    assert ("mlp", "READY") in listed
    assert listed == remote


def test_statistics_count_samples(server):
    def samples() -> int:
        return call(server, "http", "get_inference_statistics", "free")["model_stats"][0]["inference_count"]

    before = samples()
    infer(server, "http", "free", {"x": FREE})
    assert samples() == before + 2
    remote = call(server, "grpc", "get_inference_statistics", "free").model_stats[0]
    assert remote.inference_count == before + 2
    assert remote.inference_stats.success.count >= 1


def test_a_model_cannot_be_loaded_at_run_time(server):
    for kind in ("http", "grpc"):
        with pytest.raises(InferenceServerException):
            call(server, kind, "load_model", "mlp")
