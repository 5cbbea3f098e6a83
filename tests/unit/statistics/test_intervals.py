"""Intervals hold what they promise, also at the edges where accuracies live."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe_optimizers.statistics import (
    Pairs,
    bootstrap_quantiles,
    mcnemar_exact,
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


@pytest.mark.parametrize("samples", [50, 719])
def test_without_a_discordant_pair_the_interval_is_the_one_of_a_proportion_that_was_never_seen(samples):
    z = normal_quantile(0.95, two_sided=True)
    found = paired_proportions(Pairs(samples, 0, 0, 0), z)
    # Solving the score equation at no discordant pair by hand: n d^2 = z^2 d (1 - d)
    edge = z * z / (samples + z * z)
    assert (found.low, found.high) == pytest.approx((-edge, edge), abs=1e-9)


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


@pytest.mark.parametrize("samples", [100, 719])
@pytest.mark.parametrize(
    ("lost", "gained"), [(0.02, 0.0), (0.01, 0.0), (0.03, 0.01), (0.06, 0.04), (0.05, 0.0)], ids=str
)
@pytest.mark.parametrize("right", [0.6, 0.9])
def test_the_one_sided_bound_of_a_paired_difference_covers_at_its_confidence(samples, lost, gained, right):
    rng = np.random.default_rng(0)
    z = normal_quantile(0.95, two_sided=False)
    drawn = rng.multinomial(samples, [right - lost, lost, gained, 1 - right - gained], 1500)
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    covers = [paired_proportions(Pairs(*map(int, k)), z).high >= lost - gained - 1e-9 for k in kinds]
    assert np.average(covers, weights=counts) > 0.92


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


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (10, 100, 0.0)],
    ids=str,
)
def test_mcnemar_is_the_sign_test_of_discordant_samples(first, second, expected):
    found = mcnemar_exact(first, second)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found == pytest.approx(mcnemar_exact(second, first))
