"""Search: which settings of a recipe to try, what to make best, and what must hold."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Decimal, Duration, Name
from lathe_api.findings import Finding, exactly_one, refuse
from lathe_api.gates import GateMetric

FieldPath = Annotated[
    str,
    Field(
        pattern=r"^[a-z][A-Za-z0-9]*(\.[a-z][A-Za-z0-9]*|\[[0-9]{1,3}\])*$",
        min_length=1,
        max_length=253,
    ),
]
"""Names as written in the document, joined by dots: `prune.parameters`, `distill.student.width`."""


class Choice(ApiModel):
    """Values that one setting is tried with."""

    stage: Name
    """Name of the stage."""
    field: FieldPath
    """Setting within the stage, such as `prune.parameters`."""
    values: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(min_length=2, max_length=32)]
    """What to try, as written in the document; numbers in quotes."""


class Sampler(StrEnum):
    """How the next combination is chosen."""

    TPE = "Tpe"
    """By what was good so far: tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011)."""
    GRID = "Grid"
    """All in the order of the document."""
    RANDOM = "Random"
    """Any that was not tried yet."""


class Direction(StrEnum):
    """Which end of a metric is best."""

    MAXIMIZE = "Maximize"
    MINIMIZE = "Minimize"


class SearchGoal(ApiModel):
    """What is made best. A result is kept and plotted unless another one is at least as good in every goal."""

    metric: GateMetric
    """What is measured."""
    direction: Direction | None = None
    """Which end is best; by default Minimize for rmse and mae, Maximize for all else (ratios are original / result)."""


class SearchConstraint(ApiModel):
    """What a result must hold to be chosen."""

    metric: GateMetric
    """What is measured."""
    min: Decimal | None = None
    """At least this."""
    max: Decimal | None = None
    """At most this."""

    @model_validator(mode="after")
    def _one_bound(self) -> "SearchConstraint":
        given = [name for name in ("min", "max") if getattr(self, name) is not None]
        refuse("constraint", exactly_one((), given, ("min", "max")))
        return self


class Search(ApiModel):
    """Try several settings of the recipe and keep the best. Stages that trials share run once."""

    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=16)]
    """The settings that vary."""
    goals: Annotated[tuple[SearchGoal, ...], Field(min_length=1, max_length=3)]
    """What is made best. The first one picks the result; the next ones decide between equals."""
    constraints: Annotated[tuple[SearchConstraint, ...], Field(max_length=8)] = ()
    """What a result must hold to be chosen; the gates hold besides."""
    sampler: Sampler = Sampler.TPE
    """How the next combination is chosen."""
    max_trials: Annotated[int, Field(ge=1, le=1000)] = 20
    """Combinations that are tried at the most."""
    parallelism: Annotated[int, Field(ge=1, le=64)] = 1
    """Trials at the same time."""
    timeout: Duration = "24h"
    """No trial is started after this long, over all runs that go on with the search; the best one so far is taken."""

    @model_validator(mode="after")
    def _choices_differ(self) -> "Search":
        places = [(c.stage, c.field) for c in self.choices]
        findings = [
            Finding(("choices", index, "field"), f"{stage} {field} a second time", "write all values in one entry")
            for index, (stage, field) in enumerate(places)
            if (stage, field) in places[:index]
        ]
        refuse("search", findings)
        return self
