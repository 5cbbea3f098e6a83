"""Which repository is written for which mode, and that it is whole or absent."""

import errno
import os
from pathlib import Path

import pytest

from lathe_api.manifest import Signature, TensorSpec
from lathe_api.targets import Batch, Hardware, Serving, ServingMode
from lathe_runtimes import repository as module
from lathe_runtimes.errors import InputError, RepositoryError
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.repository import read_repository, write_repository

DIGEST = f"sha256:{'0' * 64}"
SINGLE = Serving()
DYNAMIC = Serving(mode=ServingMode.DYNAMIC_BATCH, batch=Batch(max_size=16, max_queue_delay="3ms"))


def signature(*inputs: tuple[int, ...], datatype: str = "FP32") -> Signature:
    return Signature(
        inputs=tuple(
            TensorSpec(name=f"in{at}", datatype=datatype, shape=shape) for at, shape in enumerate(inputs or ((-1, 4),))
        ),
        outputs=(TensorSpec(name="out", datatype="FP32", shape=(-1, 2)),),
    )


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "given.onnx"
    path.write_bytes(b"weights")
    return path


def write(root: Path, given_onnx: Path, **changes) -> Path:
    given = {
        "name": "digits",
        "onnx": given_onnx,
        "signature": signature(),
        "serving": SINGLE,
        "hardware": Hardware.X86_VNNI,
        "digest": DIGEST,
        "profile": Profile.ONNXRUNTIME,
    }
    return write_repository(root, **{**given, **changes})


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_single_sample_declares_full_shapes_and_no_batching(tmp_path, onnx):
    folder = write(tmp_path / "models", onnx)
    (stored,) = read_repository(tmp_path / "models")
    assert files(folder) == ["1/model.onnx", "config.pbtxt"]
    assert (folder / "1" / "model.onnx").read_bytes() == b"weights"
    assert stored.config.platform == "onnxruntime_onnx"
    assert stored.config.max_batch_size == 0
    assert "max_batch_size: 0" in (folder / "config.pbtxt").read_text()
    assert list(stored.config.input[0].dims) == [-1, 4]
    assert not stored.config.HasField("dynamic_batching")
    assert [(group.count, group.kind) for group in stored.config.instance_group] == [(1, 2)]
    assert list(stored.config.model_warmup[0].inputs["in0"].dims) == [1, 4]
    assert stored.digest == DIGEST
    assert stored.versions == (1,)


def test_dynamic_batch_leaves_the_batch_dimension_to_the_server(tmp_path, onnx):
    write(tmp_path / "models", onnx, serving=DYNAMIC)
    (stored,) = read_repository(tmp_path / "models")
    assert stored.config.max_batch_size == 16
    assert list(stored.config.input[0].dims) == [4]
    assert list(stored.config.output[0].dims) == [2]
    assert stored.config.dynamic_batching.max_queue_delay_microseconds == 3000
    assert [warm_up.batch_size for warm_up in stored.config.model_warmup] == [1, 16]
    assert list(stored.config.model_warmup[0].inputs["in0"].dims) == [4]


