"""Which trial is taken: the best one that passed, or the one that came nearest. Pure."""

import math
from collections.abc import Sequence

from lathe_api.gates import Gate, GateMetric
from lathe_api.search import Direction, SearchGoal
from lathe_api.searchresult import SearchResult, Trial, TrialCheck, TrialState
from lathe_api.summary import GateResult
from lathe_optimizers.search import pareto

_LOWER_IS_BETTER = frozenset({GateMetric.RMSE, GateMetric.MAE})
CHECKS = tuple(TrialCheck)
"""Cheapest first."""


def direction(goal: SearchGoal) -> Direction:
    """Which end of a goal is best."""
    if goal.direction is not None:
        return goal.direction
    return Direction.MINIMIZE if goal.metric in _LOWER_IS_BETTER else Direction.MAXIMIZE


def points(trials: Sequence[Trial], goals: Sequence[SearchGoal]) -> list[tuple[float, ...]]:
    """Goals of trials that passed, such that larger is better."""
    signs = [1.0 if direction(g) is Direction.MAXIMIZE else -1.0 for g in goals]
    return [tuple(s * v for s, v in zip(signs, t.goals, strict=True)) for t in trials]


def marked(trials: Sequence[Trial], goals: Sequence[SearchGoal]) -> tuple[Trial, ...]:
    """The trials, with `best` for those on the Pareto front of the ones that passed."""
    passed = [t for t in trials if t.state is TrialState.PASSED]
    best = {passed[i].number for i in pareto.front(points(passed, goals))}
    return tuple(t.model_copy(update={"best": t.number in best}) for t in trials)


def chosen(trials: Sequence[Trial], goals: Sequence[SearchGoal]) -> Trial | None:
    """The trial that is best by the first goal; of those not measurably worse by it, by the next; then the first.

    Two latency ratios that differ by less than the noise floor are equals; other goals are exact.
    """
    left = [t for t in trials if t.state is TrialState.PASSED]
    for place, goal in enumerate(goals):
        if not left:
            return None
        values = [p[place] for p in points(left, goals)]
        top = max(range(len(left)), key=values.__getitem__)
        margin = abs(values[top]) * _noise(left[top]) if goal.metric is GateMetric.LATENCY_RATIO else 0.0
        left = [t for t, v in zip(left, values, strict=True) if v >= values[top] - margin]
    return left[0] if left else None


def shown_front(search: SearchResult, limit: int) -> tuple[int, ...]:
    """Places of at most `limit` trials of the front in `search.trials`; the chosen one is always among them."""
    best = [place for place, trial in enumerate(search.trials) if trial.best]
    taken = [place for place, trial in enumerate(search.trials) if trial.number == search.chosen]
    others = [place for place in best if place not in taken]
    kept = pareto.thinned([search.trials[place].goals for place in others], limit - len(taken))
    return tuple(sorted([*taken, *(others[i] for i in kept)]))


def nearest(trials: Sequence[Trial]) -> Trial | None:
    """The trial that came furthest up the checks; of those the one that missed its bound by least; then the first."""

    def rank(trial: Trial) -> tuple[int, float]:
        step = CHECKS.index(trial.check) if trial.check is not None else len(CHECKS)
        return -step, math.inf if trial.missed_by is None else trial.missed_by

    return min(trials, key=rank, default=None)


def missed_by(gate: Gate, result: GateResult) -> float | None:
    """How far the measured value is from the bound, as a share of the bound; of 1 for a bound of 0.

    None where nothing was measured. A value within its bound that is not sure enough misses by 0.
    """
    bound = next(float(b) for b in (gate.min, gate.max, gate.max_drop) if b is not None)
    if result.value is None or not math.isfinite(result.value):
        return None
    distance = bound - result.value if gate.min is not None else result.value - bound
    return max(0.0, distance / (abs(bound) or 1.0))


def _noise(trial: Trial) -> float:
    return max((m.noise_floor or 0.0 for m in trial.measures), default=0.0)
