"""Reads LightGBM models from the text files of `Booster.save_model`."""

from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

from lathe_api.data import Task
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes.tabular_import import MODEL, Converted, Table, first_line, require_features

_OPSET: Final = 15
"""The newest that its converter is sure of; modernised afterwards."""
_CLASSIFIERS: Final = ("binary", "multiclass", "multiclassova", "softmax")


def read(source: Path, shown: str, table: Table) -> Converted:
    """Load and convert a booster.

    Raises:
        InputError: the file cannot be read, is a model of another task, or cannot be converted.
    """
    try:
        booster = lightgbm.Booster(model_str=source.read_text(encoding="utf-8"))
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as e:
        raise InputError(
            shown, f"not a model of LightGBM ({first_line(e)})", "Save it with booster.save_model('model.txt')."
        ) from e
    objective = str(booster.dump_model(num_iteration=1).get("objective", "")).partition(" ")[0]
    if (objective in _CLASSIFIERS) is not (table.task is Task.CLASSIFICATION):
        raise InputError(MODEL, f"a model trained for {objective}", "Write the task that it was trained for.")
    require_features(table, booster.num_feature())
    try:
        model = convert_lightgbm(
            booster,
            initial_types=[(table.name, FloatTensorType([None, table.features]))],
            target_opset=_OPSET,
            zipmap=False,
        )
    except Exception as e:  # the converter raises errors of its own and of whatever it meets
        raise InputError(shown, f"a model without ONNX form ({first_line(e)})", "Train a booster of trees.") from e

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(booster.predict(x))

    return Converted(model, answer, f"LightGBM {lightgbm.__version__}", {"objective": objective})
