"""Import of models for tables: scikit-learn (skops files), XGBoost and LightGBM, as ONNX.

What the framework answers to the evaluation samples is compared with what ONNX Runtime answers. Scores come first
(probabilities of a classifier, values of a regression), the label after them where there is one.
"""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue

from lathe_api.data import ModelFormat, Task
from lathe_optimizers.context import PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes import onnx_files, onnx_import, parity

MODEL: Final = "spec.model.uri"
TOLERANCE: Final = 1e-3
"""Root of the mean square difference, relative to the range: a float32 threshold may send a single sample elsewhere."""
ANSWERING: Final = 0.6
_BOOSTER_OPSET: Final = 15
"""The newest that onnxmltools is sure of; modernised afterwards."""
_SCORES: Final = ("probabilities", "probability", "probability_tensor", "variable", "scores")
_TABLE: Final = 2
"""Dimensions of the one input: samples, features."""


@dataclass(frozen=True)
class Table:
    """What a model is fed."""

    name: str
    """Of the input."""
    features: int
    task: Task


@dataclass(frozen=True)
class Converted:
    """A model in both worlds."""

    model: onnx.ModelProto
    """Takes `Table.name` as float32 (samples, features)."""
    answer: Callable[[NDArray[np.float32]], NDArray[Any]]
    """Scores of the framework: (samples, classes), or (samples,)."""
    framework: str
    """Name and version."""
    details: dict[str, JsonValue] = field(default_factory=dict)


_READERS: Final = {
    ModelFormat.SKLEARN: "tabular_sklearn",
    ModelFormat.XGBOOST: "tabular_xgboost",
    ModelFormat.LIGHTGBM: "tabular_lightgbm",
}


def run(ctx: PassContext, source: Path) -> PassOutput:
    """Convert a model for tables.

    Raises:
        InputError: the reader is not installed, the file cannot be read or converted, or does not fit the data.
        UnsafeFileError: the file holds types that could do harm when they are loaded or asked.
        StageError: the ONNX form answers otherwise than the framework.
    """
    samples = parity.probe(ctx.data.evaluation)
    table = _table(ctx, samples)
    ctx.report(Progress(0.0, "read"))
    try:
        reader = importlib.import_module(f"{__package__}.{_READERS[ctx.model.format]}")
    except ImportError as e:
        raise InputError(
            "spec.model.format",
            f"{ctx.model.format}, whose reader is not installed here ({e.name})",
            "Install it: pip install 'lathe-platform[tabular]'.",
        ) from e
    with warnings.catch_warnings():
        # About versions of each other, and types that the converters themselves choose.
        warnings.simplefilter("ignore")
        converted: Converted = reader.read(source, ctx.model.uri, table)
    path = ctx.workdir / "model.onnx"
    model = _modern(converted.model, ctx.model.uri)
    _scores_first(model.graph)
    onnx_files.strip(model)
    onnx_files.write(model, path)
    onnx_import.require_runnable(path, ctx.model.uri)
    ctx.report(Progress(ANSWERING, "compare"))
    expected = np.asarray(converted.answer(samples[0].astype(np.float32)), np.float32)
    found = parity.onnx_answers(path, samples, threads=ctx.threads)[0]
    typical, worst = _compare(expected, found)
    if not typical <= TOLERANCE:
        raise StageError(
            "import",
            f"the ONNX form differs from {converted.framework} by {typical:.2g} of the answers' range (typical "
            f"difference; allowed: {TOLERANCE:g})",
        )
    return PassOutput(
        onnx=path,
        details={
            "format": ctx.model.format.value,
            "framework": converted.framework,
            "opset": onnx_import.opset(model),
            "features": table.features,
            "parity": worst,
            "parityTypical": typical,
            "paritySamples": len(samples[0]),
            **converted.details,
        },
        warnings=(f"The model came from {converted.framework}: stages that train a network do not apply to it.",),
    )


