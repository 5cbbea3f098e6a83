"""Chooses who is told of a run's events: a person at a terminal, a log, or a machine."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from lathe_api.events import Event


@contextlib.contextmanager
def chosen(*, as_json: bool, plain: bool) -> Iterator[Callable[[Event], None]]:
    """The observer for this output; it has said everything when the block ends."""
    if as_json:
        yield _json_line
    elif plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        from lathe_cli.plain import Lines

        yield Lines(sys.stdout.write, sys.stdout.flush)
    else:
        from lathe_cli.live import LiveTable

        with LiveTable() as table:
            yield table


def _json_line(event: Event) -> None:
    print(event.model_dump_json(by_alias=True, exclude_none=True), file=sys.stderr, flush=True)
