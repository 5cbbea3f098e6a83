"""Measures an artifact: answers on the evaluation set, quality, size, kernels and paired latency."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lathe_api.data import Metric, Objective, Task
from lathe_api.manifest import Estimate, StageMetrics
from lathe_optimizers import quality
from lathe_optimizers.context import Array, Dataset, batches
from lathe_optimizers.datasets.sources import targets
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import energy as energy_counters
from lathe_optimizers.passes import footprint, onnx_files
from lathe_optimizers.passes.kernels import count_kernels
from lathe_optimizers.passes.latency import latency_ratio

BATCH: Final = 64
ENERGY_SECONDS: Final = 4.0


@dataclass(frozen=True)
class Measurement:
    """What is known of an artifact."""

    metrics: StageMetrics
    answers: Array
    """First output on the evaluation set, float32 of shape (samples, ...)."""


def measure(
    onnx: Path,
    *,
    data: Dataset,
    objective: Objective,
    baseline: Path | None,
    threads: int,
    latency_batch: int,
    latency_seconds: float,
    seed: int,
) -> Measurement:
    """Measure an ONNX file.

    Args:
        onnx: the file.
        data: evaluation set.
        objective: task and metric.
        baseline: ONNX file that the latency is compared with; None for the original itself.
        threads: for the answers; latency is always measured on one thread, so that it compares between machines.
        latency_batch: samples per timed run.
        latency_seconds: longest time spent on timing.
        seed: of resampling.

    Raises:
        InputError: an answer is NaN or infinite.
    """
    answers = checked(predict(onnx, data, threads=threads))
    found = quality.estimate(quality.answered(objective.metric, answers, targets(data)), seed)
    metrics = with_runs(
        metrics_of(onnx, objective, found),
        onnx,
        answers=answers,
        baseline=baseline,
        data=data,
        latency_batch=latency_batch,
        latency_seconds=latency_seconds,
        seed=seed,
    )
    return Measurement(metrics, answers)


def checked(answers: Array) -> Array:
    """The answers, all of which are finite.

    Raises:
        InputError: an answer is NaN or infinite.
    """
    if not np.isfinite(answers).all():
        row = int((~np.isfinite(answers)).reshape(len(answers), -1).any(1).argmax())
        raise InputError(
            "spec.data.evaluation", f"the model answers NaN or infinity to sample {row}", "Check the model's weights"
        )
    return answers


def with_runs(
    known: StageMetrics,
    onnx: Path,
    *,
    answers: Array,
    baseline: Path | None,
    data: Dataset,
    latency_batch: int,
    latency_seconds: float,
    seed: int,
) -> StageMetrics:
    """`known` with what only running the file tells: memory, time, energy, and how far its scores are probabilities."""
    latency = energy = calibration = None
    feed = _feed(onnx, data, latency_batch)
    if baseline is not None:
        latency = latency_ratio(baseline, onnx, feed, threads=1, budget_seconds=latency_seconds)
        energy = _energy(baseline, onnx, feed)
    if known.task is Task.CLASSIFICATION:
        calibration = quality.estimate(quality.answered(Metric.ECE, answers, targets(data)), seed)
    return known.model_copy(
        update={
            "session_bytes": footprint.session_bytes(onnx, feed),
            "calibration_error": calibration,
            "energy_ratio": energy,
            "latency": latency,
        }
    )


def metrics_of(onnx: Path, objective: Objective, found: Estimate) -> StageMetrics:
    """What the file tells, beside what was measured."""
    elements, zeros = onnx_files.weight_counts(onnx)
    return StageMetrics(
        metric=objective.metric,
        task=objective.task,
        quality=found,
        size_bytes=onnx.stat().st_size,
        compressed_bytes=footprint.compressed_bytes(onnx),
        parameters=elements,
        zeros=zeros,
        kernels=count_kernels(onnx),
        latency=None,
    )


def _energy(baseline: Path, onnx: Path, feed: dict[str, Array]) -> float | None:
    if not energy_counters.counters():
        return None
    first, second = onnx_files.session(baseline, 1), onnx_files.session(onnx, 1)
    return energy_counters.energy_ratio(lambda: first.run(None, feed), lambda: second.run(None, feed), ENERGY_SECONDS)


def predict(onnx: Path, data: Dataset, *, batch: int = BATCH, threads: int = 1) -> Array:
    """First output for every sample, float32 of shape (samples, ...), by ONNX Runtime on the CPU.

    A model of fixed batch is fed batches of its own size, the last one filled up by repeating a sample.
    """
    session = onnx_files.session(onnx, threads)
    fixed = onnx_files.read_signature(onnx).inputs[0].shape[0]
    size = fixed if fixed > 0 else batch
    found = []
    for inputs, _ in batches(data, size):
        count = len(inputs[0])
        full = [_filled(a, size) if fixed > 0 else a for a in inputs]
        answer = session.run(None, dict(zip(data.input_names, full, strict=True)))[0]
        found.append(np.asarray(answer, np.float32)[:count])
    return np.concatenate(found)


def _filled(array: Array, size: int) -> Array:
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _feed(onnx: Path, data: Dataset, batch: int) -> dict[str, Array]:
    fixed = onnx_files.read_signature(onnx).inputs[0].shape[0]
    size = fixed if fixed > 0 else batch
    inputs, _ = data.take(np.arange(size, dtype=np.int64) % len(data))
    return dict(zip(data.input_names, inputs, strict=True))
