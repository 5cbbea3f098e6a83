"""Tables, lists and trees of values."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from lathe_optimizers.report import words
from lathe_optimizers.report.markup import Html, h, join

_DEEPEST: Final = 5
"""Values nested deeper than this are shown as JSON."""
_LONGEST: Final = 200
"""Longer lists are cut; the whole is in `stage.json`."""
_LARGEST: Final = 10**15


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, class_: str | None = None) -> Html:
    """A table whose first column names its rows. It scrolls inside its own box where the screen is narrow."""
    body = (h("tr", h("th", row[0], scope="row"), *(h("td", cell) for cell in row[1:])) for row in rows)
    whole = h(
        "table",
        h("caption", h("span", caption)),
        h("thead", h("tr", *(h("th", name, scope="col") for name in columns))),
        h("tbody", *body),
        class_=class_,
    )
    return scrolling(whole, caption)


def scrolling(content: Html, label: str, *, class_: str = "scroll") -> Html:
    """A box that scrolls sideways, reachable by keyboard."""
    return h("div", content, class_=class_, role="region", aria_label=label, tabindex="0")


def pairs(items: Sequence[tuple[str, str]], *, class_: str = "pairs") -> Html:
    """Names and values."""
    return h("dl", *(h("div", h("dt", name), h("dd", value)) for name, value in items), class_=class_)


def tree(value: JsonValue, depth: int = 0) -> Html:
    """A JSON value for reading: objects as names and values, equal objects in a list as a table."""
    if depth > _DEEPEST:
        return h("code", json.dumps(value)[:_LONGEST])
    match value:
        case dict():
            return _object(value, depth)
        case list():
            return _list(value, depth)
        case _:
            return scalar(value)


def scalar(value: JsonValue) -> Html:
    """A single JSON value."""
    match value:
        case None:
            return h("span", "none", class_="quiet")
        case bool():
            return join(("yes" if value else "no",))
        case int():
            return join(
                (f"{value:,}".replace("-", words.MINUS) if abs(value) < _LARGEST else f"{value:#x}"[:_LONGEST],)
            )
        case float():
            return join((words.number(value),))
        case str():
            return h("code", value) if value else h("span", "empty", class_="quiet")
        case _:
            return h("code", json.dumps(value)[:_LONGEST])


def _object(value: Mapping[str, JsonValue], depth: int) -> Html:
    if not value:
        return h("span", "none", class_="quiet")
    return pairs([(words.field_label(name), tree(inner, depth + 1)) for name, inner in value.items()], class_="tree")


def _list(value: list[JsonValue], depth: int) -> Html:
    shown, rest = value[:_LONGEST], len(value) - _LONGEST
    more = [h("p", f"{rest:,} more in stage.json", class_="quiet")] if rest > 0 else []
    if not value:
        return h("span", "none", class_="quiet")
    rows = [item for item in shown if isinstance(item, dict)]
    if len(rows) == len(shown) and rows[0] and all(list(r) == list(rows[0]) for r in rows):
        return join((_rows(rows, depth), *more))
    if any(isinstance(item, dict | list) for item in shown):
        return join((h("ul", *(h("li", tree(item, depth + 1)) for item in shown), class_="tree"), *more))
    return join((join((scalar(item) for item in shown), ", "), *more))


def _rows(rows: Sequence[Mapping[str, JsonValue]], depth: int) -> Html:
    columns = [words.field_label(name) for name in rows[0]]
    body = (h("tr", *(h("td", tree(cell, depth + 1)) for cell in row.values())) for row in rows)
    head = h("thead", h("tr", *(h("th", name, scope="col") for name in columns)))
    return h("div", h("table", head, h("tbody", *body), class_="small"), class_="scroll")
