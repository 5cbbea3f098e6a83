"""Reads XGBoost models from the JSON or UBJ files of `Booster.save_model`."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import xgboost
from numpy.typing import NDArray
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from lathe_api.data import Task
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes.tabular_import import MODEL, Converted, Table, first_line, require_features

_OPSET: Final = 15
"""The newest that its converter is sure of; modernised afterwards."""
_CLASSIFIERS: Final = ("binary:", "multi:")


def read(source: Path, shown: str, table: Table) -> Converted:
    """Load and convert a booster of trees.

    Raises:
        InputError: the file cannot be read, is a model of another task, or cannot be converted.
    """
    try:
        booster = xgboost.Booster()
        booster.load_model(bytearray(source.read_bytes()))
    except xgboost.core.XGBoostError as e:
        raise InputError(
            shown, f"not a model of XGBoost ({first_line(e)})", "Save it with booster.save_model('model.json')."
        ) from e
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if objective.startswith(_CLASSIFIERS) is not (table.task is Task.CLASSIFICATION):
        raise InputError(MODEL, f"a model trained for {objective}", "Write the task that it was trained for.")
    if objective == "multi:softmax":
        # Same trees and the same probabilities; only `predict` would answer labels.
        booster.set_param({"objective": "multi:softprob"})
    require_features(table, booster.num_features())
    # The converter reads the place of a feature out of names of its own.
    booster.feature_names = None
    try:
        model = convert_xgboost(
            booster, initial_types=[(table.name, FloatTensorType([None, table.features]))], target_opset=_OPSET
        )
    except Exception as e:  # the converter raises errors of its own and of whatever it meets
        raise InputError(shown, f"a model without ONNX form ({first_line(e)})", "Train a booster of trees.") from e

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(booster.predict(xgboost.DMatrix(x)))

    return Converted(model, answer, f"XGBoost {xgboost.__version__}", {"objective": objective})
