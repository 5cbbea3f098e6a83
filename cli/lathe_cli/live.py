"""A table that follows the run, for a terminal."""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

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
)
from lathe_api.summary import GateResult, StageResult, Verdict
from lathe_cli import texts

COLORS = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.INCONCLUSIVE: "yellow"}
WIDE = 100
"""Columns from which the table shows everything."""


@dataclass
class Row:
    """One stage."""

    name: str
    type: str
    state: str = ""
    progress: StageProgress | None = None
    result: StageResult | None = None


class LiveTable:
    """Draws events as a table that changes in place. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.title = ""
        self.rows: dict[str, Row] = {}
        self.gates: list[GateResult] = []
        self.notices: list[str] = []
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

    def render(self) -> RenderableType:
        """The current picture."""
        wide = self.console.width >= WIDE
        table = Table(title=self.title or None, box=None, pad_edge=False, title_justify="left", expand=False)
        for heading in ("stage", *(["type"] if wide else []), "state", "quality", "size", "latency"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        if wide:
            table.add_column("int8", no_wrap=True)
        for row in self.rows.values():
            cells = self._cells(row)
            table.add_row(row.name, *([row.type] if wide else []), *cells[:4], *(cells[4:] if wide else []))
        lines = [Text(texts.gate(g), style=COLORS[g.verdict]) for g in self.gates]
        return Group(table, *(Text(n, style="yellow") for n in self.notices), *lines)

    def _cells(self, row: Row) -> tuple[RenderableType, ...]:
        if row.result is not None:
            metrics = row.result.metrics
            kernels = metrics.kernels
            return (
                Text("cached", style="cyan") if row.result.cached else texts.seconds(row.result.seconds),
                texts.estimate(metrics.quality),
                texts.size(metrics.size_bytes),
                texts.ratio(metrics.latency),
                f"{kernels.int8}/{kernels.int8 + kernels.float32}",
            )
        if row.progress is None:
            return (Text(row.state, style="dim"), "", "", "", "")
        event = row.progress
        left = texts.seconds(event.eta_seconds) if event.eta_seconds is not None else ""
        epoch = f"{event.epoch}/{event.epochs}" if event.epoch is not None else ""
        return (
            ProgressBar(total=100, completed=event.percent, width=18),
            f"{event.step} {epoch}".strip(),
            f"loss {event.loss:.3g}" if event.loss is not None else "",
            f"{left} left" if left else "",
            "",
        )
