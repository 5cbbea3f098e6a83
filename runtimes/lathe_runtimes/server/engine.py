"""Work-conserving scheduling of one model's requests.

No request waits for a timer (unless the configuration asks for a queue delay): while a worker is busy the queue grows
by itself, and a worker that becomes free takes what is there, up to the batch size past which the measured cost per
sample no longer falls. Runs shorter than a hop to a thread happen on the event loop, once per loop tick. A request
that is alone runs on a session of all cores; under load every core has a session of its own.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

import numpy as np

from lathe_runtimes.datatypes import Array

log = logging.getLogger(__name__)

WORTH: Final = 1.15
"""A larger batch must bring the cost per sample at least this far down, or it is not waited for."""
INLINE_SECONDS: Final = 120e-6
"""Below this a run costs less than handing it to a thread and back."""
PROBE_SECONDS: Final = 0.25

Feeds = Mapping[str, Array]
Result = list[Array] | Exception


class Session(Protocol):
    """What a backend gives: one loaded model that may run in several threads at once."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Outputs of the model, in the order of its configuration."""
        ...


@dataclass(frozen=True)
class Sessions:
    """The loaded copies of a model: `wide` uses all cores for one run, `narrow` one core."""

    narrow: Session
    wide: Session | None
    workers: int


@dataclass(frozen=True)
class Costs:
    """What was measured at load."""

    cap: int
    """Samples taken together at the most; 0 where requests are never joined."""
    inline_rows: int
    """Requests up to this many samples run on the event loop; 0 for none."""


@dataclass(slots=True, eq=False)
class Job:
    """One request in the queue."""

    feeds: Feeds
    rows: int
    done: Callable[[Result], None]
    since: float = 0.0
    """Seconds of the monotonic clock: uvloop rounds its own to milliseconds."""


