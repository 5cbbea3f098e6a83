"""Why a stage was looked up or done, from its record and those of earlier stages. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from lathe_api.manifest import StageRecord

ABSENT: Final = "absent"


@dataclass(frozen=True)
class Change:
    """One part of a key that differs."""

    part: str
    """Path within `keyFields`, such as `seed` or `files.spec.data.train`."""
    was: str
    now: str


@dataclass(frozen=True)
class Nearest:
    """The earlier record that differs in the fewest parts."""

    record: StageRecord
    changes: tuple[Change, ...]


def changes(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> tuple[Change, ...]:
    """What differs between the parts of two keys, by path."""
    was, now = dict(_leaves("", dict(before))), dict(_leaves("", dict(after)))
    parts = sorted(was.keys() | now.keys())
    return tuple(
        Change(p, was.get(p, ABSENT), now.get(p, ABSENT)) for p in parts if was.get(p, ABSENT) != now.get(p, ABSENT)
    )


def nearest(record: StageRecord, others: Iterable[StageRecord]) -> Nearest | None:
    """The record of a stage of the same type that was finished before this one began and differs the least.

    Among equals the one of the same name, then the latest. None where there is none, or where the record is of a
    version that did not write down the parts of its key.
    """
    if not record.key_fields or record.finished_at is None:
        return None
    began = record.finished_at - record.wall_seconds
    found = [
        Nearest(other, changes(other.key_fields, record.key_fields))
        for other in others
        if other.type == record.type
        and other.key != record.key
        and other.key_fields
        and other.finished_at is not None
        and other.finished_at <= began
    ]

    def distance(candidate: Nearest) -> tuple[int, bool, float]:
        other = candidate.record
        return len(candidate.changes), other.name != record.name, -(other.finished_at or 0.0)

    return min(found, key=distance, default=None)


def _leaves(path: str, value: JsonValue) -> Iterator[tuple[str, str]]:
    items: Sequence[tuple[str, JsonValue]]
    match value:
        case dict() if value:
            items = list(value.items())
        case list() if value:
            items = [(str(i), item) for i, item in enumerate(value)]
        case _:
            yield path, str(value)
            return
    for name, item in items:
        yield from _leaves(f"{path}.{name}" if path else name, item)
