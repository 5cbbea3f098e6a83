"""Reads XGBoost models from the JSON or UBJ files of `Booster.save_model`."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import xgboost
from numpy.typing import NDArray
from onnxmltools import convert_xgboost

from lathe_optimizers.errors import InputError
from lathe_optimizers.passes.tabular_import import (
    Converted,
    Table,
    convert_booster,
    first_line,
    require_features,
    require_objective,
)

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
    require_objective(objective, table, classifies=objective.startswith(_CLASSIFIERS))
    if objective == "multi:softmax":
        # Same trees and the same probabilities; only `predict` would answer labels.
        booster.set_param({"objective": "multi:softprob"})
    require_features(table, booster.num_features())
    # The converter reads the place of a feature out of names of its own.
    booster.feature_names = None
    model = convert_booster(convert_xgboost, booster, table, shown)

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(booster.predict(xgboost.DMatrix(x)))

    return Converted(model, answer, f"XGBoost {xgboost.__version__}", {"objective": objective})
