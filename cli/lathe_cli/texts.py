"""What people read. Pure: values in, lines out; every line fits 80 columns where its content allows."""

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lathe_api.events import StageProgress, TrialStarted
from lathe_api.manifest import Estimate, LatencyRatio
from lathe_api.searchresult import SearchResult, Trial, TrialMeasures, TrialState
from lathe_api.summary import GateResult, StageResult, Summary, TargetResult, Verdict

if TYPE_CHECKING:
    # Serving works where only the runtimes are installed.
    from lathe_optimizers.run import Census, PlannedStage

WIDTH: Final = 78
UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text in which nothing commands the terminal: file contents and names reach messages unread."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def size(count: int) -> str:
    """Bytes in the unit that gives one to three digits before the point."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:  # noqa: PLR2004 - decimal units
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def seconds(value: float) -> str:
    """A length of time."""
    if value < 59.95:  # noqa: PLR2004 - what is shown as 60.0 is a minute
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} m {rest:02d} s"


def estimate(value: Estimate) -> str:
    """A value with half the width of its interval."""
    return f"{value.value:.4f} ±{(value.high - value.low) / 2:.4f}"


def ratio(value: LatencyRatio | None) -> str:
    """A latency ratio with its noise floor, which is a share of it."""
    return "" if value is None else f"{value.value:.2f}x ±{value.noise_floor:.1%}"


def compared(value: float, better: str, worse: str) -> str:
    """A ratio to the original in the word that fits its side of 1."""
    return f"{1 / value:.2f}x {worse}" if 0 < value < 1 else f"{value:.2f}x {better}"


def planned(stages: "Sequence[PlannedStage]") -> str:
    """The answer to --dry-run."""
    width = max(len(s.id) for s in stages)
    words = {True: "cached", False: "to do", None: "depends on the stages before"}
    return "".join(f"{s.id:{width}}  {s.type:9} {', '.join(s.targets)}: {words[s.cached]}\n" for s in stages)


def counted(census: "Census", most: int) -> str:
    """How much a search has before it, as an answer to --dry-run."""
    if census.possible is None:
        return f"search: {census.total:,} combinations, of which at most {most} are tried\n"
    tried = min(most, census.possible)
    lines = [f"search: {census.total} combinations, {census.possible} possible, at most {tried} are tried"]
    for reason in census.reasons:
        lines += _wrapped(f"not possible: {reason}")
    return "\n".join([*lines, "the first of them:", ""])


def trial_started(event: TrialStarted) -> str:
    """What a trial tries, on one line."""
    return f"trial {event.number}/{event.most}: " + ", ".join(f"{v.stage}.{v.field} {v.value}" for v in event.values)


def trial(result: Trial) -> str:
    """A trial that has ended, on one line."""
    if result.state is TrialState.STOPPED:
        return f"trial {result.number}: stopped at {result.check} after {seconds(result.seconds)}: {result.reason}"
    shown = [f"{m.target} {_measures(m)}" if len(result.measures) > 1 else _measures(m) for m in result.measures]
    return f"trial {result.number}: passed after {seconds(result.seconds)}: {'; '.join(shown)}"


def _measures(found: TrialMeasures) -> str:
    speed = "" if found.latency_ratio is None else f", {compared(found.latency_ratio, 'faster', 'slower')}"
    return f"{found.metric} {found.quality:.4f}, {compared(found.size_ratio, 'smaller', 'larger')}{speed}"


def progress(event: StageProgress) -> str:
    """How far a stage is, on one line."""
    epoch = f", epoch {event.epoch}/{event.epochs}" if event.epoch is not None else ""
    loss = f", loss {event.loss:.4g}" if event.loss is not None else ""
    left = f", {seconds(event.eta_seconds)} left" if event.eta_seconds is not None else ""
    return f"{event.id}: {event.percent:.0f} % {event.step}{epoch}{loss}{left}"


def stage(result: StageResult) -> str:
    """A finished stage on one line."""
    metrics = result.metrics
    kernels = metrics.kernels
    parts = [
        "cached" if result.cached else seconds(result.seconds),
        f"{metrics.metric} {estimate(metrics.quality)}",
        size(metrics.size_bytes),
        ratio(metrics.latency),
        f"int8 {kernels.int8}/{kernels.int8 + kernels.float32}" if kernels.int8 else "",
    ]
    return f"{result.name}: " + ", ".join(p for p in parts if p)


def gate(result: GateResult) -> str:
    """A verdict on one line."""
    value = "not measured" if result.value is None else f"{result.value:.4g}"
    return f"gate {result.gate} after {result.stage}: {result.verdict} ({value}; {result.bound})"


def verdict(result: GateResult) -> str:
    """A verdict on one line, where several targets may be told of."""
    return f"{result.target}: {gate(result)}"


def outcome(summary: Summary) -> str:
    """The end of a run."""
    lines = ["", f"{summary.name}: {summary.verdict}  (revision {summary.revision}, seed {summary.seed})"]
    if summary.search is not None:
        lines += _searched(summary.search)
    for target in summary.targets:
        lines += ["", f"target {target.name} ({target.hardware}): {target.state}", *_wrapped(target.reason)]
        lines += _overall(target)
        for result in target.gates:
            lines += [f"  {gate(result)}", *_wrapped(result.reason, 4)]
            if result.verdict is not Verdict.PASSED and result.remedy:
                lines += _wrapped(f"try: {result.remedy}", 4)
        for item in target.stages:
            for warning in item.warnings:
                lines += _wrapped(f"warning, {item.name}: {warning}")
        if target.model_file is not None:
            lines.append(f"  {summary.out}/{target.model_file}")
    done = f"{summary.stages_run} {'stage' if summary.stages_run == 1 else 'stages'} done"
    lines += [
        "",
        f"{done}, {summary.cache_hits} cached, {seconds(summary.seconds)}",
        f"{summary.out}/summary.json",
        f"{summary.out}/report.html",
    ]
    return "\n".join(printable(line) for line in lines) + "\n"


def _searched(search: SearchResult) -> Iterable[str]:
    stopped = sum(t.state is TrialState.STOPPED for t in search.trials)
    count = len(search.trials)
    yield ""
    yield f"search: {count} {'trial' if count == 1 else 'trials'} in {seconds(search.seconds)}, {stopped} stopped early"
    yield from _wrapped(f"{search.reason}; {search.ended}")
    taken = search.chosen or search.nearest
    for item in search.trials:
        if item.best or item.number == taken:
            values = ", ".join(f"{v.stage}.{v.field} {v.value}" for v in item.values)
            mark = "*" if item.number == taken else " "
            measured = "; ".join(_measures(m) for m in item.measures)
            yield f" {mark}trial {item.number}: {values}" + (f": {measured}" if measured else "")


def _overall(target: TargetResult) -> Iterable[str]:
    found = target.overall
    if found is None:
        return
    yield (
        f"  {found.metric} {found.original:.4f} -> {found.final:.4f}, "
        f"drop {found.drop:.4f} [{found.drop_low:.4f}, {found.drop_high:.4f}]"
    )
    parts = [compared(found.size_ratio, "smaller", "larger")]
    if found.latency is not None:
        speed = compared(found.latency.value, "faster", "slower")
        parts.append(f"{speed} (noise floor ±{found.latency.noise_floor:.1%})")
    yield f"  {', '.join(parts)}"
    yield f"  {found.int8_coverage:.0%} of the matrix kernels in int8"


def _wrapped(text: str, indent: int = 2) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space, break_long_words=False)


@dataclass(frozen=True)
class Tensor:
    """An input as a client sends it."""

    name: str
    datatype: str
    """Open Inference Protocol name."""
    shape: tuple[int, ...]
    """Of one request; sizes that may vary are 1."""
    dtype: str
    """Of numpy."""


@dataclass(frozen=True)
class Served:
    """A model that a server answers for."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]


