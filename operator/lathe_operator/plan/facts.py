"""What one step of a decision found out: conditions, objects to apply or delete, words for the one column."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lathe_api import conditions
from lathe_api.status import Condition, ConditionStatus, ConditionType
from lathe_operator.plan.failures import Trouble
from lathe_operator.plan.observed import Event, Json, Ref, dig

LONGEST_MESSAGE: Final = 4096
NEEDED: Final = (
    ConditionType.INPUTS_RESOLVED,
    ConditionType.RECIPE_VALID,
    ConditionType.OPTIMIZED,
    ConditionType.GATES_PASSED,
    ConditionType.PUBLISHED,
    ConditionType.ROLLED_OUT,
)
"""Conditions of an OptimizedModel that Ready is computed from, in the order of the work."""
TROUBLE_SECONDS: Final = 5.0
"""Next look while something stands in the way whose end no watch tells of, such as a claim that is bound."""


@dataclass(frozen=True)
class Fact:
    """One condition as it is now."""

    kind: ConditionType
    status: ConditionStatus
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Part:
    """What one step of the work decided."""

    facts: tuple[Fact, ...]
    summary: str
    """For the one column, as long as no later step has something to say."""
    done: bool = False
    """Whether the next step may begin."""
    final: bool = False
    """Whether what is False stays so until somebody changes something; else it may pass by itself."""
    objects: tuple[Json, ...] = ()
    deletions: tuple[Ref, ...] = ()
    requeue_after: float | None = None


def true(kind: ConditionType, reason: str, message: str = "") -> Fact:
    """The condition holds."""
    return Fact(kind, ConditionStatus.TRUE, reason, message)


def false(kind: ConditionType, reason: str, message: str) -> Fact:
    """The condition does not hold, and somebody has to do something."""
    return Fact(kind, ConditionStatus.FALSE, reason, message)


def unknown(kind: ConditionType, reason: str, message: str = "") -> Fact:
    """The work that decides it goes on."""
    return Fact(kind, ConditionStatus.UNKNOWN, reason, message)


def troubled(kind: ConditionType, trouble: Trouble) -> Fact:
    """The condition does not hold because of a trouble."""
    return false(kind, trouble.reason, trouble.message)


def judged(
    before: Sequence[Condition], facts: Iterable[Fact], needed: Sequence[ConditionType], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions after these facts, Ready included; those that nothing is known of yet are Unknown."""
    found = list(facts)
    reached = {fact.kind for fact in found}
    found += [unknown(kind, "NotReached", "An earlier step is not done") for kind in needed if kind not in reached]
    updates = [
        conditions.condition(
            f.kind, f.status, reason=f.reason, message=f.message[:LONGEST_MESSAGE], generation=generation, now=now
        )
        for f in found
    ]
    return conditions.ready(conditions.merge(before, updates), needed, generation=generation, now=now)


def conditions_of(obj: Json | None) -> tuple[Condition, ...]:
    """The conditions that an object carries; those of types that are not known here are left out."""
    known = set(ConditionType)
    return tuple(
        Condition.model_validate(c, by_alias=True, by_name=False)
        for c in dig(obj, "status", "conditions", default=[])
        if c.get("type") in known
    )


def changes(before: Sequence[Condition], after: Sequence[Condition]) -> tuple[Event, ...]:
    """An Event for each condition that has become True or False, or is False for another reason."""
    old = {c.type: c for c in before}
    events = []
    for now in after:
        was = old.get(now.type)
        if now.status is ConditionStatus.UNKNOWN or now.type is ConditionType.READY:
            continue
        if (
            was is not None
            and was.status is now.status
            and (was.reason == now.reason or now.status is ConditionStatus.TRUE)
        ):
            continue
        text = f"{now.type}: {now.message}" if now.message else f"{now.type} is {now.status}"
        events.append(Event(now.reason, text[:1024], warning=now.status is ConditionStatus.FALSE))
    return tuple(events)
