"""How a validator says what is wrong: where, what was found, and what to write instead.

A rule that spans several fields collects all that it finds and names the field of each, so that the reader of a
document is sent to a line and not to a block.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

RULE: Final = "lathe_rule"
"""Type of the pydantic errors that carry `found` and `remedy` in their context."""

Loc = tuple[str | int, ...]
"""Names (as on the wire) and list positions that lead from a model to one of its fields."""


class Finding(NamedTuple):
    """One broken rule."""

    loc: Loc
    """The field that should change, seen from the model that is validated."""
    found: str
    """What is there."""
    remedy: str
    """What to write instead, as an imperative."""


def refusal(found: str, remedy: str) -> PydanticCustomError:
    """An error for a validator of a single field."""
    return PydanticCustomError(RULE, "found {found}; {remedy}", {"found": found, "remedy": remedy})


def refuse(title: str, findings: Iterable[Finding]) -> None:
    """Raise one `pydantic.ValidationError` that holds all findings; do nothing where there are none."""
    errors = [InitErrorDetails(type=refusal(f.found, f.remedy), loc=f.loc, input=None) for f in findings]
    if errors:
        raise ValidationError.from_exception_data(title, errors)


def duplicates(names: Iterable[str], *at: str | int, field: str = "name") -> list[Finding]:
    """A finding for each name that was used before; `at` leads to the list."""
    seen: set[str] = set()
    found = []
    for index, name in enumerate(names):
        if name in seen:
            found.append(Finding((*at, index, field), f"{name} a second time", "give every entry a name of its own"))
        seen.add(name)
    return found


def exactly_one(at: Loc, given: Iterable[str], allowed: Iterable[str]) -> list[Finding]:
    """A finding unless exactly one of the allowed fields is given and no other."""
    names, choices = list(given), list(allowed)
    if len(names) == 1 and names[0] in choices:
        return []
    found = " and ".join(f"`{n}:`" for n in names) or "none of them"
    wanted = f"`{choices[0]}:`" if len(choices) == 1 else "exactly one of " + ", ".join(f"`{c}:`" for c in choices)
    return [Finding(at, found, f"write {wanted}")]
