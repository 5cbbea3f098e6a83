"""A table that follows the run, for a terminal."""

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
from lathe_api.summary import GateResult, StageResult, Verdict
from lathe_cli import texts

COLORS: Final = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.INCONCLUSIVE: "yellow"}
WIDE: Final = 100
"""Columns from which the table shows everything."""
MIDDLE: Final = 76
"""Columns from which it shows intervals and speed; the final summary shows them always."""
BAR: Final = 12
TRIALS: Final = 12
"""Newest trials of a search that are shown."""


@dataclass
class Row:
    """One stage."""

    name: str
    type: str
    state: str = ""
    progress: StageProgress | None = None
    result: StageResult | None = None

    @property
    def running(self) -> StageProgress | None:
        """The last news of a stage that is being done."""
        return self.progress if self.result is None else None


class LiveTable:
    """Draws events as a table that changes in place. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.title = ""
        self.rows: dict[str, Row] = {}
        self.gates: list[GateResult] = []
        self.notices: list[str] = []
        self.trials: list[str] = []
        self.trying = ""
        self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=8)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case RunPlanned():
                self.title = f"{event.name}  {event.revision}"
                self.rows = {s.id: Row(s.id, s.type) for s in event.stages}
            case StageStarted():
                self.rows[event.id].state = "resumed" if event.resumed else "started"
            case StageWaiting():
                self.rows[event.id].state = "waiting for another run"
            case StageProgress():
                self.rows[event.id].progress = event
            case StageFinished():
                self.rows[event.id].result = event.result
            case GateJudged():
                self.gates.append(event.result)
            case Notice():
                self.notices.append(event.message)
            case TrialStarted() | TrialProgress() | TrialFinished():
                self._try(event)

    def _try(self, event: TrialStarted | TrialProgress | TrialFinished) -> None:
        match event:
            case TrialStarted():
                self.trying = texts.trial_started(event)
            case TrialProgress():
                self.trying = f"trial {event.number}, {texts.progress(event.stage)}"
            case TrialFinished():
                self.trials.append(texts.trial(event.trial))
                self.trying = ""

    def render(self) -> RenderableType:
        """The current picture: the stages, what the running ones do, notices and verdicts."""
        # A copy: the drawing thread must not meet a table that is being replaced.
        rows = list(self.rows.values())
        columns = self._columns()
        metric = next((row.result.metrics.metric.value for row in rows if row.result is not None), "quality")
        table = Table(title=_text(self.title, "bold"), title_justify="left", box=None, pad_edge=False)
        for name in columns:
            # Names and states may take a second line, numbers may not.
            folds = name in {"stage", "state"}
            table.add_column(metric if name == "quality" else name, no_wrap=not folds, overflow="fold")
        for row in rows:
            cells = self._cells(row)
            table.add_row(*(cells.get(name, "") for name in columns))
        running = [_text(texts.progress(row.running), "dim") for row in rows if row.running is not None]
        notices = [_text(f"note: {notice}", "yellow") for notice in self.notices]
        verdicts = [_text(texts.verdict(gate), COLORS[gate.verdict]) for gate in self.gates]
        searched = [_text(line) for line in self.trials[-TRIALS:]]
        if len(self.trials) > TRIALS:
            searched.insert(0, _text(f"… {len(self.trials) - TRIALS} trials before", "dim"))
        if self.trying:
            searched.append(_text(self.trying, "dim"))
        return Group(*searched, *((table,) if rows else ()), *running, *notices, *verdicts)

    def _columns(self) -> tuple[str, ...]:
        width = self.console.width
        hidden = set() if width >= WIDE else {"type", "int8"} if width >= MIDDLE else {"type", "int8", "speed"}
        return tuple(
            name for name in ("stage", "type", "state", "quality", "size", "speed", "int8") if name not in hidden
        )

    def _cells(self, row: Row) -> dict[str, RenderableType]:
        told: dict[str, RenderableType] = {"stage": _text(row.name), "type": _text(row.type), "state": _state(row)}
        if row.result is None:
            return told
        metrics = row.result.metrics
        short = f"{metrics.quality.value:.4f}"
        return told | {
            "quality": texts.estimate(metrics.quality) if self.console.width >= MIDDLE else short,
            "size": texts.size(metrics.size_bytes),
            "speed": texts.ratio(metrics.latency),
            "int8": f"{metrics.kernels.int8}/{metrics.kernels.int8 + metrics.kernels.float32}",
        }


def _state(row: Row) -> RenderableType:
    if row.result is not None:
        return _text("cached", "cyan") if row.result.cached else _text(texts.seconds(row.result.seconds))
    if row.progress is not None:
        bar = Table.grid(padding=(0, 1, 0, 0))
        bar.add_row(
            ProgressBar(total=100, completed=row.progress.percent, width=BAR, complete_style="cyan"),
            f"{row.progress.percent:.0f} %",
        )
        return bar
    return _text(row.state, "dim")


def _text(content: str, style: str = "") -> Text:
    return Text(texts.printable(content), style=style)
