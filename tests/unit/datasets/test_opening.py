"""Data sets are opened by format and split by seed."""

import sys
import zipfile

import numpy as np
import pytest

from lathe_api.data import Data
from lathe_optimizers.context import batches
from lathe_optimizers.datasets import open_datasets
from lathe_optimizers.errors import InputError, UnsafeFileError

SOURCE = {"inputs": [{"name": "image", "field": "x"}], "target": "y"}


def declared(**changes):
    sets = {"train": SOURCE | {"uri": "train.npz"}, "evaluation": SOURCE | {"uri": "test.npz"}}
    return Data.model_validate(sets | changes)


def opened(folder, seed=0, **changes):
    return open_datasets(declared(**changes), lambda _, source: folder / source.uri, seed)


@pytest.fixture
def folder(tmp_path):
    for name, count in (("train", 200), ("test", 50)):
        y = np.arange(count) % 10
        np.savez(tmp_path / f"{name}.npz", x=np.arange(count, dtype=np.float32)[:, None], y=y)
    return tmp_path


def rows(data):
    return sorted(int(v) for inputs, _ in batches(data, 7) for v in inputs[0][:, 0])


def test_validation_is_held_out_of_training_evenly_over_the_classes(folder):
    data = opened(folder)
    assert len(data.train) == 180
    assert len(data.validation) == 20
    assert rows(data.train) + rows(data.validation) != rows(data.train)
    assert sorted(rows(data.train) + rows(data.validation)) == list(range(200))
    _, labels = data.validation.take(np.arange(20))
    assert np.bincount(labels).tolist() == [2] * 10


def test_calibration_comes_out_of_training_evenly_over_the_classes(folder):
    data = opened(folder, calibration={"from": "Train", "samples": 30})
    assert set(rows(data.calibration)) <= set(rows(data.train))
    _, labels = data.calibration.take(np.arange(30))
    assert np.bincount(labels).tolist() == [3] * 10


def test_the_split_is_decided_by_the_seed(folder):
    assert rows(opened(folder, 1).validation) == rows(opened(folder, 1).validation)
    assert rows(opened(folder, 1).validation) != rows(opened(folder, 2).validation)


def test_calibration_may_have_a_set_of_its_own(folder):
    data = opened(folder, calibration={"source": SOURCE | {"uri": "test.npz"}, "samples": 10})
    assert len(data.calibration) == 10


def test_a_few_samples_are_all_trained_on(tmp_path):
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((4, 1), np.float32), y=np.arange(4))
    data = opened(tmp_path)
    assert (len(data.train), len(data.validation)) == (4, 0)


def test_a_missing_array_lists_those_that_are_there(folder):
    with pytest.raises(InputError, match=r"spec\.data\.train\.inputs\[0\]\.field.*no array 'pixels'.*x, y"):
        opened(folder, train=SOURCE | {"uri": "train.npz", "inputs": [{"name": "image", "field": "pixels"}]})


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04torn"], ids=["empty", "text", "torn"])
def test_a_file_that_is_no_npz_is_named(folder, content):
    (folder / "test.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"spec\.data\.evaluation.*test\.npz"):
        opened(folder)


def test_a_damaged_compressed_array_is_named(folder):
    np.savez_compressed(folder / "test.npz", x=np.random.default_rng(0).random((50, 9)), y=np.zeros(50, np.int64))
    content = bytearray((folder / "test.npz").read_bytes())
    content[200:260] = bytes(60)
    (folder / "test.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"test\.npz"):
        opened(folder)


def test_pickled_arrays_are_never_loaded(folder):
    marker = folder / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    np.savez(folder / "test.npz", x=np.array([Payload()] * 3, dtype=object), y=np.zeros(3, np.int64))
    with pytest.raises(UnsafeFileError, match=r"test\.npz"):
        opened(folder)
    assert not marker.exists()


def test_an_array_that_unpacks_to_far_more_is_refused(folder):
    with zipfile.ZipFile(folder / "test.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100 << 20))
    with pytest.raises(UnsafeFileError, match="unpacks from"):
        opened(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"uri": "data.csv"}, "data.csv does not tell"),
        ({"uri": "test.npz", "format": "ImageFolder"}, "is a file"),
    ],
)
def test_an_unknown_or_wrong_format_says_what_to_write(folder, source, message):
    (folder / "data.csv").touch()
    with pytest.raises(InputError, match=message):
        opened(folder, evaluation=SOURCE | source)


