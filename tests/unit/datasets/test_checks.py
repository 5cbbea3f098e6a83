"""What is wrong with data is told before any work, by field, sample and remedy."""

import numpy as np
import pytest

from lathe_api.data import Objective
from lathe_api.manifest import Signature, TensorSpec
from lathe_optimizers.context import Datasets
from lathe_optimizers.datasets import check_against_model, check_data
from lathe_optimizers.datasets.sources import ArrayDataset, Subset
from lathe_optimizers.errors import InputError

CLASSES = Objective.model_validate({"task": "Classification", "metric": "accuracy"})
VALUES = Objective.model_validate({"task": "Regression", "metric": "rmse"})
X = np.random.default_rng(0).random((30, 1, 4)).astype(np.float32)
Y = np.arange(30) % 3


def sets(x=X, y=Y, field="spec.data.evaluation", **more):
    return Datasets(evaluation=ArrayDataset(field, {"image": x}, y), **more)


def model(shape=(-1, 1, 4), datatype="FP32", output=(-1, 3)):
    return Signature(
        inputs=(TensorSpec(name="image", datatype=datatype, shape=shape),),
        outputs=(TensorSpec(name="output", datatype="FP32", shape=output),),
    )


def put(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("data", "objective", "message"),
    [
        (sets(X[:0], Y[:0]), CLASSES, r"spec\.data\.evaluation: 0 samples"),
        (
            sets(put(X, (7, 0, 1), np.nan)),
            CLASSES,
            r"evaluation\.inputs\[0\]: NaN or infinite values, first in sample 7",
        ),
        (sets(put(X, (7, 0, 1), np.inf)), CLASSES, r"first in sample 7"),
        (sets(y=Y.astype(np.float32)), CLASSES, r"evaluation\.target: float32.*integers from 0"),
        (sets(y=np.eye(3, dtype=np.int64)[Y]), CLASSES, r"shape \(3,\) per sample.*one class number"),
        (sets(y=put(Y, 4, -1)), CLASSES, r"class -1 in sample 4.*from 0"),
        (sets(y=put(Y.astype(float), 4, np.nan)), VALUES, r"target: NaN or infinite values, first in sample 4"),
        (sets(y=Y.astype(str)), VALUES, r"target: values of type <U.*Give numbers"),
        (sets(calibration=ArrayDataset("c", {"image": X[:0]}, Y[:0])), CLASSES, r"spec\.data\.calibration: 0 samples"),
        (sets(train=ArrayDataset("t", {"image": put(X, 3, np.nan)}, Y)), CLASSES, r"spec\.data\.train\.inputs\[0\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_data(data, objective, message):
    with pytest.raises(InputError, match=message):
        check_data(data, objective)


def test_unequal_lengths_are_refused_on_opening():
    with pytest.raises(
        InputError, match=r"spec\.data\.train: input image has shape \(30, 1, 4\) and the target \(29,\)"
    ):
        ArrayDataset("spec.data.train", {"image": X}, Y[:-1])


def test_sound_data_pass_without_remark():
    train = ArrayDataset("t", {"image": X + 1}, Y)
    assert check_data(sets(train=train), CLASSES) == ()


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_samples_in_the_training_set_are_counted(held_out):
    train = ArrayDataset("t", {"image": np.concatenate([X[:5], X + 1])}, np.concatenate([Y[:5], Y]))
    validation = ArrayDataset("t", {"image": X + 2}, Y) if held_out else None
    (warning,) = check_data(sets(train=train, validation=validation), CLASSES)
    assert "5 of its samples are in the training set too" in warning


@pytest.mark.parametrize(
    ("data", "signature", "objective", "message"),
    [
        (sets(), model().model_copy(update={"inputs": ()}), CLASSES, "the names image"),
        (sets(X.astype(np.float64)), model(), CLASSES, r"inputs\[0\]: values of type float64.*takes float32"),
        (sets(X[:, :, :3]), model(), CLASSES, r"samples of shape \(1, 3\).*\(1, 4\) per sample"),
        (sets(X[:, 0]), model(), CLASSES, r"samples of shape \(4,\)"),
        (sets(y=put(Y, 9, 3)), model(), CLASSES, r"class 3 in sample 9.*3 classes.*0 to 2"),
        (sets(y=put(Y % 2, 9, 2)), model(output=(-1, 1)), CLASSES, "2 classes"),
        (sets(y=np.zeros((30, 2))), model(output=(-1, 3)), VALUES, r"2 values per sample.*answers 3"),
    ],
    ids=["names", "type", "shape", "rank", "label", "binary label", "values"],
)
def test_data_that_do_not_fit_the_model(data, signature, objective, message):
    with pytest.raises(InputError, match=message):
        check_against_model(data, signature, objective)


@pytest.mark.parametrize("signature", [model(), model(shape=(-1, 1, -1)), model(output=(-1, -1))])
def test_data_that_fit_the_model(signature):
    check_against_model(sets(), signature, CLASSES)


def test_a_sample_of_a_part_is_named_by_its_place_in_the_file():
    part = Subset(ArrayDataset("t", {"image": put(X, 20, np.nan)}, Y), np.arange(10, 30))
    with pytest.raises(InputError, match="first in sample 20"):
        check_data(sets(train=part), CLASSES)
