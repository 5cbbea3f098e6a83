"""Keys that wait to be looked at: each at most once, after failures ever later, and never by two at the same time."""

import asyncio
import heapq
import random
import time
from collections.abc import Callable
from itertools import count
from typing import Final, Generic, TypeVar

K = TypeVar("K")

FIRST_DELAY: Final = 0.5
"""Seconds before the second try."""
LONGEST_DELAY: Final = 60.0


class WorkQueue(Generic[K]):
    """A queue of keys.

    Args:
        clock: seconds, monotonic.
        jitter: factor for delays after failures, so that many keys do not come back at the same moment.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.5),  # noqa: S311
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = count()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: K, after: float = 0.0) -> None:
        """Look at the key in so many seconds; an earlier date that it already has stays."""
        due = self._clock() + after
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    def failed(self, key: K, at_least: float | None = None) -> float:
        """Look at the key again, later after every failure in a row.

        Returns:
            The delay in seconds.
        """
        tries = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (tries - 1)) * self._jitter()
        delay = max(delay, at_least or 0.0)
        self.add(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """Forget its failures."""
        self._failures.pop(key, None)

    def ready(self) -> K | None:
        """The key that has been due longest and that nobody works on; None where there is none."""
        busy: list[tuple[float, int, K]] = []
        found: K | None = None
        while self._heap and self._heap[0][0] <= self._clock():
            entry = heapq.heappop(self._heap)
            due, _, key = entry
            if self._due.get(key) != due:
                continue
            if key in self._working:
                busy.append(entry)
                continue
            del self._due[key]
            self._working.add(key)
            found = key
            break
        for entry in busy:
            heapq.heappush(self._heap, entry)
        return found

    async def take(self) -> K:
        """Wait for a key; `release` it afterwards."""
        while True:
            self._changed.clear()
            key = self.ready()
            if key is not None:
                return key
            waits = [due for due, _, key in self._heap if key not in self._working]
            timeout = max(0.0, min(waits) - self._clock()) if waits else None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue

    def release(self, key: K) -> None:
        """Somebody else may work on the key again."""
        self._working.discard(key)
        self._changed.set()