def test_parquet_columns_and_lists_become_arrays(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    nested = pyarrow.array([[[1.0, 2.0]], [[3.0, 4.0]]], pyarrow.list_(pyarrow.list_(pyarrow.float32())))
    fixed = pyarrow.array([[1, 2, 3], [4, 5, 6]], pyarrow.list_(pyarrow.int64(), 3))
    parquet.write_table(pyarrow.table({"a": nested, "b": fixed, "y": [0, 1]}), folder / "test.parquet")
    fields = [{"name": "first", "field": "a"}, {"name": "second", "field": "b"}]
    inputs, target = opened(
        folder, evaluation={"uri": "test.parquet", "inputs": fields, "target": "y"}
    ).evaluation.take(np.array([1, 0]))
    assert inputs[0].tolist() == [[[3.0, 4.0]], [[1.0, 2.0]]]
    assert inputs[0].dtype == np.float32
    assert inputs[1].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert target.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("column", "message"),
    [([[1.0], [2.0, 3.0]], "different lengths"), ([1.0, None], "1 rows are empty"), (["a", "b"], "Give numbers")],
    ids=["ragged", "empty", "text"],
)
def test_parquet_columns_that_are_no_tensors_are_named(folder, column, message):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"x": column, "y": [0, 1]}), folder / "test.parquet")
    with pytest.raises(InputError, match=message):
        opened(folder, evaluation=SOURCE | {"uri": "test.parquet"})


def test_a_missing_extra_says_what_to_install(folder, monkeypatch):
    (folder / "test.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"lathe-platform\[data\]"):
        opened(folder, evaluation=SOURCE | {"uri": "test.parquet"})


def image_folder(folder, sizes=((4, 3), (4, 3), (4, 3)), mode="RGB"):
    image = pytest.importorskip("PIL.Image")
    for number, (name, size) in enumerate(zip(("cat", "cat", "dog"), sizes, strict=True)):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        color = 255 if mode == "L" else (255, 0, 51)
        image.new(mode, size, color).save(folder / "images" / name / f"{number}.png")
    return {"uri": "images", "inputs": [{"name": "picture", "field": "image"}], "target": "class"}


def test_image_folders_give_channels_first_from_0_to_1_and_classes_by_name(folder):
    data = opened(folder, evaluation=image_folder(folder)).evaluation
    assert data.input_names == ("picture",)
    inputs, target = data.take(np.array([0, 2]))
    assert inputs[0].shape == (2, 3, 3, 4)
    assert inputs[0].dtype == np.float32
    assert inputs[0][0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert target.tolist() == [0, 1]


def test_gray_images_have_one_channel(folder):
    inputs, _ = opened(folder, evaluation=image_folder(folder, mode="L")).evaluation.take(np.array([0]))
    assert inputs[0].shape == (1, 1, 3, 4)


def test_images_of_other_sizes_are_named(folder):
    data = opened(folder, evaluation=image_folder(folder, ((4, 3), (5, 3), (4, 3)))).evaluation
    with pytest.raises(InputError, match=r"1\.png has shape \(3, 3, 5\)"):
        data.take(np.arange(3))


def test_a_torn_image_is_named(folder):
    source = image_folder(folder)
    path = folder / "images" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"2\.png is no readable image"):
        opened(folder, evaluation=source).evaluation.take(np.arange(3))


def test_classes_of_images_are_numbered_by_the_training_set(folder):
    source = image_folder(folder)
    (folder / "few" / "dog").mkdir(parents=True)
    (folder / "images" / "dog" / "2.png").rename(folder / "few" / "dog" / "2.png")
    (folder / "images" / "dog" / "0.png").write_bytes((folder / "images" / "cat" / "0.png").read_bytes())
    data = opened(folder, train=source, evaluation=source | {"uri": "few"})
    assert data.evaluation.take(np.array([0]))[1].tolist() == [1]
    (folder / "few" / "bird").mkdir()
    with pytest.raises(InputError, match="the class folder bird"):
        opened(folder, train=source, evaluation=source | {"uri": "few"})
