"""Searches: asks for combinations, tries them within the budget, and says which one is taken."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lathe_api.base import seconds
from lathe_api.canonical import digest_of
from lathe_api.events import Notice, TrialFinished, TrialStarted
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.search import Search
from lathe_api.searchresult import SearchResult, Trial, TrialCheck
from lathe_optimizers.errors import InputError
from lathe_optimizers.search import picking
from lathe_optimizers.search.space import Candidate, Census, Space
from lathe_optimizers.search.trials import Ground, do_trial, values_of

if TYPE_CHECKING:
    # Optuna takes a second to load, which runs without a search need not spend.
    from lathe_optimizers.search.study import Study

LAYOUT: Final = 1
"""Of the journal: raised when trials are written such that an earlier journal cannot be gone on with."""
SHOWN_REASONS: Final = 8


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    candidate: Candidate
    """What is built: the chosen combination, or the one that came nearest."""
    result: SearchResult


def checked(space: Space) -> Census:
    """What a space holds.

    Raises:
        InputError: no combination can be run, so that nothing need be tried.
    """
    search = space.search
    if search.parallelism > 1:
        raise InputError(
            "spec.search.parallelism",
            f"{search.parallelism} trials at the same time would time each other's models",
            "Write 1: stages use all cores by themselves",
        )
    census = space.census()
    if census.possible == 0:
        raise InputError(
            "spec.search.choices",
            f"none of the {census.total} combinations is possible: {'; '.join(census.reasons[:SHOWN_REASONS])}",
            "Change the values, the rest of the recipe, or the bound that is out of reach",
        )
    return census


def key_of(document: OptimizedModel, files: dict[str, str], ground: dict[str, object]) -> str:
    """Under which a search is kept: all that decides what its trials are and give, but not how many there are."""
    value = document.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
    search = {k: v for k, v in value["search"].items() if k not in ("maxTrials", "timeout", "parallelism")}
    parts = {k: value.get(k) for k in ("objective", "data", "recipe", "gates")}
    hardware = [t["hardware"] for t in value["targets"]]
    return digest_of({"layout": LAYOUT, "search": search, "files": files, "hardware": hardware, **parts, **ground})


def run_search(ground: Ground, space: Space, key: str, seed: int, clock: Callable[[], float] = time.monotonic) -> Found:
    """Try combinations until the budget ends or nothing is left.

    Raises:
        InputError: nothing could be tried.
        StoreError: the store cannot be used.
    """
    from lathe_optimizers.search.study import opened

    search = space.search
    census = checked(space)
    with opened(ground.store, key, space, seed, lambda: ground.observe(_waiting())) as study:
        resumed = len(study.trials)
        if resumed:
            count = f"{resumed} {'trial' if resumed == 1 else 'trials'}"
            ground.observe(Notice(message=f"the search goes on after {count} of an earlier run"))
        ended = _try_all(ground, study, search, clock)
        trials = tuple(study.trials)
    if not trials:
        raise InputError(
            "spec.search.choices",
            "no combination that is possible was found",
            "Allow values that fit each other and the rest of the recipe",
        )
    return _found(space, census, trials, ended, resumed)


def _try_all(ground: Ground, study: "Study", search: Search, clock: Callable[[], float]) -> str:
    """Do trials; why it ended."""
    limit = seconds(search.timeout)
    earlier = sum(t.seconds for t in study.trials)
    started = clock()
    while len(study.trials) < search.max_trials:
        if study.trials and earlier + clock() - started >= limit:
            return f"the time is used up ({search.timeout})"
        candidate = study.ask()
        if candidate is None:
            return "every possible combination was tried"
        number = len(study.trials) + 1
        values = values_of(search, candidate.values)
        ground.observe(TrialStarted(number=number, most=search.max_trials, values=values))
        trial = do_trial(ground, candidate, number)
        study.tell(trial)
        ground.observe(TrialFinished(trial=trial))
    return f"the budget of {search.max_trials} trials is used up"


def _found(space: Space, census: Census, trials: tuple[Trial, ...], ended: str, resumed: int) -> Found:
    goals = space.search.goals
    taken = picking.chosen(trials, goals)
    nearest = picking.nearest(trials) if taken is None else None
    if nearest is not None and nearest.check is TrialCheck.STAGES:
        raise InputError(
            "spec.search.choices",
            f"the stages of none of {len(trials)} trials could be done; the first one: {nearest.reason}",
            "Change the values, or the recipe",
        )
    built = taken or nearest
    if built is None:
        raise ValueError("a search without trials has no result")
    candidate = space.look(space.index(tuple(v.value for v in built.values)))
    if not isinstance(candidate, Candidate):
        raise TypeError(f"trial {built.number} is impossible: {candidate.reason}")
    words = tuple(f"{picking.direction(g)} {g.metric}" for g in goals)
    return Found(
        candidate,
        SearchResult(
            sampler=space.search.sampler,
            combinations=census.total,
            possible=census.possible,
            impossible=census.reasons,
            goals=words,
            trials=picking.marked(trials, goals),
            chosen=None if taken is None else taken.number,
            nearest=None if nearest is None else nearest.number,
            reason=_why(taken, nearest, trials, words),
            ended=ended,
            resumed=resumed,
            seconds=sum(t.seconds for t in trials),
        ),
    )


def _why(taken: Trial | None, nearest: Trial | None, trials: tuple[Trial, ...], goals: tuple[str, ...]) -> str:
    if taken is not None:
        shown = ", ".join(f"{goal.split()[1]} {value:.4g}" for goal, value in zip(goals, taken.goals, strict=True))
        return f"of the trials that pass every gate, trial {taken.number} is best by {goals[0]} ({shown})"
    if nearest is None:
        raise ValueError("a search without trials has no result")
    missed = "" if nearest.missed_by is None else f", by {nearest.missed_by:.1%} of the bound"
    return (
        f"none of {len(trials)} trials passes every gate; trial {nearest.number} comes nearest: "
        f"it fails at {nearest.check}{missed} ({nearest.reason})"
    )


def _waiting() -> Notice:
    return Notice(message="another run does this search; waiting for its result")
