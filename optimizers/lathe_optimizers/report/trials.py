"""The section of a search: what was tried, drawn and listed."""

import math
from typing import Final

from lathe_api.searchresult import SearchResult, Trial, TrialMeasures, TrialState
from lathe_optimizers.report import words
from lathe_optimizers.report.markup import NOTHING, Html, h, text
from lathe_optimizers.report.scale import Scale, around
from lathe_optimizers.report.tables import pairs, table

_HEIGHT: Final = 300
_LISTED: Final = 200
"""Trials that the table lists; `summary.json` has all."""


def section(search: SearchResult) -> Html:
    """What a search tried and which trial it took."""
    stopped = sum(t.state is TrialState.STOPPED for t in search.trials)
    possible = "" if search.possible is None else f", {search.possible:,} of them possible"
    facts = [
        ("Result", text(words.sentence(search.reason))),
        ("Goals", text(", ".join(search.goals))),
        ("Combinations", text(f"{search.combinations:,}{possible}")),
        ("Trials", text(f"{len(search.trials):,}, of which {stopped:,} were stopped early; {search.ended}")),
        ("Cost", text(words.duration(search.seconds))),
        *((("Not possible", text("; ".join(search.impossible))),) if search.impossible else ()),
    ]
    columns = ["Trial", "Settings", "State", "Quality", "Size", "Speed", "Cost", "Why"]
    shown = sorted(search.trials, key=lambda t: (t.number != _taken(search), not t.best, t.number))[:_LISTED]
    listed = table("Trials of the search", columns, [_row(t, search) for t in shown], class_="overview")
    picture = _front(search)
    drawn = (h("section", h("h3", "Quality and speed"), picture),) if picture else ()
    trials = h("section", h("h3", "Trials"), listed)
    return h("section", h("h2", "Search"), pairs(facts), *drawn, trials, class_="target")


def _row(trial: Trial, search: SearchResult) -> list[Html]:
    name = f"{trial.number}, taken" if trial.number == _taken(search) else str(trial.number)
    state = "Best in something" if trial.best else trial.state.value
    if trial.check is not None:
        state = f"Stopped at {trial.check}"
    worst = _worst(trial)
    measured = [words.NONE] * 3
    if worst is not None:
        measured = [
            words.quality(worst.metric, worst.quality),
            " ".join(words.compared(worst.size_ratio, "smaller", "larger")),
            words.NONE
            if worst.latency_ratio is None
            else " ".join(words.compared(worst.latency_ratio, "faster", "slower")),
        ]
    settings = ", ".join(f"{v.stage}.{v.field} {v.value}" for v in trial.values)
    return [text(c) for c in (name, settings, state, *measured, words.duration(trial.seconds), trial.reason)]


def _front(search: SearchResult) -> Html:
    """Speed against quality of the trials that were measured to the end; the area of a dot is how small it is."""
    seen = [(t, m) for t in search.trials for m in [_worst(t)] if m is not None and m.latency_ratio is not None]
    across = around((m.latency_ratio or math.nan for _, m in seen), log=True)
    metric = next((m.metric for _, m in seen), "")
    cap = 1.0 if words.is_share(metric) else math.inf
    up = around((m.quality for _, m in seen), padding=0.12, cap=cap)
    if across is None or up is None:
        return NOTHING
    dots = [_dot(trial, found, across, up, taken=trial.number == _taken(search)) for trial, found in seen]
    picture = h(
        "svg",
        *(_line(tick, up, metric) for tick in up.ticks()),
        *(_column(tick, across) for tick in across.ticks(5)),
        *dots,
        width="100%",
        height=_HEIGHT,
        role="img",
        aria_label=f"{words.metric_name(metric)} against speed of {len(seen)} trials; the table has the numbers",
    )
    better = "higher" if words.larger_is_better(metric) else "lower"
    return h(
        "figure",
        h("div", f"{words.metric_name(metric)}, {better} is better", class_="axis-y"),
        h("div", picture, class_="plot"),
        h("div", "Speed against the original, faster to the right", class_="axis-x"),
        h(
            "figcaption",
            "Each dot is a trial that was measured to the end; its area grows with how much smaller the file is. "
            "The full one is taken; numbered ones are best in something.",
        ),
        class_="trade-off",
    )


def _dot(trial: Trial, found: TrialMeasures, across: Scale, up: Scale, *, taken: bool) -> Html:
    x, y = _at(across.share(found.latency_ratio or 1.0)), _at(1 - up.share(found.quality))
    radius = min(max(4 * math.sqrt(found.size_ratio), 4), 16)
    title = f"trial {trial.number}: {words.quality(found.metric, found.quality)}"
    named = trial.best or taken
    return h(
        "g",
        h("title", title),
        h("circle", cx=x, cy=y, r=f"{radius:.1f}"),
        h("text", str(trial.number), x=x, y=y, dy=f"{-radius - 5:.0f}", text_anchor="middle", class_="name")
        if named
        else NOTHING,
        class_="dot last" if taken else "dot",
    )


def _line(tick: float, up: Scale, metric: str) -> Html:
    y = _at(1 - up.share(tick))
    label = words.percent(tick, 1) if words.is_share(metric) else words.number(tick)
    return h(
        "g",
        h("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"),
        h("text", label, x="0", y=y, dx="-8", dy="4", text_anchor="end", class_="tick"),
    )


def _column(tick: float, across: Scale) -> Html:
    x = _at(across.share(tick))
    return h(
        "g",
        h("line", x1=x, x2=x, y1="0", y2="100%", class_="grid"),
        h("text", words.times(tick), x=x, y="100%", dy="18", text_anchor="middle", class_="tick"),
    )


def _worst(trial: Trial) -> TrialMeasures | None:
    """Of several targets the slowest stands for the trial."""
    return min(trial.measures, key=lambda m: m.latency_ratio or 0.0, default=None)


def _taken(search: SearchResult) -> int | None:
    return search.chosen or search.nearest


def _at(share: float) -> str:
    return f"{share * 100:.2f}%"