def test_the_python_profile_carries_its_model_file(tmp_path, onnx):
    folder = write(tmp_path / "models", onnx, profile=Profile.PYTHON, threads=2, version=3)
    (stored,) = read_repository(tmp_path / "models")
    assert files(folder) == ["3/model.onnx", "3/model.py", "config.pbtxt"]
    assert (stored.config.backend, stored.config.platform) == ("python", "")
    assert stored.config.parameters["intra_op_thread_count"].string_value == "2"
    compile((folder / "3" / "model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize(
    ("hardware", "kind"),
    [(Hardware.CUDA, 1), (Hardware.X86_VNNI, 2), (Hardware.X86_AVX2, 2), (Hardware.ARM64, 2), (Hardware.EDGE, 2)],
)
def test_instances_are_placed_by_hardware(tmp_path, onnx, hardware, kind):
    write(tmp_path / "models", onnx, hardware=hardware)
    assert read_repository(tmp_path / "models")[0].config.instance_group[0].kind == kind


def test_a_tensor_without_dimensions_is_reshaped(tmp_path, onnx):
    write(tmp_path / "models", onnx, serving=DYNAMIC, signature=signature((-1,)))
    given = read_repository(tmp_path / "models")[0].config.input[0]
    assert list(given.dims) == [1]
    assert given.HasField("reshape")
    assert list(given.reshape.shape) == []


def test_free_sizes_are_not_made_up_for_a_warm_up(tmp_path, onnx):
    write(tmp_path / "models", onnx, serving=DYNAMIC, signature=signature((-1, -1, 3)))
    config = read_repository(tmp_path / "models")[0].config
    assert list(config.input[0].dims) == [-1, 3]
    assert len(config.model_warmup) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"serving": DYNAMIC, "signature": signature((1, 4))}, "SingleSample", id="fixed batch dimension"),
        pytest.param({"serving": DYNAMIC, "signature": signature(())}, "SingleSample", id="no batch dimension"),
        pytest.param({"signature": signature((-1, 0))}, "1 or more", id="size of zero"),
        pytest.param({"signature": signature(datatype="FLOAT")}, "FP32", id="unknown datatype"),
        pytest.param({"version": 0}, "1 or more", id="version zero"),
        pytest.param({"onnx": Path("missing.onnx")}, "missing.onnx", id="missing file"),
        *[
            pytest.param({"name": name}, "model name", id=f"name {name!r}")
            for name in ("", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "a\n", "a" * 129, "a b", "ü")
        ],
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_written(tmp_path, onnx, changes, words):
    with pytest.raises(InputError, match=words):
        write(tmp_path / "models", onnx, **changes)
    assert not (tmp_path / "models").exists()


def test_a_model_is_replaced_as_a_whole(tmp_path, onnx):
    root = tmp_path / "models"
    write(root, onnx, profile=Profile.PYTHON)
    onnx.write_bytes(b"better")
    folder = write(root, onnx, version=2)
    assert files(root) == ["digits/2/model.onnx", "digits/config.pbtxt"]
    assert (folder / "2" / "model.onnx").read_bytes() == b"better"


@pytest.mark.parametrize("call", range(5))
def test_a_full_disk_leaves_the_old_model_and_nothing_else(tmp_path, onnx, monkeypatch, call):
    root = tmp_path / "models"
    write(root, onnx)
    before = {path: (root / path).read_bytes() for path in files(root)}
    calls = []
    sync = os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(module.os, "fsync", fsync)
    onnx.write_bytes(b"never seen")
    if call < 4:  # the fifth flush follows the rename: the new model is in place by then
        with pytest.raises(RepositoryError, match="No space left"):
            write(root, onnx)
        assert {path: (root / path).read_bytes() for path in files(root)} == before
    assert [path.name for path in root.iterdir()] == ["digits"]


def test_what_a_killed_writer_left_is_removed_and_never_served(tmp_path, onnx):
    root = tmp_path / "models"
    (root / ".staging-dead" / "model" / "1").mkdir(parents=True)
    assert read_repository(root) == ()
    write(root, onnx)
    assert [path.name for path in root.iterdir()] == ["digits"]


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        pytest.param("", (10,), id="newest by default"),
        pytest.param("version_policy { latest { num_versions: 2 } }", (2, 10), id="two newest"),
        pytest.param("version_policy { all { } }", (1, 2, 10), id="all"),
        pytest.param("version_policy { specific { versions: [1, 7] } }", (1,), id="named"),
    ],
)
def test_versions_follow_the_policy(tmp_path, policy, served):
    for version in ("1", "2", "10", "x", "01"):
        (tmp_path / "m" / version).mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text(f'name: "m" {policy}')
    assert read_repository(tmp_path)[0].versions == served


@pytest.mark.parametrize(
    ("text", "words"),
    [("name: 'other'", "other"), ("nonsense: 1", "nonsense"), ("name: \x00", "config.pbtxt")],
)
def test_a_bad_configuration_names_its_file(tmp_path, text, words):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_repository(tmp_path)
    assert "config.pbtxt" in caught.value.where
