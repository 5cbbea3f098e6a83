"""Reads scikit-learn models from skops files: no code runs while they are loaded, and what they hold is checked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import sklearn
import skops.io
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import is_classifier, is_regressor

from lathe_api.data import Task
from lathe_optimizers.errors import InputError, UnsafeFileError
from lathe_optimizers.passes.onnx_import import OPSET
from lathe_optimizers.passes.tabular_import import (
    MODEL,
    Converted,
    Table,
    first_line,
    require_classes,
    require_features,
)

_ML_OPSET: Final = 3
_TREE: Final = "sklearn.tree._tree.Tree"
_HISTOGRAM_TREE: Final = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_TRUSTED: Final = (
    _TREE,
    _HISTOGRAM_TREE,
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
"""Beyond what skops trusts: optimisers are plain data, and trees are checked before they are asked."""
_DEEPEST: Final = 12
_LEAF: Final = -1


def read(source: Path, shown: str, table: Table) -> Converted:
    """Load, check and convert an estimator or pipeline.

    Raises:
        UnsafeFileError: it holds a type that is not known to be harmless, or a tree that leads outside itself.
        InputError: it is no skops file, no estimator of the task, or cannot be converted.
    """
    estimator = _load(source, shown)
    _require_task(estimator, table)
    for tree in _trees(estimator, _DEEPEST):
        _require_sound(tree, table.features)
    require_features(table, int(getattr(estimator, "n_features_in_", table.features)))
    classifies = is_classifier(estimator)
    if classifies:
        require_classes(estimator.classes_, shown)
    options = {"zipmap": False} if classifies and hasattr(estimator, "predict_proba") else None
    try:
        model = convert_sklearn(
            estimator,
            initial_types=[(table.name, FloatTensorType([None, table.features]))],
            target_opset={"": OPSET, "ai.onnx.ml": _ML_OPSET},
            options=options,
        )
    except Exception as e:  # the converter raises errors of its own and of whatever it meets
        raise InputError(
            shown, f"{_name(estimator)}, which has no ONNX form ({first_line(e)})", "Use another estimator."
        ) from e

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        for method in ("predict_proba", "decision_function") if classifies else ():
            if hasattr(estimator, method):
                return np.asarray(getattr(estimator, method)(x))
        return np.asarray(estimator.predict(x))

    return Converted(model, answer, f"scikit-learn {sklearn.__version__}", {"estimator": _name(estimator)})


def _load(source: Path, shown: str) -> Any:
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(file=source)) - set(_TRUSTED))
        if not unknown:
            return skops.io.load(source, trusted=list(_TRUSTED))
    except Exception as e:  # a damaged archive raises whatever its parts do
        raise InputError(
            shown, f"not a skops file ({first_line(e)})", "Save the model with skops.io.dump(model, path)."
        ) from e
    raise UnsafeFileError(
        shown,
        f"the file holds {', '.join(unknown[:5])}",
        "Only types of scikit-learn, numpy and scipy are loaded: build the pipeline of these.",
    )


def _require_task(estimator: Any, table: Table) -> None:
    fits = is_classifier(estimator) if table.task is Task.CLASSIFICATION else is_regressor(estimator)
    if not fits:
        raise InputError(
            MODEL,
            f"{_name(estimator)} for the task {table.task}",
            "Give a fitted classifier or regressor, as spec.objective.task says.",
        )


def _trees(part: Any, depth: int) -> Iterator[Any]:
    """Everything below an estimator that holds node indices."""
    if f"{type(part).__module__}.{type(part).__name__}" in (_TREE, _HISTOGRAM_TREE):
        yield part
    elif depth:
        inner: Any = ()
        if isinstance(part, dict):
            inner = part.values()
        elif isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.dtype == object):
            inner = part.flat if isinstance(part, np.ndarray) else part
        elif type(part).__module__.startswith("sklearn."):
            inner = vars(part).values() if hasattr(part, "__dict__") else ()
        for value in inner:
            yield from _trees(value, depth - 1)


def _require_sound(tree: Any, features: int) -> None:
    """Check that a tree's nodes lead to later nodes of its own, and look at features that there are.

    scikit-learn follows them without looking.
    """
    if hasattr(tree, "nodes"):
        nodes, leaf = tree.nodes, tree.nodes["is_leaf"].astype(bool)
        left, right, feature = (nodes[k].astype(np.int64)[~leaf] for k in ("left", "right", "feature_idx"))
        count, parents = len(nodes), np.flatnonzero(~leaf)
    else:
        inner = tree.children_left != _LEAF
        left, right, feature = tree.children_left[inner], tree.children_right[inner], tree.feature[inner]
        count, parents = tree.node_count, np.flatnonzero(inner)
    sound = (
        (left > parents).all()
        and (right > parents).all()
        and (left < count).all()
        and (right < count).all()
        and (feature >= 0).all()
        and (feature < features).all()
    )
    if not sound:
        raise UnsafeFileError(
            MODEL,
            "a decision tree whose nodes lead outside of it, or which reads features that the data has not",
            "Save the model again, and check that the data has all features.",
        )


def _name(estimator: Any) -> str:
    steps = getattr(estimator, "steps", None)
    return " > ".join(type(s).__name__ for _, s in steps) if steps else type(estimator).__name__
