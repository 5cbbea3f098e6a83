"""Pareto fronts, which trial is taken, and which comes nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import summaries

from lathe_api.gates import Gate
from lathe_api.search import SearchGoal
from lathe_api.searchresult import Trial, TrialCheck, TrialMeasures, TrialState
from lathe_optimizers.search import pareto, picking

POINTS = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 3), max_size=20)


def trial(number, goals=(), *, check=None, missed=None, noise=0.0):
    measures = TrialMeasures(
        target="cpu", metric="accuracy", quality=0.9, size_ratio=4, parameter_ratio=1, int8_coverage=1,
        latency_ratio=2, noise_floor=noise,
    )  # fmt: skip
    return Trial(
        number=number,
        values=(),
        state=TrialState.PASSED if check is None else TrialState.STOPPED,
        check=check,
        reason="",
        missed_by=missed,
        seconds=1,
        goals=tuple(goals),
        measures=(measures,) if goals else (),
    )


def goals(*metrics):
    return [SearchGoal.model_validate({"metric": m}) for m in metrics]


@given(POINTS)
def test_a_front_holds_exactly_what_nothing_else_beats(points):
    front = [points[i] for i in pareto.front(points)]
    assert len(set(front)) == len(front)
    for point in points:
        beaten = any(pareto.dominates(other, point) for other in points)
        assert (point in front) is not beaten


@given(POINTS, st.integers(0, 6))
def test_a_thinned_front_keeps_its_ends(points, limit):
    kept = pareto.thinned(points, limit)
    assert list(kept) == sorted(set(kept))
    assert len(kept) == min(limit, len(points))


def test_the_crowded_point_goes_first():
    assert pareto.thinned([(0, 10), (5, 5), (5.5, 4.5), (10, 0)], 3) in {(0, 1, 3), (0, 2, 3)}
    assert pareto.thinned([(0, 10), (1, 9), (9, 1), (10, 0)], 2) == (0, 3)


@pytest.mark.parametrize(
    ("metrics", "trials", "number"),
    [
        pytest.param(["sizeRatio"], [trial(1, [2]), trial(2, [4]), trial(3, [3])], 2, id="the largest ratio"),
        pytest.param(["rmse"], [trial(1, [2]), trial(2, [4])], 1, id="the smallest error"),
        pytest.param(["sizeRatio", "accuracy"], [trial(1, [4, 0.8]), trial(2, [4, 0.9])], 2, id="ties by the next"),
        pytest.param(["sizeRatio"], [trial(1, [4]), trial(2, [4])], 1, id="of equals the first"),
        pytest.param(
            ["latencyRatio", "accuracy"], [trial(1, [2.0, 0.8], noise=0.05), trial(2, [1.95, 0.9])], 2,
            id="no difference within the noise",
        ),
        pytest.param(
            ["latencyRatio", "accuracy"], [trial(1, [2.0, 0.8], noise=0.01), trial(2, [1.95, 0.9])], 1,
            id="a difference beyond the noise",
        ),
        pytest.param(["sizeRatio"], [trial(1, [9], check=TrialCheck.LATENCY), trial(2, [4])], 2, id="only who passed"),
        pytest.param(["sizeRatio"], [trial(1, check=TrialCheck.STAGES)], None, id="nobody passed"),
    ],
)  # fmt: skip
def test_the_first_goal_picks(metrics, trials, number):
    found = picking.chosen(trials, goals(*metrics))
    assert (found and found.number) == number


def test_trials_on_the_front_are_marked():
    trials = [trial(1, [1, 3]), trial(2, [2, 2]), trial(3, [1, 2]), trial(4, [9, 9], check=TrialCheck.LATENCY)]
    assert [t.number for t in picking.marked(trials, goals("sizeRatio", "accuracy")) if t.best] == [1, 2]


def test_the_nearest_came_furthest_and_missed_by_least():
    trials = [
        trial(1, check=TrialCheck.STAGES),
        trial(2, check=TrialCheck.QUALITY, missed=0.5),
        trial(3, check=TrialCheck.QUALITY, missed=0.1),
        trial(4, check=TrialCheck.STRUCTURE, missed=0.01),
    ]
    assert picking.nearest(trials).number == 3
    assert picking.nearest([]) is None


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        pytest.param({"metric": "sizeRatio", "min": "4"}, 3.0, 0.25, id="too small"),
        pytest.param({"metric": "accuracy", "maxDrop": "0.02"}, 0.03, 0.5, id="too large a drop"),
        pytest.param({"metric": "accuracy", "maxDrop": "0"}, 0.03, 0.03, id="no drop allowed"),
        pytest.param({"metric": "sizeRatio", "min": "4"}, 5.0, 0.0, id="within, but not sure"),
        pytest.param({"metric": "latencyRatio", "min": "2"}, None, None, id="not measured"),
    ],
)
def test_a_miss_is_a_share_of_the_bound(bound, value, expected):
    gate = Gate.model_validate({"name": "bound"} | bound, by_alias=True)
    assert picking.missed_by(gate, summaries.gate(value=value)) == (
        None if expected is None else pytest.approx(expected)
    )
