"""Activation ranges from calibration samples, in constant memory. Pure: numpy only.

Extremes are found in a first pass over the samples; a second pass counts values between them in bins, and the range is
cut to what most values need. MinMax keeps the extremes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lathe_api.recipe import CalibrationMethod

BINS: Final = 4096
LEVELS: Final = 256
PERCENTILE: Final = 0.9999
"""Share of values inside the range; as much is cut off at either end."""
_CANDIDATES: Final = 128
_NARROWEST: Final = 0.05
"""Share of the largest value below which no threshold is looked for."""
_TINY: Final = 1e-12

Range = tuple[float, float]


@dataclass
class Histogram:
    """How often values fall into equal bins between two extremes."""

    low: float
    high: float
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: NDArray[Any]) -> None:
        """Count values; those outside fall into the outermost bins."""
        if self.high > self.low:
            inside = np.clip(np.asarray(values, np.float32).ravel(), self.low, self.high)
            self.counts += np.histogram(inside, bins=BINS, range=(self.low, self.high))[0]

    def range(self, method: CalibrationMethod) -> Range:
        """The range that `method` chooses; the extremes where nothing was counted."""
        if method is CalibrationMethod.MIN_MAX or not self.counts.any():
            return self.low, self.high
        return self._percentile() if method is CalibrationMethod.PERCENTILE else self._entropy()

    def _percentile(self) -> Range:
        share = np.cumsum(self.counts) / self.counts.sum()
        width = (self.high - self.low) / BINS
        outside = (1 - PERCENTILE) / 2
        first = int(np.searchsorted(share, outside, side="right"))
        last = int(np.searchsorted(share, 1 - outside, side="left"))
        return self.low + first * width, self.low + (last + 1) * width

    def _entropy(self) -> Range:
        """The threshold whose rounding loses the least information.

        The divergence of the rounded distribution from the one that was seen, what is cut off counted at its border
        (Migacz 2017, "8-bit inference with TensorRT", GTC).
        """
        largest = max(abs(self.low), abs(self.high))
        counts = self._without_zero()
        best: tuple[float, Range] = (np.inf, (self.low, self.high))
        for share in np.linspace(1.0, _NARROWEST, _CANDIDATES):
            candidate = max(self.low, -largest * share), min(self.high, largest * share)
            lost = self._divergence(counts, candidate) if candidate[0] < candidate[1] else np.inf
            if lost < best[0]:
                best = lost, candidate
        return best[1]

    def _without_zero(self) -> NDArray[np.float64]:
        """Zero is exact in every range, and after a ReLU so frequent that it would outweigh all else."""
        counts = self.counts.copy()
        if self.low <= 0 <= self.high:
            place = min(BINS - 1, int(-self.low / (self.high - self.low) * BINS))
            around = counts[max(0, place - 1) : place + 2]
            counts[place] = (around.sum() - counts[place]) / max(1, len(around) - 1)
        return counts

    def _divergence(self, counts: NDArray[np.float64], inside: Range) -> float:
        width = (self.high - self.low) / BINS
        first = int((inside[0] - self.low) / width)
        last = max(first + 1, min(BINS, round((inside[1] - self.low) / width)))
        seen = counts[first:last]
        clipped = seen.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        groups = np.minimum(np.arange(len(seen)) * LEVELS // max(len(seen), LEVELS), LEVELS - 1)
        mass, filled = np.bincount(groups, seen, LEVELS), np.bincount(groups, seen > 0, LEVELS)
        rounded = np.where(seen > 0, (mass / np.maximum(filled, 1))[groups], 0)
        if not rounded.any():
            return np.inf
        p, q = clipped / clipped.sum(), rounded / rounded.sum()
        some = p > 0
        return float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], _TINY))))


def stability(half: Mapping[str, Range], whole: Mapping[str, Range]) -> tuple[str, float]:
    """Where the range from half of the samples is furthest from that of all, and by which share of its extent.

    Far from 0, more samples are needed: the scale depends on which were drawn.
    """
    shares = {
        name: 1 - (half[name][1] - half[name][0]) / (high - low)
        for name, (low, high) in whole.items()
        if name in half and high > low
    }
    if not shares:
        return "", 0.0
    worst = max(shares, key=lambda name: (abs(shares[name]), name))
    return worst, shares[worst]
