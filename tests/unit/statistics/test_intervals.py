"""Intervals hold what they promise, also at the edges where accuracies live."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe_optimizers.statistics import (
    Pairs,
    bootstrap_quantiles,
    median_interval,
    normal_quantile,
    paired_proportions,
    wilson,
)

counts = st.integers(0, 500)


@pytest.mark.parametrize(
    ("successes", "samples", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:857-872), table I, score method without continuity correction
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, samples, low, high):
    found = wilson(successes, samples, normal_quantile(0.95, two_sided=True))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("pairs", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:2635-2650), table II, method 10
    [
        (Pairs(36, 12, 2, 0), 0.0569, 0.3404),
        (Pairs(36, 14, 0, 0), 0.1528, 0.4167),
        (Pairs(0, 0, 0, 50), -0.0713, 0.0713),
        (Pairs(50, 0, 0, 0), -0.0713, 0.0713),
    ],
    ids=["12 against 2", "14 against 0", "both always wrong", "both always right"],
)
def test_paired_proportions_give_the_published_intervals(pairs, low, high):
    found = paired_proportions(pairs, normal_quantile(0.95, two_sided=True))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


@given(both=counts, first=counts, second=counts, neither=counts)
def test_a_paired_difference_lies_in_its_interval_and_swaps_with_the_sides(both, first, second, neither):
    z = normal_quantile(0.95, two_sided=True)
    one = paired_proportions(Pairs(both, first, second, neither), z)
    two = paired_proportions(Pairs(both, second, first, neither), z)
    if both + first + second + neither == 0:
        assert math.isnan(one.value)
        return
    assert -1 <= one.low <= one.value + 1e-12
    assert one.value - 1e-12 <= one.high <= 1
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low), abs=1e-9)


def test_the_one_sided_bound_of_a_paired_difference_covers_at_its_confidence():
    rng = np.random.default_rng(0)
    z = normal_quantile(0.95, two_sided=False)
    covered, trials, samples = 0, 2000, 400
    for _ in range(trials):
        drawn = rng.multinomial(samples, [0.93, 0.03, 0.01, 0.03])
        covered += paired_proportions(Pairs(*map(int, drawn)), z).high >= 0.02
    assert 0.93 <= covered / trials <= 0.985


def test_the_bootstrap_covers_a_difference_of_means():
    rng = np.random.default_rng(0)
    covered, trials = 0, 100
    for seed in range(trials):
        first = rng.standard_normal((200, 1))
        second = first + 0.3 + 0.2 * rng.standard_normal((200, 1))
        low, high = bootstrap_quantiles(first, second, lambda a, b: (b - a)[:, 0], (0.025, 0.975), seed)
        covered += low <= 0.3 <= high
    assert covered / trials > 0.88


def test_the_bootstrap_repeats_itself_by_seed():
    x = np.random.default_rng(0).random((50, 2))
    one, two, other = (bootstrap_quantiles(x, x[::-1], lambda a, b: a[:, 0] - b[:, 1], (0.1,), s) for s in (1, 1, 2))
    assert one == two
    assert one != other


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=1100))
def test_a_median_lies_in_its_interval(values):
    found = median_interval(np.array(values), 0.95)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_the_median_interval_covers_at_its_confidence():
    rng = np.random.default_rng(0)
    found = [median_interval(rng.standard_exponential(25), 0.95) for _ in range(2000)]
    share = np.mean([i.low <= math.log(2) <= i.high for i in found])
    assert 0.94 <= share <= 0.985
