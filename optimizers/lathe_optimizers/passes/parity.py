"""Whether two forms of one model give the same answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lathe_optimizers.context import Array, Dataset
from lathe_optimizers.passes import onnx_files

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

SAMPLES: Final = 256
"""How many samples are compared at the most; enough to meet every channel, and quick for large networks."""
BATCH: Final = 64

Answers = tuple[Array, ...]
"""Outputs in the order of the program; samples along the first dimension."""


def probe(data: Dataset, count: int = SAMPLES) -> tuple[Array, ...]:
    """Inputs of at most `count` samples, spread evenly over `data`."""
    indices = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(np.int64))
    return data.take(indices)[0]


def program_answers(
    program: "ExportedProgram | fx.GraphModule", inputs: Sequence[Array], batch: int = BATCH
) -> Answers:
    """Answers of an exported program, or of its graph, computed by torch.

    Args:
        program: in inference mode.
        inputs: one array for each input, in the order of the program.
        batch: samples at once; a last, smaller batch is padded by repetition, so that a fixed batch works.
    """
    # Models that were given as ONNX are handled without torch.
    import torch
    from torch import Tensor
    from torch.export import ExportedProgram

    from lathe_optimizers.passes.programs import unlift

    network = unlift(program) if isinstance(program, ExportedProgram) else program

    def answer(feed: list[Array]) -> list[Array]:
        with torch.no_grad():
            found: Any = network(*(torch.from_numpy(np.ascontiguousarray(x)) for x in feed))
        tensors = [found] if isinstance(found, Tensor) else list(found)
        return [t.numpy() for t in tensors]

    return _in_batches(answer, inputs, batch)


def onnx_answers(
    path: Path, inputs: Sequence[Array], *, threads: int = 1, optimised: bool = True, batch: int = BATCH
) -> Answers:
    """Answers of an ONNX file, computed by ONNX Runtime; arguments as in `program_answers` and `onnx_files.session`."""
    session = onnx_files.session(path, threads, optimised=optimised)
    names = [i.name for i in session.get_inputs()]

    def answer(feed: list[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(names, feed, strict=True))))

    return _in_batches(answer, inputs, batch)


def _in_batches(answer: Any, inputs: Sequence[Array], batch: int) -> Answers:
    total, parts = len(inputs[0]), []
    for start in range(0, total, batch):
        chosen = np.arange(start, start + batch).clip(max=total - 1)
        parts.append([out[: total - start] for out in answer([x[chosen] for x in inputs])])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def difference(reference: Answers, other: Answers) -> float:
    """Largest difference of any value, relative to the range of its output (largest minus smallest reference value).

    Whole numbers and truth values are compared for equality: the share of those that differ. Infinite when shapes or
    the places of NaN differ.
    """
    if len(reference) != len(other):
        return float("inf")
    return max(_difference(a, b) for a, b in zip(reference, other, strict=True))


def _difference(reference: Array, other: Array) -> float:
    if reference.shape != other.shape:
        return float("inf")
    if not np.issubdtype(reference.dtype, np.floating):
        return float(np.mean(reference != other)) if reference.size else 0.0
    a, b = reference.astype(np.float64), other.astype(np.float64)
    known = ~np.isnan(a)
    if not np.array_equal(known, ~np.isnan(b)):
        return float("inf")
    return float(np.max(_distances(a[known], b[known]), initial=0.0))


def typical_difference(reference: Answers, other: Answers) -> float:
    """As `difference`, but the root of the mean square instead of the largest value."""
    worst = 0.0
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape or not np.issubdtype(a.dtype, np.floating):
            worst = max(worst, _difference(a, b))
        elif a.size:
            worst = max(worst, float(np.sqrt(np.mean(_distances(a.astype(np.float64), b.astype(np.float64)) ** 2))))
    return worst


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences relative to the range of `a`; equal infinities do not differ."""
    finite = a[np.isfinite(a)]
    span = float(np.ptp(finite)) if finite.size else 0.0
    # One constant answer has no range: its own size is the yardstick then.
    yardstick = span or float(np.max(np.abs(finite), initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b)) / yardstick
