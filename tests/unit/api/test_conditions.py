"""Conditions are values: the same observation twice changes nothing, and time moves only with the status."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe_api.conditions import condition, find, holds, initial, merge, ready, timestamp
from lathe_api.status import Condition, ConditionStatus, ConditionType

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
OPTIMIZED, PUBLISHED, READY = ConditionType.OPTIMIZED, ConditionType.PUBLISHED, ConditionType.READY
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def observed(kind=OPTIMIZED, status=TRUE, reason="Done", message="", generation=1, now=NOON) -> Condition:
    return condition(kind, status, reason=reason, message=message, generation=generation, now=now)


def test_times_are_written_in_utc():
    assert timestamp(NOON) == "2026-01-31T12:00:00Z"
    assert timestamp(NOON.astimezone(timezone(timedelta(hours=5)))) == "2026-01-31T12:00:00Z"


def test_a_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        timestamp(NOON.replace(tzinfo=None))


def test_the_transition_time_stays_while_the_status_does():
    [merged] = merge([observed()], [observed(reason="DoneAgain", message="more", generation=2, now=LATER)])
    assert merged.last_transition_time == timestamp(NOON)
    assert (merged.reason, merged.message, merged.observed_generation) == ("DoneAgain", "more", 2)


def test_the_transition_time_moves_with_the_status():
    [merged] = merge([observed()], [observed(status=FALSE, now=LATER)])
    assert merged.last_transition_time == timestamp(LATER)


def test_order_is_kept_and_what_is_added_follows():
    merged = merge([observed(PUBLISHED), observed(OPTIMIZED)], [observed(READY), observed(OPTIMIZED, FALSE)])
    assert [c.type for c in merged] == [PUBLISHED, OPTIMIZED, READY]
    assert find(merged, OPTIMIZED) == observed(OPTIMIZED, FALSE)
    assert find(merged, ConditionType.LEARNING) is None


@given(st.lists(st.tuples(st.sampled_from(list(ConditionType)), st.sampled_from(list(ConditionStatus))), max_size=8))
def test_merging_the_same_again_changes_nothing(pairs):
    updates = [observed(kind, status) for kind, status in pairs]
    once = merge([], updates)
    later = [u.model_copy(update={"last_transition_time": timestamp(LATER)}) for u in once]
    assert merge(once, later) == once
    assert len({c.type for c in once}) == len(once)


def test_everything_is_unknown_before_it_is_observed():
    known = observed(PUBLISHED)
    conditions = initial([known], [OPTIMIZED, PUBLISHED, READY], generation=4, now=LATER)
    assert [(c.type, c.status) for c in conditions] == [(PUBLISHED, TRUE), (OPTIMIZED, UNKNOWN), (READY, UNKNOWN)]
    assert {c.observed_generation for c in conditions[1:]} == {4}
    assert initial(conditions, [OPTIMIZED, READY], generation=5, now=LATER) == conditions


@pytest.mark.parametrize(
    ("found", "expected"),
    [((TRUE, 2), True), ((TRUE, 1), False), ((FALSE, 2), False), ((UNKNOWN, 2), False), (None, False)],
    ids=["true", "true of an older spec", "false", "unknown", "absent"],
)
def test_a_condition_holds_when_it_is_true_of_this_generation(found, expected):
    conditions = [observed(status=found[0], generation=found[1])] if found else []
    assert holds(conditions, OPTIMIZED, generation=2) is expected


READY_TABLE = {
    "all true": ([observed(), observed(PUBLISHED)], TRUE, "AllConditionsHold"),
    "one false": ([observed(), observed(PUBLISHED, FALSE, "StoreFull")], FALSE, "StoreFull"),
    "false outweighs unknown": (
        [observed(status=UNKNOWN, reason="Running"), observed(PUBLISHED, FALSE, "StoreFull")],
        FALSE,
        "StoreFull",
    ),
    "one unknown": ([observed(status=UNKNOWN, reason="Running"), observed(PUBLISHED)], FALSE, "Running"),
    "one absent": ([observed()], FALSE, "PublishedNotObserved"),
    "one of an older spec": ([observed(generation=0), observed(PUBLISHED)], FALSE, "OptimizedNotObserved"),
}


@pytest.mark.parametrize(("conditions", "status", "reason"), READY_TABLE.values(), ids=READY_TABLE)
def test_ready_follows_from_what_it_needs(conditions, status, reason):
    found = find(ready(conditions, [OPTIMIZED, PUBLISHED], generation=1, now=LATER), READY)
    assert found is not None
    assert (found.status, found.reason, found.observed_generation) == (status, reason, 1)
    assert found.last_transition_time == timestamp(LATER)
