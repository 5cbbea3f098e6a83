"""One line for each change: for logs and pipes."""

import time
from collections.abc import Callable
from typing import Final

from lathe_api.events import (
    Event,
    GateJudged,
    Notice,
    RunPlanned,
    StageFinished,
    StageProgress,
    StageStarted,
    StageWaiting,
    TrialFinished,
    TrialProgress,
    TrialStarted,
)
from lathe_cli import texts

PERCENT: Final = 25.0
SECONDS: Final = 10.0
"""Progress is told when it grew by PERCENT, or after SECONDS."""


class Lines:
    """Writes events as lines; progress only now and then.

    Args:
        write: takes text.
        flush: called after each line.
        clock: seconds, for tests.
    """

    def __init__(
        self, write: Callable[[str], object], flush: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._flush = flush
        self._clock = clock
        self._told: dict[str, tuple[float, float]] = {}

    def __call__(self, event: Event) -> None:
        """Tell of one event, if it is worth a line."""
        line = self._line(event)
        if line is not None:
            self._write(texts.printable(line) + "\n")
            self._flush()

    def _line(self, event: Event) -> str | None:
        match event:
            case RunPlanned():
                stages = ", ".join(s.id for s in event.stages)
                return f"{event.name}, revision {event.revision}: {stages or 'a search comes first'}"
            case StageStarted():
                self._told[event.id] = (0.0, self._clock())
                return f"{event.id}: started" + (", going on from its last epoch" if event.resumed else "")
            case StageWaiting():
                return f"{event.id}: another run is doing it; waiting for its result"
            case StageProgress():
                return self._progress(event)
            case StageFinished() | GateJudged() | Notice():
                return _ending(event)
            case TrialStarted() | TrialProgress() | TrialFinished():
                return self._trial(event)

    def _trial(self, event: TrialStarted | TrialProgress | TrialFinished) -> str | None:
        match event:
            case TrialStarted():
                self._told.clear()
                return texts.trial_started(event)
            case TrialProgress():
                return self._progress(event.stage, of=event.number)
            case TrialFinished():
                return texts.trial(event.trial)

    def _progress(self, event: StageProgress, of: int | None = None) -> str | None:
        if of is not None and event.id not in self._told:
            # Stages of trials come and go without an event of their own.
            self._told[event.id] = (0.0, self._clock())
        percent, when = self._told.get(event.id, (0.0, 0.0))
        if event.percent - percent < PERCENT and self._clock() - when < SECONDS:
            return None
        self._told[event.id] = (event.percent, self._clock())
        return texts.progress(event) if of is None else f"trial {of}, {texts.progress(event)}"


def _ending(event: StageFinished | GateJudged | Notice) -> str:
    match event:
        case StageFinished():
            return texts.stage(event.result)
        case GateJudged():
            return texts.verdict(event.result)
        case Notice():
            return f"note: {event.message}"
