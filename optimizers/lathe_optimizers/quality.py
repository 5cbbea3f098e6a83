"""How good answers are, and how much better or worse one model's answers are than another's on the same samples.

Every metric is a function of means of per-sample contributions, so that one paired bootstrap serves them all; accuracy,
whose intervals have closed forms with better coverage, uses those.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lathe_api.data import Metric
from lathe_api.gates import DropType
from lathe_api.manifest import Estimate
from lathe_optimizers import statistics
from lathe_optimizers.statistics import Interval

LARGER_IS_BETTER: Final = frozenset({Metric.ACCURACY, Metric.MACRO_F1, Metric.R2})
SHOWN_CONFIDENCE: Final = 0.95
CALIBRATION_BINS: Final = 15
"""Of equal width, as in Guo et al. 2017."""

Answers = NDArray[Any]
"""A model's first output: scores (samples, classes) of a classifier, values (samples, ...) of a regression."""
Means = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """A model's answers beside the truth, as contributions of shape (samples, k) to a metric."""

    metric: Metric
    contributions: NDArray[np.float64]

    @property
    def value(self) -> float:
        """The metric over all samples."""
        return float(_statistic(self.metric, self.contributions.mean(0, keepdims=True))[0])


def predicted(answers: Answers) -> NDArray[np.int64]:
    """Class of each sample: the largest score; of a single score per sample, whether it is above 0."""
    flat = np.asarray(answers).reshape(len(answers), -1)
    classes = flat[:, 0] > 0 if flat.shape[1] == 1 else flat.argmax(1)
    return np.asarray(classes, np.int64)


def answered(metric: Metric, answers: Answers, target: Answers) -> Answered:
    """Judge answers of shape (samples, ...) against the truth of shape (samples,) or (samples, ...)."""
    match metric:
        case Metric.ACCURACY:
            columns = (predicted(answers) == np.asarray(target).reshape(-1)).astype(np.float64)[:, None]
        case Metric.MACRO_F1:
            columns = _f1_columns(predicted(answers), np.asarray(target).reshape(-1).astype(np.int64))
        case Metric.ECE:
            columns = _calibration_columns(np.asarray(answers, np.float64), np.asarray(target).reshape(-1))
        case Metric.RMSE | Metric.MAE | Metric.R2:
            columns = _error_columns(metric, np.asarray(answers, np.float64), np.asarray(target, np.float64))
    return Answered(metric, columns)


