"""The combinations that a document's choices allow, each as a document of its own. Pure."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from lathe_api import choices, explain
from lathe_api.base import ApiModel
from lathe_api.gates import Gate, GateMetric, OnFail
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.recipe import FuseMethod, PruneMethod, QuantizeMethod, Stage, StageType
from lathe_api.search import Search
from lathe_optimizers.errors import InputError

COUNTED: Final = 1024
"""Combinations up to which all are looked at before any is tried."""
FULL_BITS: Final = 32
BITS: Final = {
    QuantizeMethod.DYNAMIC: 8,
    QuantizeMethod.STATIC: 8,
    QuantizeMethod.QUANTIZATION_AWARE: 8,
    QuantizeMethod.WEIGHT_ONLY_8: 8,
    QuantizeMethod.WEIGHT_ONLY_4: 4,
    QuantizeMethod.FLOAT16: 16,
}
SLACK: Final = 1.25
"""A bound on the size counts as out of reach only this far beyond the arithmetic: folding takes a few numbers away too,
and a file holds more than weights."""


@dataclass(frozen=True)
class Candidate:
    """One combination that can be tried."""

    index: int
    values: tuple[str, ...]
    """Of each choice, in their order."""
    document: OptimizedModel
    """With the values in its recipe, the constraints as gates, and no search."""


@dataclass(frozen=True)
class Impossible:
    """One combination that cannot be tried."""

    index: int
    values: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Census:
    """What a space holds, as far as it was counted."""

    total: int
    possible: int | None
    """None where there are too many combinations to look at each."""
    reasons: tuple[str, ...] = field(default=())
    """Why the others are impossible, each reason once."""


class Space:
    """The combinations of a document that searches, by index: the last choice varies fastest.

    Args:
        document: with a search and the stages written out.
        check: raises InputError for a document that cannot be run here.
    """

    def __init__(self, document: OptimizedModel, check: Callable[[OptimizedModel], object] = lambda _: None) -> None:
        if document.spec.search is None:
            raise ValueError("the document searches nothing")
        self.search: Search = document.spec.search
        self._document = document
        self._check = check
        self._known: dict[int, Candidate | Impossible] = {}

    @property
    def total(self) -> int:
        """Combinations there are."""
        return math.prod(len(c.values) for c in self.search.choices)

    def values(self, index: int) -> tuple[str, ...]:
        """One value of each choice."""
        found: list[str] = []
        for choice in reversed(self.search.choices):
            index, place = divmod(index, len(choice.values))
            found.append(choice.values[place])
        return tuple(reversed(found))

    def index(self, values: tuple[str, ...]) -> int:
        """The inverse of `values`."""
        found = 0
        for choice, value in zip(self.search.choices, values, strict=True):
            found = found * len(choice.values) + choice.values.index(value)
        return found

    def look(self, index: int) -> Candidate | Impossible:
        """The combination, checked by everything that needs no model and no data."""
        if index not in self._known:
            self._known[index] = self._look(index)
        return self._known[index]

    def census(self) -> Census:
        """Counts and reasons; all combinations are looked at where there are at most `COUNTED`."""
        if self.total > COUNTED:
            return Census(self.total, None)
        looked = [self.look(i) for i in range(self.total)]
        reasons = dict.fromkeys(c.reason for c in looked if isinstance(c, Impossible))
        return Census(self.total, sum(isinstance(c, Candidate) for c in looked), tuple(reasons))

    def __iter__(self) -> Iterator[Candidate | Impossible]:
        """All of them, in order."""
        return (self.look(i) for i in range(self.total))

    def _look(self, index: int) -> Candidate | Impossible:
        values = self.values(index)
        try:
            document = _written(self._document, self.search, values)
        except ValidationError as error:
            problem = next(iter(explain.unplaced(error, OptimizedModel, "")))
            return Impossible(index, values, f"{problem.path}: {problem.found}; {problem.remedy}")
        try:
            self._check(document)
        except InputError as error:
            return Impossible(index, values, str(error))
        reason = out_of_reach(document)
        return Impossible(index, values, reason) if reason else Candidate(index, values, document)


def out_of_reach(document: OptimizedModel) -> str | None:
    """Why a gate can not be passed whatever the weights are, by arithmetic on the recipe; None where it may be.

    A file of n weights of b bits is at most 32/b times smaller than the original, and no kernel runs in integers
    where nothing is quantised. Stages that change the number of weights are taken to reach any size.
    """
    stages = document.spec.recipe.stages
    final = {s.name for s in stages[-1:]} | {"export"}
    for gate in document.spec.gates:
        if gate.min is None or gate.on_fail is not OnFail.STOP or (gate.stages and not final & set(gate.stages)):
            continue
        method = next((s.quantize.method for s in stages if s.quantize is not None), None)
        bits = BITS[method] if method is not None else FULL_BITS
        most = FULL_BITS / bits
        if gate.metric is GateMetric.SIZE_RATIO and not any(map(_shrinks, stages)) and float(gate.min) > SLACK * most:
            how = f"{method} keeps {bits} of {FULL_BITS} bits" if method else "no stage takes bits or weights away"
            return f"gate {gate.name}: sizeRatio of at least {gate.min} is out of reach: {how}, at most {most:g}x"
        integers = method not in (None, QuantizeMethod.FLOAT16)
        if gate.metric is GateMetric.INT8_COVERAGE and not integers and float(gate.min) > 0:
            return f"gate {gate.name}: int8Coverage of at least {gate.min} is out of reach: no stage makes integers"
    return None


def _shrinks(stage: Stage) -> bool:
    if stage.prune is not None:
        return stage.prune.method is PruneMethod.STRUCTURED_MAGNITUDE
    if stage.fuse is not None:
        return stage.fuse.method is FuseMethod.SIMILAR_LAYERS
    return stage.type is StageType.DISTILL


def _written(document: OptimizedModel, search: Search, values: tuple[str, ...]) -> OptimizedModel:
    value = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec = value["spec"]
    del spec["search"]
    spec["recipe"] = {"stages": choices.applied(document.spec.recipe.stages, search.choices, values)}
    spec["gates"] = [_json(g) for g in (*document.spec.gates, *_constraints(document, search))]
    return OptimizedModel.model_validate(value, by_alias=True, by_name=False)


def _constraints(document: OptimizedModel, search: Search) -> tuple[Gate, ...]:
    """Constraints are gates on the end of the recipe, so that both are judged alike and the result proves them."""
    taken = {g.name for g in document.spec.gates}
    found = []
    for number, constraint in enumerate(search.constraints, 1):
        name = f"constraint-{number}"
        while name in taken:
            name += "-search"
        found.append(Gate(name=name, metric=constraint.metric, min=constraint.min, max=constraint.max, min_samples=1))
    return tuple(found)


def _json(value: ApiModel) -> object:
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)
