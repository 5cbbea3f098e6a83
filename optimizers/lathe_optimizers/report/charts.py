"""Pictures as inline SVG. Positions are percentages and text is in pixels, so one picture fits any screen."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lathe_api.manifest import LatencyRatio
from lathe_api.summary import GateResult, StageResult
from lathe_optimizers.report import words
from lathe_optimizers.report.markup import NOTHING, Html, h, join
from lathe_optimizers.report.scale import Scale, around

_BOUND: Final = re.compile(r"(<=|>=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)")
_PLOT_HEIGHT: Final = 300
_LETTER: Final = 0.029
"""Width of a letter as a share of the plot on a phone: what does not collide there collides nowhere."""
_TICK_ROOM: Final = 0.2
"""Distance that two numbers along an axis need, as a share of it on a phone."""


@dataclass(frozen=True)
class Bound:
    """The bound of a gate."""

    limit: float
    at_least: bool


def bound_of(gate: GateResult) -> Bound | None:
    """Reads the bound of a gate back from its words, such as `drop <= 0.02 absolute`."""
    match = _BOUND.search(gate.bound)
    return Bound(float(match[2]), match[1] == ">=") if match else None


def gate_interval(gate: GateResult, latency: LatencyRatio | None) -> Html:
    """A measured interval against its bound; nothing where there is no finite value or no bound to draw.

    Args:
        gate: the judged gate.
        latency: of the stage, where the gate judges latency: its noise floor is drawn around the interval.
    """
    bound = bound_of(gate)
    if bound is None or gate.value is None or not math.isfinite(gate.value):
        return NOTHING
    low, high = _ends(gate)
    floor = latency.noise_floor * gate.value if latency is not None else 0.0
    noisy = (gate.value - floor, gate.value + floor)
    zero = [0.0] if gate.bound.startswith("drop") or gate.value >= 0 else []
    scale = around([gate.value, low, high, bound.limit, *noisy, *zero], padding=0.08)
    if scale is None:
        return NOTHING
    at = [scale.share(v) for v in (gate.value, low, high, bound.limit, *noisy)]
    value, left, right, limit = at[:4]
    allowed = (limit, 1 - limit) if bound.at_least else (0.0, limit)
    wide = max(right - left, 0)
    says = f"{'at least' if bound.at_least else 'at most'} {words.gate_value(gate, bound.limit)}"
    measured = words.gate_value(gate, gate.value)
    spread = f", interval {_spread(gate, low, high)}" if low != high else ""
    drawn = [
        h("rect", x="0", y="30", width="100%", height="12", rx="2", class_="track"),
        h("rect", x=_at(allowed[0]), y="30", width=_at(allowed[1]), height="12", class_="allowed"),
        h("line", x1=_at(limit), x2=_at(limit), y1="22", y2="50", class_="bound"),
        _text(limit, 15, says, "bound-label"),
    ]
    if floor > 0:
        drawn.append(h("line", x1=_at(at[4]), x2=_at(at[5]), y1="36", y2="36", class_="noise"))
    drawn += [
        h("rect", x=_at(left), y="32", width=_at(wide), height="8", rx="2", class_="spread"),
        h("circle", cx=_at(value), cy="36", r="5", class_="value"),
        _text(value, 64, measured, "value-label"),
    ]
    if zero and value - scale.share(0) > _TICK_ROOM:
        drawn.append(h("text", "0", x=_at(scale.share(0)), y="64", class_="tick", text_anchor="middle"))
    label = f"Measured {measured}{spread}; the bound is {says}: {gate.verdict}"
    return h("svg", *drawn, class_="interval", width="100%", height="72", role="img", aria_label=label)


@dataclass(frozen=True)
class _Dot:
    """One or several stages with the same file."""

    label: str
    title: str
    x: float
    y: float
    top: float
    bottom: float
    radius: float
    last: bool


def trade_off(stages: Sequence[StageResult]) -> Html:
    """Size (logarithmic) against quality with its interval for each stage; the area of a dot is its speed."""
    seen = [s for s in stages if math.isfinite(s.metrics.quality.value) and s.metrics.size_bytes > 0]
    if not seen:
        return NOTHING
    metric = seen[0].metrics.metric.value
    cap = 1.0 if words.is_share(metric) else math.inf
    ends = itertools.chain.from_iterable((q.low, q.value, q.high) for q in (s.metrics.quality for s in seen))
    across, up = around((s.metrics.size_bytes for s in seen), log=True), around(ends, padding=0.12, cap=cap)
    if across is None or up is None:
        return NOTHING
    dots = _dots(seen, across, up, metric)
    places = _places([dot.label for dot in dots], dots)
    crowded = max(places) > 1
    if crowded:
        labels = [str(number) for number in range(1, len(dots) + 1)]
        places = _places(labels, dots)
    else:
        labels = [dot.label for dot in dots]
    grid = [
        *(_row(tick, up, metric) for tick in up.ticks()),
        *_columns(across),
    ]
    ways = [
        h("line", x1=_at(a.x), y1=_at(a.y), x2=_at(b.x), y2=_at(b.y), class_="way") for a, b in itertools.pairwise(dots)
    ]
    listed = "; ".join(dot.title for dot in dots)
    picture = h(
        "svg",
        *grid,
        *ways,
        *(_dot(dot) for dot in dots),
        *map(_label, dots, labels, places),
        width="100%",
        height=_PLOT_HEIGHT,
        role="img",
        aria_label=f"{words.metric_name(metric)} against file size for each stage. {listed}",
    )
    better = "higher" if words.larger_is_better(metric) else "lower"
    return h(
        "figure",
        h("div", f"{words.metric_name(metric)}, {better} is better", class_="axis-y"),
        h("div", picture, class_="plot"),
        h("div", "Size of the ONNX file, smaller to the left", class_="axis-x"),
        h("ol", *(h("li", dot.title) for dot in dots), class_="key") if crowded else NOTHING,
        h(
            "figcaption",
            "Each dot is a stage in the order of the recipe. Bars are 95% intervals. "
            "The area of a dot grows with its speed against the original.",
        ),
        class_="trade-off",
    )


def share_bar(share: float) -> Html:
    """A thin bar for a share of the original."""
    wide = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    return h(
        "svg",
        h("rect", width="100%", height="4", rx="2", class_="track"),
        h("rect", width=_at(wide), height="4", rx="2", class_="filled"),
        class_="share",
        width="100%",
        height="4",
        aria_hidden="true",
    )


def mark(kind: str) -> Html:
    """The sign of a verdict or state, beside its word."""
    drawn = {
        "ok": h("path", d="M4 8.5l2.8 2.8L12 5.5"),
        "bad": h("path", d="M5 5l6 6M11 5l-6 6"),
        "open": h("path", d="M4 9c1.3-2.6 2.7-2.6 4-1s2.7 1.600 4-1"),
        "none": h("path", d="M4.500 8h7"),
    }[kind]
    return h("svg", drawn, class_="mark", width="16", height="16", viewBox="0 0 16 16", aria_hidden="true")


def _dots(stages: Sequence[StageResult], across: Scale, up: Scale, metric: str) -> list[_Dot]:
    groups: list[list[StageResult]] = []
    for stage in stages:
        same = next((g for g in groups if g[0].artifact == stage.artifact), None)
        if same is None:
            groups.append([stage])
        else:
            same.append(stage)
    last = stages[-1]
    return [_dot_of(group, last in group, across, up, metric) for group in groups]


def _dot_of(group: list[StageResult], last: bool, across: Scale, up: Scale, metric: str) -> _Dot:  # noqa: FBT001
    measured = group[-1].metrics
    quality, latency = measured.quality, measured.latency
    speed = latency.value if latency is not None and math.isfinite(latency.value) and latency.value > 0 else 1.0
    names = ", ".join(s.name for s in group)
    fast = f", {words.times(latency.value)} speed" if latency is not None else ""
    return _Dot(
        label=words.short(names, 16),
        title=f"{names}: {words.quality(metric, quality.value)}, {words.size(measured.size_bytes)}{fast}",
        x=across.share(measured.size_bytes),
        y=1 - up.share(quality.value),
        top=1 - up.share(quality.high if math.isfinite(quality.high) else quality.value),
        bottom=1 - up.share(quality.low if math.isfinite(quality.low) else quality.value),
        radius=min(max(5 * math.sqrt(speed), 4), 16),
        last=last,
    )


def _dot(dot: _Dot) -> Html:
    return h(
        "g",
        h("title", dot.title),
        h("line", x1=_at(dot.x), x2=_at(dot.x), y1=_at(dot.top), y2=_at(dot.bottom), class_="whisker"),
        h("circle", cx=_at(dot.x), cy=_at(dot.y), r=f"{dot.radius:.1f}"),
        class_="dot last" if dot.last else "dot",
    )


def _places(labels: Sequence[str], dots: Sequence[_Dot]) -> list[int]:
    """Where labels go without running into each other: even above the interval, odd below, each pair a line further."""
    placed: list[tuple[float, float, int]] = []
    for label, dot in zip(labels, dots, strict=True):
        wide = len(label) * _LETTER
        left = {"start": dot.x, "middle": dot.x - wide / 2, "end": dot.x - wide}[_anchor(dot.x)]
        near = {place for start, end, place in placed if start < left + wide and left < end}
        placed.append((left, left + wide, next(p for p in itertools.count() if p not in near)))
    return [place for _, _, place in placed]


def _label(dot: _Dot, label: str, place: int) -> Html:
    line, below = place // 2, place % 2 == 1
    y, dy = (dot.bottom, 16.0 + 15 * line) if below else (dot.top, -7.0 - 15 * line)
    if abs(y - dot.y) * _PLOT_HEIGHT < dot.radius:
        dy += dot.radius if below else -dot.radius
    return h("text", label, x=_at(dot.x), y=_at(y), dy=f"{dy:.0f}", text_anchor=_anchor(dot.x), class_="name")


def _columns(across: Scale) -> list[Html]:
    drawn, last = [], -math.inf
    for tick in across.ticks(5):
        share = across.share(tick)
        roomy = share - last >= _TICK_ROOM
        last = share if roomy else last
        drawn.append(_column(_at(share), words.size(tick) if roomy else ""))
    return drawn


def _row(tick: float, up: Scale, metric: str) -> Html:
    y = _at(1 - up.share(tick))
    label = words.percent(tick, 1) if words.is_share(metric) else words.number(tick)
    return join(
        (
            h("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"),
            h("text", label, x="0", y=y, dx="-8", dy="4", text_anchor="end", class_="tick"),
        )
    )


def _column(x: str, label: str) -> Html:
    line = h("line", x1=x, x2=x, y1="0", y2="100%", class_="grid")
    if not label:
        return line
    return join((line, h("text", label, x=x, y="100%", dy="18", text_anchor="middle", class_="tick")))


def _ends(gate: GateResult) -> tuple[float, float]:
    value = gate.value if gate.value is not None else math.nan
    low = gate.low if gate.low is not None and not math.isnan(gate.low) else value
    high = gate.high if gate.high is not None and not math.isnan(gate.high) else value
    return low, high


def _spread(gate: GateResult, low: float, high: float) -> str:
    return words.between(words.gate_value(gate, low), words.gate_value(gate, high))


def _text(share: float, y: int, label: str, kind: str) -> Html:
    return h("text", label, x=_at(share), y=y, text_anchor=_anchor(share), class_=kind)


def _anchor(share: float) -> str:
    return "start" if share < 0.2 else "end" if share > 0.8 else "middle"  # noqa: PLR2004 (near the edges)


def _at(share: float) -> str:
    return f"{share * 100:.2f}%"