def serving(http: str, grpc: str, models: Sequence[Served]) -> str:
    """Where a server is, and a program that asks it."""
    names = ", ".join(m.name for m in models)
    where = f"\nserving {names}\n  http  {http}\n  grpc  {grpc}\n"
    example = f"\n{_client(http, models[0])}" if models else ""
    return f"{printable(where)}{example}\nCtrl-C ends it\n"


def _client(http: str, model: Served) -> str:
    # Not indented: it is meant to be pasted. JSON strings are Python strings.
    inputs = [
        f"    triton.InferInput({json.dumps(t.name)}, {list(t.shape)}, {json.dumps(t.datatype)}),\n"
        for t in model.inputs
    ]
    data = [
        f"inputs[{i}].set_data_from_numpy(np.zeros({list(t.shape)}, {json.dumps(t.dtype)}))\n"
        for i, t in enumerate(model.inputs)
    ]
    answers = [f"print(answer.as_numpy({json.dumps(name)}))\n" for name in model.outputs]
    return (
        "import numpy as np\n"
        "import tritonclient.http as triton\n"
        "\n"
        f"client = triton.InferenceServerClient({json.dumps(http)})\n"
        f"inputs = [\n{''.join(inputs)}]\n"
        f"{''.join(data)}"
        f"answer = client.infer({json.dumps(model.name)}, inputs)\n"
        f"{''.join(answers)}"
    )
