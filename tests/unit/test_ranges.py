"""Ranges from histograms: what outliers do to them."""

import numpy as np
import pytest

from lathe_api.recipe import CalibrationMethod
from lathe_optimizers.passes.ranges import Histogram, stability

RNG = np.random.default_rng(0)
PLAIN = RNG.normal(size=200_000).astype(np.float32)
POSITIVE = np.abs(PLAIN)


def histogram(values, parts=7):
    found = Histogram(float(values.min()), float(values.max()))
    for part in np.array_split(values, parts):
        found.add(part)
    return found


def rounded(values, found):
    """As 8-bit integers over a range."""
    low, high = found
    step = (high - low) / 255
    return np.clip(np.rint((values - low) / step), 0, 255) * step + low


def test_extremes_are_kept_by_min_max():
    assert histogram(PLAIN).range(CalibrationMethod.MIN_MAX) == (PLAIN.min(), PLAIN.max())


@pytest.mark.parametrize("method", [CalibrationMethod.PERCENTILE, CalibrationMethod.ENTROPY])
@pytest.mark.parametrize("values", [PLAIN, POSITIVE], ids=["both signs", "positive"])
def test_one_outlier_does_not_make_all_others_coarse(values, method):
    spoiled = np.append(values, np.float32(200))
    found = histogram(spoiled)
    low, high = found.range(method)
    assert low >= spoiled.min()
    assert high < 30
    errors = [np.abs(rounded(values, r) - values).mean() for r in (found.range(CalibrationMethod.MIN_MAX), (low, high))]
    assert errors[1] < errors[0] / 3


def test_zeros_of_a_relu_do_not_narrow_the_rest():
    values = np.where(PLAIN > 1, PLAIN, 0).astype(np.float32)
    low, high = histogram(values).range(CalibrationMethod.ENTROPY)
    assert low == 0
    assert high > 3


def test_values_far_from_zero_keep_a_range():
    low, high = histogram(PLAIN + 50).range(CalibrationMethod.ENTROPY)
    assert low < 50 < high


def test_a_percentile_leaves_out_one_in_ten_thousand():
    found = histogram(PLAIN).range(CalibrationMethod.PERCENTILE)
    outside = np.mean((found[0] > PLAIN) | (found[1] < PLAIN))
    assert 0 < outside < 2e-4


def test_evenly_spread_values_keep_their_range():
    values = RNG.uniform(-1, 1, 100_000).astype(np.float32)
    for method in (CalibrationMethod.PERCENTILE, CalibrationMethod.ENTROPY):
        low, high = histogram(values).range(method)
        assert low < -0.95
        assert high > 0.95


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_a_constant_has_its_own_range(method):
    found = Histogram(2.0, 2.0)
    found.add(np.full(10, 2.0))
    assert found.range(method) == (2.0, 2.0)


def test_batches_count_like_the_whole():
    assert histogram(PLAIN, 1).range(CalibrationMethod.ENTROPY) == histogram(PLAIN, 50).range(CalibrationMethod.ENTROPY)


def test_the_range_that_moved_most_is_named():
    whole = {"a": (0.0, 1.0), "b": (-1.0, 1.0), "constant": (3.0, 3.0)}
    assert stability({"a": (0.0, 0.9), "b": (-0.5, 0.5), "constant": (3.0, 3.0)}, whole) == ("b", 0.5)
    assert stability({}, {}) == ("", 0.0)