def _table(ctx: PassContext, samples: tuple[Any, ...]) -> Table:
    names = tuple(ctx.data.evaluation.input_names)
    if len(names) != 1 or samples[0].ndim != _TABLE or samples[0].dtype != np.float32:
        kinds = ", ".join(f"`{n}` {s.dtype} {list(s.shape[1:])}" for n, s in zip(names, samples, strict=True))
        raise InputError(
            "spec.data.evaluation.inputs",
            f"{kinds} for each sample",
            "Give one input of type float32 that holds all features of a sample, in the order of training.",
        )
    return Table(names[0], int(samples[0].shape[1]), ctx.objective.task)


def require_features(table: Table, wanted: int) -> None:
    """Check that the data has the features that a model was trained on.

    Raises:
        InputError: it has more or fewer.
    """
    if table.features != wanted:
        raise InputError(
            "spec.data.evaluation.inputs",
            f"`{table.name}` holds {table.features} features",
            f"The model takes {wanted}, in the order of training.",
        )


def require_classes(classes: Any, shown: str) -> None:
    """Check that classes are 0, 1, 2, …: the data's labels are places among the scores.

    Raises:
        InputError: they are others.
    """
    if [*map(str, classes)] != [*map(str, range(len(classes)))]:
        few = ", ".join(map(str, list(classes)[:5]))
        raise InputError(
            shown,
            f"a classifier of the labels {few}{', …' if len(classes) > 5 else ''}",  # noqa: PLR2004 - enough to see
            f"Train it on the labels 0 to {len(classes) - 1} (sklearn.preprocessing.LabelEncoder), and store these in "
            "the data.",
        )


def require_objective(objective: str, table: Table, *, classifies: bool) -> None:
    """Check that a booster was trained for the document's task.

    Raises:
        InputError: it was trained for another.
    """
    if classifies is not (table.task is Task.CLASSIFICATION):
        raise InputError(MODEL, f"a model trained for {objective}", "Write the task that it was trained for.")


def convert_booster(
    convert: Callable[..., onnx.ModelProto], booster: Any, table: Table, shown: str, **options: bool
) -> onnx.ModelProto:
    """The ONNX form of a booster, by a function of onnxmltools.

    Raises:
        InputError: it has none.
    """
    # Only readers of boosters come here: onnxmltools is installed.
    from onnxmltools.convert.common.data_types import FloatTensorType

    features = [(table.name, FloatTensorType([None, table.features]))]
    try:
        return convert(booster, initial_types=features, target_opset=_BOOSTER_OPSET, **options)
    except Exception as e:  # the converter raises errors of its own and of whatever it meets
        raise InputError(shown, f"a model without ONNX form ({first_line(e)})", "Train a booster of trees.") from e


def first_line(error: Exception) -> str:
    """The beginning of a message of a foreign library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _modern(model: onnx.ModelProto, shown: str) -> onnx.ModelProto:
    if not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", onnx_import.OPSET))
    if onnx_import.opset(model) < onnx_import.OLDEST_OPSET:
        return onnx_import.converted(model, shown, onnx_import.OPSET)
    return model


def _scores_first(graph: onnx.GraphProto) -> None:
    outputs = sorted(graph.output, key=lambda o: o.name not in _SCORES)
    del graph.output[:]
    graph.output.extend(outputs)
    for output in graph.output:
        shape = output.type.tensor_type.shape
        if len(shape.dim):
            # Converters write a batch of one, or none, for any.
            shape.dim[0].Clear()
            shape.dim[0].dim_param = "batch"


def _compare(expected: NDArray[np.float32], found: NDArray[Any]) -> tuple[float, float]:
    """Typical and largest difference; of two classes, a framework may give the score of the second alone."""
    if expected.ndim == 1 and found.ndim == _TABLE and found.shape[1] == 2:  # noqa: PLR2004 - two classes
        found = found[:, 1]
    answers = (np.asarray(found, np.float32).reshape(expected.shape),) if found.size == expected.size else (found,)
    return parity.typical_difference((expected,), answers), parity.difference((expected,), answers)
