"""How much faster one model is than another, measured so that a busy machine does not decide.

Both sessions are open and warm; runs alternate (A B B A, then B A A B) so that a slow spell or a slow place in the
round hits both; the ratio is taken per round and its median reported with a distribution-free interval. In the same
rounds the baseline runs against itself: what that ratio differs from 1 by is the noise floor. A timing is the best of
a few, since other processes can only add to it. A sequential before/after can be wrong by a factor of several.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from lathe_api.manifest import LatencyRatio
from lathe_optimizers import statistics
from lathe_optimizers.context import Array

CONFIDENCE: Final = 0.95
TIGHT: Final = 0.02
"""Half the interval, relative to the median, at which measuring ends."""
MIN_ROUNDS: Final = 30
MAX_ROUNDS: Final = 400
MIN_TIMING_SECONDS: Final = 1e-3
"""A timing repeats its runs for at least this long: the clock and the call cost microseconds."""
BEST_OF: Final = 3
"""Timings of which the best counts."""
WARM_UP_RUNS: Final = 3


def latency_ratio(
    baseline: Path,
    candidate: Path,
    feed: Mapping[str, Array],
    *,
    threads: int = 1,
    budget_seconds: float = 8.0,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
) -> LatencyRatio:
    """Time of `baseline` / time of `candidate`; above 1 the candidate is faster.

    Args:
        baseline: ONNX file.
        candidate: ONNX file with the same inputs.
        feed: inputs by name; the batch is what a run takes.
        threads: of each session.
        budget_seconds: measuring ends after this long, or once the interval is tight; `min_rounds` are always done.
        min_rounds: rounds that are always done.
        max_rounds: rounds at the most.
    """
    first, second = _Timed(baseline, feed, threads), _Timed(candidate, feed, threads)
    deadline = time.perf_counter() + budget_seconds
    ratios: list[float] = []
    noises: list[float] = []
    bases: list[float] = []
    while len(ratios) < max_rounds:
        if len(ratios) % 2:
            a, b, c, d = first.time(), second.time(), second.time(), first.time()
        else:
            b, a, d, c = second.time(), first.time(), first.time(), second.time()
        # Swapped by turns, so that neither place in the round counts as the numerator.
        noises.append(a / d if len(noises) % 4 < 2 else d / a)  # noqa: PLR2004 - both orders, both ways
        ratios.append((a + d) / (b + c))
        bases.append((a + d) / 2)
        if len(ratios) >= min_rounds and (time.perf_counter() > deadline or _tight(ratios)):
            break
    ratio = statistics.median_interval(np.array(ratios), CONFIDENCE)
    noise = statistics.median_interval(np.array(noises), CONFIDENCE)
    return LatencyRatio(
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        noise_floor=max(abs(noise.low - 1), abs(noise.high - 1)),
        rounds=len(ratios),
        threads=threads,
        batch=len(next(iter(feed.values()))),
        baseline_ms=float(np.median(bases)) * 1e3,
    )


def _tight(ratios: list[float]) -> bool:
    interval = statistics.median_interval(np.array(ratios), CONFIDENCE)
    return (interval.high - interval.low) / 2 <= TIGHT * interval.value


class _Timed:
    """A warm session and how often it runs per timing."""

    def __init__(self, path: Path, feed: Mapping[str, Array], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool of the one session would take the core from the other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session: Any = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.feed = dict(feed)
        self.repeats = 1
        for _ in range(WARM_UP_RUNS):
            single = self.time()
        self.repeats = max(1, round(MIN_TIMING_SECONDS / single))

    def time(self) -> float:
        """Seconds per run, best of a few timings."""
        run, feed = self.session.run, self.feed
        best = math.inf
        for _ in range(BEST_OF):
            start = time.perf_counter()
            for _ in range(self.repeats):
                run(None, feed)
            best = min(best, time.perf_counter() - start)
        return best / self.repeats
