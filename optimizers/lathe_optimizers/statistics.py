"""Confidence intervals for paired comparisons. Pure; numpy only; every random draw comes from a seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
"""Bootstrap replicates: the 2.5 % and 97.5 % quantiles then move by a few hundredths of the interval between seeds."""
CHUNK_BYTES: Final = 1 << 26
HALVINGS: Final = 50
"""Of an interval of length 2: down to the precision of the arithmetic."""

Combine = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""From mean contributions of two models to the compared statistic, per replicate."""


@dataclass(frozen=True)
class Interval:
    """A value between its confidence bounds."""

    value: float
    low: float
    high: float


def normal_quantile(confidence: float, *, two_sided: bool) -> float:
    """Z such that a standard normal value is within (two-sided) or below (one-sided) it with this probability."""
    return NormalDist().inv_cdf((1 + confidence) / 2 if two_sided else confidence)


def wilson(successes: int, samples: int, z: float) -> Interval:
    """Score interval of a proportion (Wilson 1927): keeps its coverage near 0 and 1, where accuracies live."""
    if samples == 0:
        return Interval(math.nan, 0.0, 1.0)
    share = successes / samples
    denominator = 1 + z * z / samples
    centre = (share + z * z / (2 * samples)) / denominator
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples)) / denominator
    return Interval(share, min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share))


@dataclass(frozen=True)
class Pairs:
    """Samples by who has them right."""

    both: int
    first: int
    second: int
    neither: int


def paired_proportions(pairs: Pairs, z: float) -> Interval:
    """Difference of two proportions on the same samples (first - second), by Tango's score interval.

    The interval is where a score test with the nuisance parameter at its constrained maximum likelihood does not
    reject (Tango 1998, Statistics in Medicine 17:891-908). It holds its coverage with few discordant pairs, where
    combinations of Wilson intervals fall short, and does not shrink to a point where there are none.
    """
    samples = pairs.both + pairs.first + pairs.second + pairs.neither
    if samples == 0:
        return Interval(math.nan, -1.0, 1.0)
    value = (pairs.first - pairs.second) / samples
    high = _score_bound(pairs.first, pairs.second, samples, z)
    return Interval(value, -_score_bound(pairs.second, pairs.first, samples, z), high)


def _score_bound(first: int, second: int, samples: int, z: float) -> float:
    """Smallest difference above (first - second) / samples that the score test rejects."""
    value = (first - second) / samples
    inside, outside = value, 1.0
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        b = -first - second + (2 * samples - first + second) * middle
        c = -second * middle * (1 - middle)
        nuisance = (math.sqrt(max(b * b - 8 * samples * c, 0.0)) - b) / (4 * samples)
        variance = max(2 * nuisance + middle * (1 - middle), 0.0)
        if (middle - value) * samples >= z * math.sqrt(samples * variance):
            outside = middle
        else:
            inside = middle
    return outside


def mcnemar_exact(first: int, second: int) -> float:
    """Two-sided p-value of "neither model is better" from the samples that only one of them has right.

    The exact form of McNemar's test (1947): among discordant samples each side is as likely (a binomial sign test).

    Args:
        first: samples that only the first has right.
        second: samples that only the second has right.
    """
    count, fewer = first + second, min(first, second)
    logs = (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * sum(math.exp(value - count * math.log(2)) for value in logs))


def bootstrap_quantiles(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    combine: Combine,
    probabilities: tuple[float, ...],
    seed: int,
) -> tuple[float, ...]:
    """Quantiles of a statistic of paired samples under resampling of the pairs (Efron 1979, percentile method).

    Args:
        first: contributions of the first model, shape (samples, k).
        second: contributions of the second model on the same samples, shape (samples, k).
        combine: from mean contributions of both, each of shape (resamples, k), to the statistic, shape (resamples,).
        probabilities: which quantiles.
        seed: of the resampling.
    """
    samples, columns = first.shape
    rng = np.random.default_rng(seed)
    stacked = np.concatenate([first, second], axis=1)
    step = max(1, CHUNK_BYTES // (8 * samples))
    means = []
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        drawn = rng.integers(0, samples, size=(count, samples), dtype=np.int32)
        # How often each pair was drawn: one matrix product instead of a gather per contribution.
        weights = np.stack([np.bincount(row, minlength=samples) for row in drawn]).astype(np.float64)
        means.append(weights @ stacked / samples)
    replicates = np.concatenate(means)
    values = combine(replicates[:, :columns], replicates[:, columns:])
    return tuple(float(q) for q in np.quantile(values, probabilities))


def median_interval(values: NDArray[np.float64], confidence: float) -> Interval:
    """Median with the distribution-free interval between two order statistics (binomial; Conover 1999, section 3.2)."""
    ordered = np.sort(values)
    count = len(ordered)
    if count == 0:
        raise ValueError("the median of nothing")
    tail, cumulated, rank = (1 - confidence) / 2, 0.0, 0
    for rank in range(count):
        cumulated += math.exp(
            math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1) - count * math.log(2)
        )
        if cumulated > tail:
            break
    low = max(rank - 1, 0)
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[count - 1 - low]))