@dataclass(slots=True)
class Counters:
    """Running totals of one model; times in nanoseconds."""

    success: int = 0
    fail: int = 0
    cancelled: int = 0
    """Requests whose client left before their run began; they are no failures of the model."""
    samples: int = 0
    executions: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    last_ms: int = 0
    batches: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By batch size: executions and their time."""


def measure_costs(
    session: Session, sample: Callable[[int], Feeds | None], *, batching: bool, largest: int, clock: Callable[[], float]
) -> Costs:
    """Cost model: run batches of 1, 2, 4, … `largest` and see where joining stops paying.

    Args:
        session: what to measure.
        sample: inputs of the given number of samples; None where none can be made up, which switches inline runs off.
        batching: whether requests may be joined.
        largest: largest batch.
        clock: seconds.
    """
    costs: dict[int, float] = {}
    rows = 1
    while rows <= largest:
        feeds = sample(rows)
        if feeds is None:
            return Costs(cap=largest if batching else 0, inline_rows=0)
        costs[rows] = _best(session, feeds, clock)
        if costs[rows] > PROBE_SECONDS:  # so long a run has no overhead left that joining could save
            break
        rows *= 2
    best = min(cost / rows for rows, cost in costs.items())
    cap = min(rows for rows, cost in costs.items() if cost / rows <= best * WORTH)
    inline = max((rows for rows, cost in costs.items() if cost < INLINE_SECONDS), default=0)
    return Costs(cap=cap if batching else 0, inline_rows=inline)


def _best(session: Session, feeds: Feeds, clock: Callable[[], float], tries: int = 15) -> float:
    session.run(feeds)  # the first run allocates
    best, end = float("inf"), clock() + PROBE_SECONDS
    for _ in range(tries):
        begin = clock()
        session.run(feeds)
        now = clock()
        best = min(best, now - begin)
        if now > end:
            break
    return best


class Engine:
    """Queue and workers of one model. All methods are called on the event loop.

    Args:
        name: for messages.
        sessions: loaded copies.
        costs: from `measure_costs`.
        delay: seconds that a request may wait for others while the batch is not full.
        loop: the event loop, where this is not called on it.
    """

    def __init__(
        self,
        name: str,
        sessions: Sessions,
        costs: Costs,
        *,
        delay: float = 0.0,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.counters = Counters()
        self.pending = 0
        """Requests that are queued or run."""
        self.used = monotonic()
        """When the last request came, in seconds of the monotonic clock."""
        self._closing = False
        self._sessions = sessions
        self._costs = costs
        self._delay = delay
        self._loop = loop or asyncio.get_running_loop()
        self._small: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._waiting_rows = 0
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle = list(range(sessions.workers))[::-1]  # worker 0 is taken first: its core's cache is warm
        self._jobs: list[queue.SimpleQueue[tuple[list[Job], list[int], Session] | None]] = [
            queue.SimpleQueue() for _ in range(sessions.workers)
        ]
        for number in range(sessions.workers):
            thread = threading.Thread(target=self._work, args=(number,), name=f"{name}-{number}", daemon=True)
            thread.start()

    def submit(self, feeds: Feeds, rows: int, done: Callable[[Result], None]) -> Job:
        """Queue one valid request; `done` is called on the event loop with the outputs or the failure."""
        job = Job(feeds, rows, done, monotonic())
        self.pending += 1
        self.used = job.since
        if rows <= self._costs.inline_rows and not self._delay:
            self._small.append(job)
            if not self._flush_due:
                self._flush_due = True
                self._loop.call_soon(self._flush)
            return job
        self._waiting.append(job)
        self._waiting_rows += rows
        if self._idle:
            self._dispatch()
        return job

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._small) + len(self._waiting)

    def cancel(self, job: Job) -> bool:
        """Forget a request that nobody waits for any more; False when it runs already or is done."""
        for waiting in (self._small, self._waiting):
            if job in waiting:
                waiting.remove(job)
                if waiting is self._waiting:
                    self._waiting_rows -= job.rows
                self.counters.cancelled += 1
                self._settle(1)
                return True
        return False

    def close(self) -> None:
        """End the worker threads and let go of the sessions, once all that is queued is answered."""
        self._closing = True
        self._settle(0)

    def _settle(self, jobs: int) -> None:
        self.pending -= jobs
        if self._closing and not self.pending:
            for waiting in self._jobs:
                waiting.put(None)
            # Whoever still knows this engine must not keep the weights in memory.
            self._sessions = Sessions(_Closed(), None, 0)

    def _take(self, source: deque[Job], cap: int) -> list[Job]:
        """The oldest request, and those behind it that fit into the same batch and have the same shapes."""
        first = source.popleft()
        items, rows = [first], first.rows
        while source and rows + source[0].rows <= cap and _alike(first.feeds, source[0].feeds):
            items.append(source.popleft())
            rows += items[-1].rows
        return items

    def _flush(self) -> None:
        self._flush_due = False
        cap = min(self._costs.cap, self._costs.inline_rows)
        while self._small:
            items = self._take(self._small, cap)
            begin = monotonic()
            results = _run(items, self._sessions.narrow)
            self._deliver(items, results, begin, monotonic())

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            if self._delay and self._waiting_rows < self._costs.cap:
                now, due = monotonic(), self._waiting[0].since + self._delay
                if now < due:
                    if self._timer is None:
                        self._timer = self._loop.call_later(due - now, self._due)
                    return
            items = self._take(self._waiting, self._costs.cap)
            self._waiting_rows -= sum(item.rows for item in items)
            wide = self._sessions.wide
            if wide is not None and not self._waiting and len(self._idle) == self._sessions.workers:
                held, self._idle = self._idle[::-1], []
                self._jobs[held[0]].put((items, held, wide))
            else:
                number = self._idle.pop()
                self._jobs[number].put((items, [number], self._sessions.narrow))

    def _due(self) -> None:
        self._timer = None
        self._dispatch()

    def _work(self, number: int) -> None:
        get = self._jobs[number].get
        while (work := get()) is not None:
            items, held, session = work
            begin = monotonic()
            results = _run(items, session)
            try:
                self._loop.call_soon_threadsafe(self._finished, items, results, held, begin)
            except RuntimeError:  # the loop is closed: the server has stopped
                return

    def _finished(self, items: list[Job], results: list[Result], held: list[int], begin: float) -> None:
        end = monotonic()
        self._idle = sorted([*self._idle, *held], reverse=True)
        if self._waiting:
            self._dispatch()
        self._deliver(items, results, begin, end)

    def _deliver(self, items: list[Job], results: list[Result], begin: float, end: float) -> None:
        counters = self.counters
        spent = int((end - begin) * 1e9)
        rows = 0
        for job, result in zip(items, results, strict=True):
            rows += job.rows
            counters.queue_ns += int((begin - job.since) * 1e9)
            if isinstance(result, Exception):
                counters.fail += 1
            else:
                counters.success += 1
                counters.samples += job.rows
            try:
                job.done(result)
            except Exception:  # the answer of one client must not keep the others from theirs
                log.exception("an answer could not be delivered")
        counters.executions += 1
        counters.infer_ns += spent
        counters.last_ms = int(time.time() * 1000)
        count, total = counters.batches.get(rows, (0, 0))
        counters.batches[rows] = (count + 1, total + spent)
        self._settle(len(items))


class _Closed:
    def run(self, feeds: Feeds) -> list[Array]:
        raise RuntimeError(f"the model is unloaded; inputs: {list(feeds)}")


def _alike(first: Feeds, other: Feeds) -> bool:
    return all(array.shape[1:] == other[name].shape[1:] for name, array in first.items())


def _run(items: list[Job], session: Session) -> list[Result]:
    """One result per item. A batch that fails is run again one by one, so that only the cause of it fails."""
    if len(items) == 1:
        return [_run_one(items[0], session)]
    try:
        outputs = session.run({name: np.concatenate([item.feeds[name] for item in items]) for name in items[0].feeds})
        rows = sum(item.rows for item in items)
        if any(output.shape[:1] != (rows,) for output in outputs):
            return [_run_one(item, session) for item in items]
    except Exception:  # noqa: BLE001 the exceptions of backends share no base class
        return [_run_one(item, session) for item in items]
    results: list[Result] = []
    at = 0
    for item in items:
        results.append([output[at : at + item.rows] for output in outputs])
        at += item.rows
    return results


def _run_one(item: Job, session: Session) -> Result:
    try:
        return session.run(item.feeds)
    except Exception as error:  # noqa: BLE001 the exceptions of backends share no base class
        return error
