"""Waiting for a state of the world, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE = 0.2


def eventually(check: Callable[[], T], *, within: float = 30.0) -> T:
    """The first result of `check` that is true; its last error or result is in the message when time is up.

    `check` is called again while it returns something false or fails an assertion.
    """
    end = time.monotonic() + within
    while True:
        try:
            found = check()
            last: object = found
        except AssertionError as error:
            found, last = None, error
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within} s: {last}")
        time.sleep(PAUSE)
