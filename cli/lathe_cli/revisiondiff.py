"""`lathe diff REVISION REVISION`: what was asked for differently, and what came of it."""

import argparse
import json
from collections.abc import Iterator
from typing import Any, Final

from lathe_cli import texts
from lathe_cli.cluster import Cluster, Json, chosen

RECORD: Final = frozenset({"hash", "generation", "cause", "modelRef"})
"""Fields of a revision's spec that tell of the revision, not of what was asked for."""
ABSENT: Final = "nothing"
RESULTS: Final = (
    ("state", "state"),
    ("quality", "quality"),
    ("qualityDrop", "drop"),
    ("sizeRatio", "size"),
    ("latencyRatio", "speed"),
)
_TIMES: Final = frozenset({"sizeRatio", "latencyRatio"})


def diff(options: argparse.Namespace) -> int:
    """Print the differences of two revisions; exit status.

    Raises:
        ClusterError: a revision does not exist, or the cluster cannot be asked.
    """
    revisions = Cluster(options.namespace, options.context).revisions()
    first, second = (chosen(revisions, wanted) for wanted in (options.first, options.second))
    for line in compared(first, second):
        print(texts.printable(line))
    return 0


def compared(first: Json, second: Json) -> Iterator[str]:
    """Lines: the changes of spec, then quality, size and speed of every target of both."""
    names = [str(r["metadata"]["name"]) for r in (first, second)]
    yield f"{names[0]} -> {names[1]}"
    yield ""
    found = list(changes(_asked(first), _asked(second)))
    yield from (f"  {line}" for line in found or ["the same spec"])
    yield ""
    yield from _table([["", "target", *(title for _, title in RESULTS)], *_results(first), *_results(second)])


def changes(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """`path: old -> new` for every field that differs. Entries of lists of named objects are matched by name."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            yield from changes(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif _named(before) and _named(after):
        old, new = ({entry["name"]: entry for entry in entries} for entries in (before, after))
        for name in [*old, *(n for n in new if n not in old)]:
            yield from changes(old.get(name), new.get(name), f"{path}[{name}]")
        if [n for n in old if n in new] != [n for n in new if n in old]:
            yield f"{path}: order {', '.join(old)} -> {', '.join(new)}"
    else:
        yield f"{path}: {_text(before)} -> {_text(after)}"


def _asked(revision: Json) -> Json:
    return {key: value for key, value in revision["spec"].items() if key not in RECORD}


def _results(revision: Json) -> Iterator[list[str]]:
    name = str(revision["metadata"]["name"])
    for target in revision.get("status", {}).get("targets", []):
        yield [name, target["name"], *(_result(target.get(key), key) for key, _ in RESULTS)]
        name = ""
    if name:
        yield [name, "no result yet", *("" for _ in RESULTS)]


def _result(value: str | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{float(value):.2f}x" if key in _TIMES else value


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _named(value: object) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(entry, dict) and "name" in entry for entry in value)
    )


def _text(value: object) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
