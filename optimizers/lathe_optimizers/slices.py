"""The largest loss among the slices of an evaluation set. Pure.

A mean over all samples hides that one site, one device or one class pays for the others. Each slice is compared by
itself, on the same samples of both models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lathe_api.gates import DropType
from lathe_optimizers import quality
from lathe_optimizers.quality import Answered
from lathe_optimizers.statistics import Interval


@dataclass(frozen=True)
class SliceDrop:
    """How much worse the answers to one slice are."""

    name: str
    samples: int
    interval: Interval
    """Of the drop; the upper bound holds at the confidence, the lower one at that confidence for all slices at once."""


@dataclass(frozen=True)
class WorstSlice:
    """What is known of the largest loss."""

    worst: SliceDrop | None
    """The slice with the largest measured drop; None where every slice is too small."""
    interval: Interval
    """Of the largest drop among the slices that were judged."""
    judged: int
    small: tuple[str, ...]
    """Slices with fewer samples than were asked for: not judged."""


def worst_slice(
    original: Answered,
    result: Answered,
    labels: Sequence[str],
    *,
    kind: DropType,
    confidence: float,
    min_samples: int,
    seed: int,
) -> WorstSlice:
    """The largest drop among slices, with one-sided bounds at `confidence`.

    That *every* slice is within a bound is an intersection-union test: each slice is tested at the full confidence, and
    no correction is due (Berger 1982, Technometrics 24:295-300). That *some* slice is beyond it is found by looking at
    many: its lower bounds are corrected for their number (Bonferroni), so that a bad verdict is no accident of a slice.

    Args:
        original: contributions of shape (samples, k).
        result: on the same samples.
        labels: slice of each sample.
        kind: how a drop is counted.
        confidence: of the bounds.
        min_samples: smaller slices are not judged.
        seed: of resampling.
    """
    found = np.asarray(labels)
    names, counts = np.unique(found, return_counts=True)
    small = tuple(str(n) for n, c in zip(names, counts, strict=True) if c < min_samples)
    judged = [str(n) for n, c in zip(names, counts, strict=True) if c >= min_samples]
    corrected = 1 - (1 - confidence) / max(len(judged), 1)
    drops = []
    for name in judged:
        members = found == name
        first, second = _part(original, members), _part(result, members)
        each, together = (
            quality.drop(first, second, kind=kind, confidence=c, two_sided=False, seed=seed)
            for c in (confidence, corrected)
        )
        interval = Interval(each.value, together.low, each.high)
        drops.append(SliceDrop(name, int(members.sum()), interval))
    if not drops:
        return WorstSlice(None, Interval(float("nan"), float("-inf"), float("inf")), 0, small)
    worst = max(drops, key=lambda d: d.interval.value)
    # A slice that lost less may be known worse, and one that is known less well may have lost more.
    low, high = max(d.interval.low for d in drops), max(d.interval.high for d in drops)
    return WorstSlice(worst, Interval(worst.interval.value, low, high), len(drops), small)


def _part(whole: Answered, members: NDArray[np.bool_]) -> Answered:
    return Answered(whole.metric, whole.contributions[members])
