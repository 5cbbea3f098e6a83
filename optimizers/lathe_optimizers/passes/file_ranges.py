"""Activation ranges of an ONNX file, by running it with every activation as an output."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from lathe_api.recipe import CalibrationMethod
from lathe_optimizers.context import Array
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import onnx_files
from lathe_optimizers.passes.ranges import Histogram, Range

BATCH: Final = 4
"""Samples at once: all activations of a batch are in memory together."""
Feed = Callable[[int], Iterable[Sequence[Array]]]
"""All calibration samples, so many at a time; called once for each pass over them."""


def activation_ranges(
    model: onnx.ModelProto, folder: Path, feed: Feed, method: CalibrationMethod, operators: Collection[str]
) -> dict[str, Range]:
    """Ranges of what goes into and comes out of the nodes of some operators, the model's answers left out.

    A range that is cut would make the best scores equal.

    Args:
        model: a float model whose batch varies.
        folder: scratch.
        feed: the samples.
        method: how a range is chosen.
        operators: types of nodes.

    Raises:
        InputError: an activation is NaN or infinite, or there are no samples.
    """
    names = _activations(model, operators)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {i.name for i in model.graph.input}
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in given)
    path = folder / "watched.onnx"
    onnx_files.write(watched, path)
    session = onnx_files.session(path, optimised=False)
    inputs = [i.name for i in session.get_inputs()]
    shown = [n for n in names if n not in inputs]
    extremes: dict[str, Range] = {}

    def seen(batch: Sequence[Array]) -> dict[str, Array]:
        fed = dict(zip(inputs, (np.ascontiguousarray(x) for x in batch), strict=True))
        values = fed | dict(zip(shown, session.run(shown, fed), strict=True))
        return {n: v for n, v in values.items() if n in names and v.dtype == np.float32 and v.size}

    for batch in feed(BATCH):
        for name, values in seen(batch).items():
            low, high = float(values.min()), float(values.max())
            if not np.isfinite([low, high]).all():
                raise InputError(
                    "spec.data.calibration",
                    f"samples to which `{name}` answers NaN or infinity",
                    "Remove them, or exclude the layer.",
                )
            before = extremes.get(name, (low, high))
            extremes[name] = min(low, before[0]), max(high, before[1])
    if not extremes:
        raise InputError("spec.data.calibration", "no samples", "Give samples like those that the model will meet.")
    histograms = {name: Histogram(*found) for name, found in extremes.items()}
    for batch in feed(BATCH):
        for name, values in seen(batch).items():
            histograms[name].add(values)
    return {name: histogram.range(method) for name, histogram in histograms.items()}


def _activations(model: onnx.ModelProto, operators: Collection[str]) -> list[str]:
    others = {w.name for w in model.graph.initializer} | {o.name for o in model.graph.output}
    found = [
        value
        for node in model.graph.node
        if node.op_type in operators
        for value in (*node.input, *node.output)
        if value and value not in others
    ]
    return list(dict.fromkeys(found))
