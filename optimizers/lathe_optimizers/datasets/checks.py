"""What is wrong with data, told before any work is done on them."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lathe_api.data import Objective, Task
from lathe_api.manifest import Signature, TensorSpec
from lathe_optimizers.context import Array, Dataset, Datasets, batches
from lathe_optimizers.datasets.sources import stored_places
from lathe_optimizers.errors import InputError

BATCH: Final = 1024
Places = NDArray[np.int64]
"""Where samples are in their file."""
DATATYPES: Final = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""numpy's names of the Open Inference Protocol's types."""


def check_data(data: Datasets, objective: Objective) -> tuple[str, ...]:
    """Read every sample once; return warnings.

    Raises:
        InputError: a set is empty, holds NaN or infinite values, or its target does not fit the task.
    """
    seen: dict[str, set[bytes]] = {}
    for field, part in _sets(data):
        if len(part) == 0:
            raise InputError(field, "0 samples", "Give at least one sample")
        seen[field] = seen.get(field, set()) | _check_set(field, part, objective)
    leaked = len(seen["spec.data.evaluation"] & seen.get("spec.data.train", set()))
    if leaked:
        text = (
            f"spec.data.evaluation: {leaked} of its samples are in the training set too; "
            "accuracy on them says nothing about new data"
        )
        return (text,)
    return ()


def check_against_model(data: Datasets, signature: Signature, objective: Objective) -> None:
    """Whether the samples fit the network.

    Raises:
        InputError: an input's name, type or shape differs, or a class number has no score in the answer.
    """
    for field, part in _sets(data):
        specs = {spec.name: spec for spec in signature.inputs}
        if set(part.input_names) != set(specs):
            raise InputError(
                f"{field}.inputs",
                f"the names {', '.join(part.input_names)}",
                f"The model takes {', '.join(specs)}: name these inputs",
            )
        inputs, _ = part.take(np.zeros(1, np.int64))
        for index, (name, array) in enumerate(zip(part.input_names, inputs, strict=True)):
            _check_input(f"{field}.inputs[{index}]", specs[name], array)
        if objective.task is Task.CLASSIFICATION:
            _check_labels(f"{field}.target", part, signature.outputs[0])
        else:
            _check_values(f"{field}.target", part, signature.outputs[0])


def _sets(data: Datasets) -> Iterator[tuple[str, Dataset]]:
    yield "spec.data.evaluation", data.evaluation
    if data.train is not None:
        yield "spec.data.train", data.train
    if data.validation is not None and len(data.validation):
        yield "spec.data.train", data.validation
    if data.calibration is not None:
        yield "spec.data.calibration", data.calibration


def _check_set(field: str, part: Dataset, objective: Objective) -> set[bytes]:
    rows: set[bytes] = set()
    start = 0
    for inputs, target in batches(part, BATCH):
        places = stored_places(part, np.arange(start, start + len(target), dtype=np.int64))
        for index, array in enumerate(inputs):
            _check_finite(f"{field}.inputs[{index}]", array, places)
        _check_target(f"{field}.target", target, objective.task, places)
        rows.update(
            hashlib.blake2b(b"".join(np.ascontiguousarray(a[i]).tobytes() for a in inputs), digest_size=16).digest()
            for i in range(len(target))
        )
        start += len(target)
    return rows


def _check_finite(field: str, array: Array, places: Places) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        row = int(places[bad.argmax()])
        raise InputError(
            field,
            f"NaN or infinite values, first in sample {row} ({int(bad.sum())} here)",
            "Fill or drop these samples",
        )


def _check_target(field: str, target: NDArray[Any], task: Task, places: Places) -> None:
    if task is Task.CLASSIFICATION:
        if not np.issubdtype(target.dtype, np.integer) or target.ndim != 1:
            raise InputError(
                field,
                f"{target.dtype} of shape {target.shape[1:]} per sample",
                "Give one class number per sample, as integers from 0",
            )
        if (target < 0).any():
            row = int((target < 0).argmax())
            raise InputError(field, f"class {int(target[row])} in sample {places[row]}", "Number the classes from 0")
    elif not np.issubdtype(target.dtype, np.number):
        raise InputError(field, f"values of type {target.dtype}", "Give numbers")
    else:
        _check_finite(field, target, places)


def _check_input(field: str, spec: TensorSpec, array: Array) -> None:
    wanted = DATATYPES.get(spec.datatype, spec.datatype)
    if str(array.dtype) != wanted:
        raise InputError(field, f"values of type {array.dtype}", f"The model takes {wanted}: store them as {wanted}")
    shape = spec.shape[1:]
    fits = len(array.shape) == len(spec.shape) and all(
        w in {-1, s} for w, s in zip(shape, array.shape[1:], strict=True)
    )
    if not fits:
        shown = str(shape).replace("-1", "any")
        raise InputError(
            field, f"samples of shape {array.shape[1:]}", f"The model takes {shown} per sample: store them so"
        )


def _check_labels(field: str, part: Dataset, output: TensorSpec) -> None:
    scores = output.shape[-1] if len(output.shape) > 1 else 1
    classes = 2 if scores == 1 else scores
    if scores < 0:
        return
    start = 0
    for _, target in batches(part, BATCH):
        high = np.asarray(target, np.int64) >= classes
        if high.any():
            row = int(high.argmax())
            places = stored_places(part, np.arange(start, start + len(target), dtype=np.int64))
            raise InputError(
                field,
                f"class {int(target[row])} in sample {int(places[row])} ({int(high.sum())} such samples here)",
                f"The model tells {classes} classes apart: use the numbers 0 to {classes - 1}",
            )
        start += len(target)


def _check_values(field: str, part: Dataset, output: TensorSpec) -> None:
    _, target = part.take(np.zeros(1, np.int64))
    wanted = int(np.prod([s for s in output.shape[1:] if s > 0]))
    found = int(np.prod(target.shape[1:]))
    if -1 not in output.shape[1:] and wanted != found:
        raise InputError(
            field,
            f"{found} values per sample (shape {target.shape[1:]})",
            f"The model answers {wanted} (shape {output.shape[1:]}): give as many",
        )