def _f1_columns(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    classes = np.unique(truth)
    hit = (found == truth)[:, None] & (truth[:, None] == classes)
    return np.concatenate([hit, found[:, None] == classes, truth[:, None] == classes], axis=1).astype(np.float64)


def probabilities(answers: Answers) -> NDArray[np.float64]:
    """Of each class, shape (samples, classes), from scores of shape (samples, ...).

    Rows that are probabilities already (none negative, sum 1) are taken as they are; others are logits. A single score
    per sample is the logit of class 1, as `predicted` reads it.
    """
    scores = np.asarray(answers, np.float64).reshape(len(answers), -1)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    elif (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _calibration_columns(answers: NDArray[np.float64], truth: NDArray[Any]) -> NDArray[np.float64]:
    """A column per bin of confidence: right (0 or 1) less confidence for the samples in it, 0 for the others.

    The expected calibration error is the sum over bins of |mean of the column| (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", eq. 3): the share of a bin cancels with the size of its averages.
    """
    shares = probabilities(answers)
    confidence = shares.max(1)
    gap = (predicted(answers) == truth) - confidence
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    columns = np.zeros((len(gap), CALIBRATION_BINS))
    columns[np.arange(len(gap)), bins] = gap
    return columns


def _error_columns(metric: Metric, answers: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    truth = target.reshape(len(target), -1)
    error = answers.reshape(truth.shape) - truth
    if metric is Metric.MAE:
        return np.asarray(np.abs(error).mean(1, keepdims=True))
    squared: NDArray[np.float64] = (error**2).mean(1, keepdims=True)
    if metric is Metric.RMSE:
        return squared
    return np.concatenate([squared, truth.mean(1, keepdims=True), (truth**2).mean(1, keepdims=True)], axis=1)


def _statistic(metric: Metric, means: Means) -> NDArray[np.float64]:
    """The metric from mean contributions of shape (replicates, k); shape (replicates,)."""
    match metric:
        case Metric.ACCURACY | Metric.MAE:
            result = means[:, 0]
        case Metric.RMSE:
            result = np.sqrt(means[:, 0])
        case Metric.ECE:
            result = np.abs(means).sum(1)
        case Metric.R2:
            variance = np.maximum(means[:, 2] - means[:, 1] ** 2, np.finfo(np.float64).tiny)
            result = 1 - means[:, 0] / variance
        case Metric.MACRO_F1:
            hit, found, truth = np.split(means, 3, axis=1)
            result = (2 * hit / np.maximum(found + truth, np.finfo(np.float64).tiny)).mean(1)
    return np.asarray(result, np.float64)


def estimate(own: Answered, seed: int = 0) -> Estimate:
    """The metric with its two-sided 0.95 confidence interval."""
    samples = len(own.contributions)
    interval = _own_interval(own, SHOWN_CONFIDENCE, two_sided=True, seed=seed)
    return Estimate(
        value=interval.value, low=interval.low, high=interval.high, confidence=SHOWN_CONFIDENCE, samples=samples
    )


def _own_interval(own: Answered, confidence: float, *, two_sided: bool, seed: int) -> Interval:
    samples = len(own.contributions)
    if own.metric is Metric.ACCURACY:
        z = statistics.normal_quantile(confidence, two_sided=two_sided)
        return statistics.wilson(int(own.contributions.sum()), samples, z)
    low, high = statistics.bootstrap_quantiles(
        own.contributions,
        own.contributions[:, :0],
        lambda a, _: _statistic(own.metric, a),
        _tails(confidence, two_sided=two_sided),
        seed,
    )
    if own.metric is Metric.ECE:
        # Resampling adds to a sum of magnitudes what the sample had added already; reflected, it is taken off again
        # (the basic bootstrap, Davison and Hinkley 1997, section 5.2).
        low, high = max(2 * own.value - high, 0.0), max(2 * own.value - low, own.value)
        low = min(low, own.value)
    return Interval(own.value, low, high)


def value_interval(own: Answered, confidence: float, seed: int) -> Interval:
    """The metric between its two one-sided bounds, each of which holds with `confidence`."""
    return _own_interval(own, confidence, two_sided=False, seed=seed)


def drop(
    original: Answered,
    result: Answered,
    *,
    kind: DropType = DropType.ABSOLUTE,
    confidence: float = SHOWN_CONFIDENCE,
    two_sided: bool = True,
    seed: int = 0,
) -> Interval:
    """By how much `result` is worse than `original` on the same samples; positive is worse.

    Absolute drops are in the metric's unit; relative ones a share of the magnitude of the original's value (a drop
    from an original of 0 is then infinite, or 0 where nothing changed).
    """
    metric = original.metric
    sign = 1.0 if metric in LARGER_IS_BETTER else -1.0
    scale = abs(original.value) if kind is DropType.RELATIVE else 1.0
    if metric is Metric.ACCURACY:
        found = _accuracy_drop(original, result, confidence, two_sided=two_sided)
    else:
        value = sign * (original.value - result.value)
        low, high = statistics.bootstrap_quantiles(
            original.contributions,
            result.contributions,
            lambda a, b: sign * (_statistic(metric, a) - _statistic(metric, b)),
            _tails(confidence, two_sided=two_sided),
            seed,
        )
        found = Interval(value, min(low, value), max(high, value))
        if metric is Metric.MACRO_F1:
            # Where no answer changed, resampling sees no spread: what the samples cannot tell of accuracy they cannot
            # tell of the average over classes either.
            floor = _accuracy_drop(original, result, confidence, two_sided=two_sided)
            below, above = floor.value - floor.low, floor.high - floor.value
            found = Interval(value, min(found.low, value - below), max(found.high, value + above))
    return Interval(*(_scaled(v, scale) for v in (found.value, found.low, found.high)))


def _accuracy_drop(original: Answered, result: Answered, confidence: float, *, two_sided: bool) -> Interval:
    counts = pairs(original, result)
    return statistics.paired_proportions(counts, statistics.normal_quantile(confidence, two_sided=two_sided))


def pairs(original: Answered, result: Answered) -> statistics.Pairs:
    """Samples by who has them right; of accuracy and macroF1."""
    one, two = (_right(a) for a in (original, result))
    return statistics.Pairs(*(int(c.sum()) for c in (one & two, one & ~two, ~one & two, ~one & ~two)))


def _right(answers: Answered) -> NDArray[np.bool_]:
    """Which samples a classifier has right: the first third of the columns of macroF1 says it by class."""
    columns = answers.contributions.shape[1]
    hits = columns // 3 if answers.metric is Metric.MACRO_F1 else columns
    return np.asarray(answers.contributions[:, :hits].any(1))


def _scaled(value: float, scale: float) -> float:
    if scale > 0:
        return value / scale
    return 0.0 if value == 0 else math.copysign(math.inf, value)


def _tails(confidence: float, *, two_sided: bool) -> tuple[float, float]:
    tail = (1 - confidence) / 2 if two_sided else 1 - confidence
    return tail, 1 - tail


def confusion_delta(original: Answers, result: Answers, target: Answers) -> list[list[int]]:
    """What a change broke, counted over the samples that the original has right.

    Rows are true classes, columns the wrong classes that the result answers; shape (classes, classes).
    """
    truth = np.asarray(target).reshape(-1).astype(np.int64)
    before, after = predicted(original), predicted(result)
    classes = int(max(truth.max(), before.max(), after.max())) + 1
    broken = (before == truth) & (after != truth)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth[broken], after[broken]), 1)
    return [[int(c) for c in row] for row in matrix]
