"""Builds HTML so that text cannot become markup: every string is escaped unless it is `Html` already."""

import html
import re
from collections.abc import Iterable
from typing import Final

_VOID: Final = frozenset({"br", "col", "hr", "meta"})
_UNSAFE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Finished markup."""

    __slots__ = ()


def text(value: str) -> Html:
    """Escaped text.

    Characters that HTML does not allow, that UTF-8 cannot hold (lone surrogates) or that reverse the reading order of
    what surrounds them become U+FFFD.
    """
    return value if isinstance(value, Html) else Html(html.escape(_UNSAFE.sub("\ufffd", value), quote=True))


def join(parts: Iterable[str], separator: str = "") -> Html:
    """Markup of several parts, strings among them escaped."""
    return Html(text(separator).join(text(part) for part in parts))


def h(tag: str, *children: str, **attributes: str | float | None) -> Html:
    """One element.

    Args:
        tag: name of the element.
        children: content; strings are escaped.
        attributes: without those that are None; `class_` stands for `class` and `aria_label` for `aria-label`.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{join(children)}</{tag}>")


NOTHING: Final = Html("")
