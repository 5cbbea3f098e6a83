"""The trials of a search in Optuna, kept in the store, so that an interrupted search goes on where it was.

Equal inputs give equal searches: the sampler is seeded anew before each trial by how many trials are finished, and so
depends on nothing but them. A trial that was interrupted leaves no trace in what follows.
"""

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lathe_api.search import Sampler, Search
from lathe_api.searchresult import Trial
from lathe_api.searchresult import TrialState as State
from lathe_optimizers import files
from lathe_optimizers.errors import StoreError
from lathe_optimizers.places import LocalPlace
from lathe_optimizers.search import picking
from lathe_optimizers.search.space import Candidate, Space
from lathe_optimizers.store import Store

RESULT: Final = "result"
SURPRISES: Final = 16
"""How often the sampler may come up with what is impossible or known, before any untried combination is taken."""
DRAWS: Final = 4096
"""Random draws after which a large space counts as having nothing left."""
MOST_RANDOM: Final = 10
"""Trials before the estimator has enough to go by."""


class Study:
    """A search that goes on from the trials that are kept.

    Args:
        space: the combinations.
        seed: of the sampler.
        path: file of Optuna's journal.
        saved: called when the journal has grown.
    """

    def __init__(self, space: Space, seed: int, path: Path, saved: Callable[[], None] = lambda: None) -> None:
        self._space = space
        self._seed = seed
        self._saved = saved
        search = space.search
        self._path = path
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with files.explained(path):
            _mend(path)
            try:
                self._study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(path))),
                    study_name="search",
                    directions=[picking.direction(g).value.lower() for g in search.goals],
                    load_if_exists=True,
                )
                for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
                    self._tell(trial, state=TrialState.FAIL)
                self.trials = _finished(self._study.get_trials(deepcopy=False))
                self._tried = {self._index(t) for t in self.trials}
            except (KeyError, ValueError) as error:
                raise StoreError(f"{path}: the journal is damaged. Remove it to search anew") from error
        self._open: optuna.Trial | None = None

    def ask(self) -> Candidate | None:
        """The next combination; None where nothing is left to try.

        Raises:
            StoreError: the journal cannot be written.
        """
        with files.explained(self._path):
            return self._ask()

    def _ask(self) -> Candidate | None:
        match self._space.search.sampler:
            case Sampler.GRID:
                found = next((c for c in self._space if isinstance(c, Candidate) and c.index not in self._tried), None)
            case Sampler.RANDOM:
                found = self._drawn()
            case Sampler.TPE:
                found = self._suggested()
        if found is not None and self._open is None:
            self._study.enqueue_trial(self._params(found.values))
            self._open = self._study.ask(self._distributions())
        return found

    def tell(self, trial: Trial) -> None:
        """Keep the result of the combination that was asked for.

        Raises:
            StoreError: the journal cannot be written.
        """
        if self._open is None:
            raise ValueError("no combination was asked for")
        passed = trial.state is State.PASSED
        goals, state = (list(trial.goals), TrialState.COMPLETE) if passed else (None, TrialState.PRUNED)
        with files.explained(self._path):
            self._open.set_user_attr(RESULT, trial.model_dump_json(by_alias=True))
            self._tell(self._open, goals, state)
        self._open = None
        self.trials.append(trial)
        self._tried.add(self._index(trial))
        self._saved()

    def _suggested(self) -> Candidate | None:
        """What the estimator thinks best, where that is possible and new."""
        for surprise in range(SURPRISES):
            self._study.sampler = _sampler(self._seed, len(self.trials), surprise, self._space.search)
            asked = self._study.ask(self._distributions())
            found = self._space.look(self._space.index(self._values(asked.params)))
            if isinstance(found, Candidate) and found.index not in self._tried:
                self._open = asked
                return found
            self._tell(asked, state=TrialState.FAIL)
        return self._drawn()

    def _drawn(self) -> Candidate | None:
        """Any possible combination that is new, each with the same chance."""
        draws = random.Random(f"{self._seed}/{len(self.trials)}")  # noqa: S311 - no secret
        for _ in range(min(DRAWS, 4 * self._space.total)):
            found = self._space.look(draws.randrange(self._space.total))
            if isinstance(found, Candidate) and found.index not in self._tried:
                return found
        if self._space.total > DRAWS:
            return None
        left = [c for c in self._space if isinstance(c, Candidate) and c.index not in self._tried]
        return draws.choice(left) if left else None

    def _names(self) -> list[str]:
        return [f"{c.stage}.{c.field}" for c in self._space.search.choices]

    def _distributions(self) -> dict[str, BaseDistribution]:
        """Numbers by their place in order, so that the estimator learns from neighbours; words as they are."""
        found: dict[str, BaseDistribution] = {}
        for name, choice in zip(self._names(), self._space.search.choices, strict=True):
            order = _ordered(choice.values)
            found[name] = (
                CategoricalDistribution(choice.values) if order is None else IntDistribution(0, len(order) - 1)
            )
        return found

    def _params(self, values: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, choice, value in zip(self._names(), self._space.search.choices, values, strict=True):
            order = _ordered(choice.values)
            found[name] = value if order is None else order.index(value)
        return found

    def _values(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        found = []
        for name, choice in zip(self._names(), self._space.search.choices, strict=True):
            order = _ordered(choice.values)
            found.append(params[name] if order is None else order[params[name]])
        return tuple(found)

    def _index(self, trial: Trial) -> int:
        return self._space.index(tuple(v.value for v in trial.values))

    def _tell(
        self, trial: "optuna.Trial | FrozenTrial", values: Sequence[float] | None = None, state: Any = None
    ) -> None:
        number = trial.number
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.tell(number, values, state=state)


@contextlib.contextmanager
def opened(store: Store, key: str, space: Space, seed: int, waiting: Callable[[], None]) -> Iterator[Study]:
    """The study of a search in a store; one process at a time goes on with it.

    Raises:
        StoreError: the store cannot be read or written.
    """
    name = f"searches/{key.removeprefix('sha256:')}/journal.log"
    with store.lock(f"search-{key.removeprefix('sha256:')}", waiting), store.workdir() as scratch:
        if isinstance(store.place, LocalPlace):
            path = store.place.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            yield Study(space, seed, path)
            return
        # An object store has no appending: the journal is taken here, and put back whole after each trial.
        path = scratch / "journal.log"
        path.write_bytes(store.place.read(name) or b"")
        yield Study(space, seed, path, lambda: store.place.write(name, path.read_bytes()))


def _mend(path: Path) -> None:
    """Drop the end of a line that a killed process left: what is appended to it would be lost too."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        files.write_file(path, whole)


def _ordered(values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Numbers, smallest first; None where a value is a word."""
    try:
        return tuple(sorted(values, key=float))
    except ValueError:
        return None


def _sampler(seed: int, finished: int, surprise: int, search: Search) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=random.Random(f"{seed}/{finished}/{surprise}").randrange(2**32),  # noqa: S311 - no secret
            n_startup_trials=min(MOST_RANDOM, max(2, search.max_trials // 3)),
            constraints_func=_violation,
        )


def _violation(trial: FrozenTrial) -> tuple[float]:
    """How far a trial is from being allowed, for the estimator: above 0 where it is not.

    An early check that fails counts for more than a late one.
    """
    text = trial.user_attrs.get(RESULT)
    if text is None:
        return (1.0,)
    result = Trial.model_validate_json(text)
    if result.state is State.PASSED or result.check is None:
        return (0.0,)
    steps = len(picking.CHECKS) - picking.CHECKS.index(result.check)
    return (steps + min(result.missed_by if result.missed_by is not None else 1.0, 1.0) * 0.99,)


def _finished(trials: Sequence[FrozenTrial]) -> list[Trial]:
    texts = [t.user_attrs[RESULT] for t in trials if t.state.is_finished() and RESULT in t.user_attrs]
    return sorted((Trial.model_validate_json(t) for t in texts), key=lambda t: t.number)
