"""Conditions as values: what an object says about itself, computed without clock or cluster.

Rules (Kubernetes API conventions): one entry per type, True is good, `lastTransitionTime` moves only when `status`
does, `observedGeneration` is always there, and everything that could be observed is present from the first visit on,
as Unknown.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from lathe_api.status import Condition, ConditionStatus, ConditionType


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds: `2026-01-31T12:00:00Z`.

    Raises:
        ValueError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(
    kind: ConditionType,
    status: ConditionStatus,
    *,
    reason: str,
    message: str = "",
    generation: int,
    now: datetime,
) -> Condition:
    """An observation made at `now` on the given generation of `spec`."""
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=timestamp(now),
    )


def find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """The condition of a type, or None."""
    return next((c for c in conditions if c.type is kind), None)


def holds(conditions: Iterable[Condition], kind: ConditionType, *, generation: int) -> bool:
    """Whether the condition is True of this generation of `spec`, not of an older one."""
    found = find(conditions, kind)
    return found is not None and found.status is ConditionStatus.TRUE and found.observed_generation >= generation


def merge(conditions: Sequence[Condition], updates: Iterable[Condition]) -> tuple[Condition, ...]:
    """The conditions with the updates put in: old ones keep their order, additional types follow.

    The transition time of an update is taken only where its status differs from what was there before, so that merging
    the same observation again changes nothing. Of several updates of one type the last counts.
    """
    merged = {c.type: c for c in conditions}
    for update in updates:
        old = merged.get(update.type)
        same = old is not None and old.status is update.status
        merged[update.type] = (
            update.model_copy(update={"last_transition_time": old.last_transition_time}) if old and same else update
        )
    return tuple(merged.values())


def initial(
    conditions: Sequence[Condition], kinds: Iterable[ConditionType], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions with those types added as Unknown that are missing."""
    present = {c.type for c in conditions}
    missing = (
        condition(kind, ConditionStatus.UNKNOWN, reason="NotObserved", generation=generation, now=now)
        for kind in dict.fromkeys(kinds)
        if kind not in present
    )
    return merge(conditions, missing)


def ready(
    conditions: Sequence[Condition], needed: Sequence[ConditionType], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions with Ready computed from those that are needed for it.

    The first needed one that is False decides, else the first that is Unknown, absent or of an older generation; its
    reason and message become those of Ready, so that one line tells what is missing. Ready is never Unknown: what is
    not known to be ready is not.
    """
    blocking: Condition | None = None
    for kind in needed:
        found = find(conditions, kind)
        if found is None or found.observed_generation < generation:
            found = condition(
                kind,
                ConditionStatus.UNKNOWN,
                reason=f"{kind}NotObserved",
                message=f"{kind} has not been looked at yet",
                generation=generation,
                now=now,
            )
        if found.status is ConditionStatus.FALSE:
            blocking = found
            break
        if found.status is ConditionStatus.UNKNOWN and blocking is None:
            blocking = found
    summary = condition(
        ConditionType.READY,
        ConditionStatus.FALSE if blocking else ConditionStatus.TRUE,
        reason=blocking.reason if blocking else "AllConditionsHold",
        message=blocking.message if blocking else "",
        generation=generation,
        now=now,
    )
    return merge(conditions, [summary])
