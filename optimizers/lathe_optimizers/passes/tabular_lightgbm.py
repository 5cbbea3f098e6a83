"""Reads LightGBM models from the text files of `Booster.save_model`."""

from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray
from onnxmltools import convert_lightgbm

from lathe_optimizers.errors import InputError
from lathe_optimizers.passes.tabular_import import (
    Converted,
    Table,
    convert_booster,
    first_line,
    require_features,
    require_objective,
)

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
    require_objective(objective, table, classifies=objective in _CLASSIFIERS)
    require_features(table, booster.num_feature())
    model = convert_booster(convert_lightgbm, booster, table, shown, zipmap=False)

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(booster.predict(x))

    return Converted(model, answer, f"LightGBM {lightgbm.__version__}", {"objective": objective})
