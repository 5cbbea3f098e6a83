"""What people read. Pure: values in, lines out; every line fits 80 columns where its content allows."""

import textwrap
from collections.abc import Iterable, Sequence

from lathe_api.manifest import Estimate, LatencyRatio
from lathe_api.summary import GateResult, StageResult, Summary, TargetResult, Verdict
from lathe_optimizers.run import PlannedStage

WIDTH = 78
UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: int) -> str:
    """Bytes in the unit that gives one to three digits before the point."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:  # noqa: PLR2004 - decimal units
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def seconds(value: float) -> str:
    """A length of time."""
    minutes, rest = divmod(round(value), 60)
    return f"{value:.1f} s" if value < 60 else f"{minutes} m {rest:02d} s"  # noqa: PLR2004 - a minute


def estimate(value: Estimate) -> str:
    """A value with half the width of its interval."""
    return f"{value.value:.4f} ±{(value.high - value.low) / 2:.4f}"


def ratio(value: LatencyRatio | None) -> str:
    """A latency ratio with its noise floor."""
    return "" if value is None else f"{value.value:.2f}x ±{value.noise_floor:.2f}"


def planned(stages: Sequence[PlannedStage]) -> str:
    """The answer to --dry-run."""
    width = max(len(s.id) for s in stages)
    words = {True: "cached", False: "to do", None: "depends on the stages before"}
    return "".join(f"{s.id:{width}}  {s.type:9} {', '.join(s.targets)}: {words[s.cached]}\n" for s in stages)


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


def outcome(summary: Summary) -> str:
    """The end of a run."""
    lines = ["", f"{summary.name}: {summary.verdict}  (revision {summary.revision}, seed {summary.seed})"]
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
    lines += [
        "",
        f"{summary.stages_run} stages done, {summary.cache_hits} cached, {seconds(summary.seconds)}",
        f"{summary.out}/summary.json",
        f"{summary.out}/report.html",
    ]
    return "\n".join(lines) + "\n"


def _overall(target: TargetResult) -> Iterable[str]:
    found = target.overall
    if found is None:
        return
    yield (
        f"  {found.metric} {found.original:.4f} -> {found.final:.4f}, "
        f"drop {found.drop:.4f} [{found.drop_low:.4f}, {found.drop_high:.4f}]"
    )
    faster = "" if found.latency is None else f", {ratio(found.latency)} faster (noise floor)"
    yield f"  {found.size_ratio:.2f}x smaller{faster}, {found.int8_coverage:.0%} of the matrix kernels in int8"


def _wrapped(text: str, indent: int = 2) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space, break_long_words=False)


def serving(http: str, grpc: str, names: Sequence[str]) -> str:
    """Where a server is, and how to ask it."""
    name = names[0] if names else "MODEL"
    return (
        f"\nserving {', '.join(names)}\n  http  {http}\n  grpc  {grpc}\n\n"
        "  import tritonclient.http as triton\n"
        f'  client = triton.InferenceServerClient("{http}")\n'
        f'  client.get_model_metadata("{name}")\n\n'
        "Ctrl-C ends it\n"
    )
