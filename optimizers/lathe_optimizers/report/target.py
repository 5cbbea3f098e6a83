"""The section of one target: result, pipeline, gates, plots and details."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from lathe_api.manifest import Estimate, LatencyRatio, Role, StageMetrics, StageRecord
from lathe_api.summary import GateResult, Overall, StageResult, TargetResult, TargetState, Verdict
from lathe_optimizers.report import charts, confusion, words
from lathe_optimizers.report.markup import NOTHING, Html, h, join
from lathe_optimizers.report.tables import pairs, table, tree

KIND_OF_VERDICT: Final = {Verdict.PASSED: "ok", Verdict.FAILED: "bad", Verdict.INCONCLUSIVE: "open"}
_KIND_OF_STATE: Final = {
    TargetState.BUILT: "ok",
    TargetState.REFUSED: "bad",
    TargetState.PARTIAL: "none",
    TargetState.SKIPPED: "none",
}


def badge(kind: str, word: str) -> Html:
    """A verdict or state: sign and word, never colour alone."""
    return h("span", charts.mark(kind), word, class_=f"badge {kind}")


def verdict_badge(verdict: Verdict) -> Html:
    """The badge of a verdict."""
    return badge(KIND_OF_VERDICT[verdict], verdict)


def state_badge(state: TargetState) -> Html:
    """The badge of a state."""
    return badge(_KIND_OF_STATE[state], state)


def section(
    target: TargetResult, records: Mapping[str, StageRecord], matrix: list[list[int]] | None, number: int
) -> Html:
    """All about a target. `number` makes its ids unique."""
    stages = target.stages
    parts = [
        h(
            "header",
            h("h2", "Target ", h("span", target.name, class_="name"), id=f"target-{number}"),
            h("p", state_badge(target.state), h("span", target.hardware, class_="quiet"), class_="line"),
            h("p", words.sentence(target.reason), class_="reason"),
        )
    ]
    if target.overall is not None:
        parts.append(_headline(target.overall, stages))
    if stages:
        parts += [
            _part("Pipeline", _pipeline(stages, target.gates), _warnings(stages)),
            _part("Gates", _gates(target)),
            _part("Before and after", _stage_table(stages)),
            _part("Quality, size and speed", charts.trade_off(stages)),
            _part(
                "New errors",
                NOTHING if matrix is None else confusion.section(matrix, stages[-1].metrics.quality.samples),
            ),
            _part("Stages in detail", *(_detail(s, records.get(s.record)) for s in stages)),
        ]
    if target.artifact is not None:
        files = [("Digest", h("code", target.artifact))]
        files += [("Model file", h("code", target.model_file))] if target.model_file else []
        files += [("Model repository", h("code", target.repository))] if target.repository else []
        parts.append(_part("Files", pairs(files)))
    return h("section", *parts, class_="target", aria_labelledby=f"target-{number}")


def _part(title: str, *content: Html) -> Html:
    return h("section", h("h3", title), *content) if any(content) else NOTHING


def _headline(overall: Overall, stages: Sequence[StageResult]) -> Html:
    first = stages[0].metrics if stages else None
    last = stages[-1].metrics if stages else None
    tiles = [_quality_tile(overall), _size_tile(overall, first, last), _speed_tile(overall.latency)]
    kernels = last.kernels if last is not None else None
    total = kernels.int8 + kernels.float32 if kernels is not None else 0
    of = f"{kernels.int8} of {words.plural(total, 'matrix kernel')}" if kernels is not None and total else ""
    tiles.append(_tile("int8 coverage", words.percent(overall.int8_coverage, 0), "", of or "no matrix kernels"))
    return h("ul", *tiles, class_="tiles")


def _tile(label: str, value: str, unit: str, *notes: str) -> Html:
    return h(
        "li",
        h("span", label, class_="label"),
        h("span", h("span", value, class_="number"), " ", unit, class_="figure"),
        *(h("span", note, class_="note") for note in notes if note),
    )


def _quality_tile(overall: Overall) -> Html:
    metric = overall.metric
    unit = words.unit_of_change(metric)
    if not math.isfinite(overall.drop):
        moved = f"from {words.quality(metric, overall.original)}, drop not measurable"
    elif overall.drop == 0:
        moved = f"from {words.quality(metric, overall.original)}, unchanged"
    else:
        way = "worse" if overall.drop > 0 else "better"
        moved = f"from {words.quality(metric, overall.original)}, {words.change(metric, abs(overall.drop))}{unit} {way}"
    spread = words.between(words.change(metric, overall.drop_low), words.change(metric, overall.drop_high))
    return _tile(
        words.metric_name(metric), words.quality(metric, overall.final), "", moved, f"95% interval of the drop {spread}"
    )


def _size_tile(overall: Overall, first: StageMetrics | None, last: StageMetrics | None) -> Html:
    value, word = words.compared(overall.size_ratio, "smaller", "larger")
    files = f"{words.size(first.size_bytes)} to {words.size(last.size_bytes)}" if first and last else ""
    fewer, how = words.compared(overall.parameter_ratio, "fewer", "more")
    parameters = "as many parameters" if how == "unchanged" else f"{fewer} {how} parameters"
    return _tile("Size", value, word, files, parameters)


def _speed_tile(latency: LatencyRatio | None) -> Html:
    if latency is None:
        return _tile("Latency", words.NONE, "", "not measured")
    value, word = words.compared(latency.value, "faster", "slower")
    spread = words.between(words.times(latency.low), words.times(latency.high))
    notes = [f"95% interval {spread}", f"noise floor {words.noise(latency)}"]
    if words.too_noisy(latency):
        notes.append(h("strong", "too noisy to tell a difference", class_="open"))
    return _tile("Latency", value, word, *notes)


def _pipeline(stages: Sequence[StageResult], gates: Sequence[GateResult]) -> Html:
    original = stages[0].metrics.size_bytes
    boxes = []
    for stage in stages:
        measured = stage.metrics
        share = measured.size_bytes / original if original else 1.0
        judged = [gate for gate in gates if gate.stage == stage.name]
        boxes.append(
            h(
                "li",
                h(
                    "div",
                    h("span", stage.name, class_="name"),
                    h("span", "cached", class_="pill") if stage.cached else NOTHING,
                    class_="head",
                ),
                h("span", stage.type, class_="quiet"),
                h("span", words.quality(measured.metric, measured.quality.value), class_="number"),
                h("span", words.size(measured.size_bytes), class_="size"),
                charts.share_bar(share),
                h("ul", *(_chip(gate) for gate in judged), class_="chips") if judged else NOTHING,
            )
        )
    return h("ol", *boxes, class_="pipeline")


def _chip(gate: GateResult) -> Html:
    kind = KIND_OF_VERDICT[gate.verdict]
    return h("li", charts.mark(kind), gate.gate, h("span", f": {gate.verdict}", class_="hidden"), class_=kind)


def _warnings(stages: Sequence[StageResult]) -> Html:
    found = [(stage.name, warning) for stage in stages for warning in stage.warnings]
    if not found:
        return NOTHING
    items = (h("li", h("span", name, class_="name"), " ", warning) for name, warning in found)
    return h("div", h("h4", words.plural(len(found), "warning").capitalize()), h("ul", *items), class_="warnings")


def _gates(target: TargetResult) -> Html:
    if not target.gates:
        return h("p", "No gate was judged.", class_="quiet")
    latencies = {stage.name: stage.metrics.latency for stage in target.stages}
    return h("div", *(_gate(gate, latencies.get(gate.stage)) for gate in target.gates), class_="gates")


def _gate(gate: GateResult, latency: LatencyRatio | None) -> Html:
    kind = KIND_OF_VERDICT[gate.verdict]
    noisy = latency if gate.metric == "latencyRatio" else None
    picture = charts.gate_interval(gate, noisy)
    return h(
        "article",
        h("h4", h("span", gate.gate, class_="name"), verdict_badge(gate.verdict)),
        h("p", f"{words.metric_name(gate.metric)} after stage ", h("b", gate.stage), h("code", gate.bound)),
        picture or h("p", "Nothing measured that could be drawn.", class_="quiet"),
        h("p", "The thin line is the noise floor of the machine.", class_="quiet") if noisy and picture else NOTHING,
        h("p", words.sentence(gate.reason), class_="reason"),
        h("p", h("b", "What to try: "), gate.remedy, class_="remedy") if gate.remedy else NOTHING,
        class_=f"gate {kind}",
    )


def _stage_table(stages: Sequence[StageResult]) -> Html:
    first = stages[0].metrics
    metric = first.metric.value
    columns = [
        "Stage",
        words.metric_name(metric),
        "Size",
        "Compressed",
        "In memory",
        "Calibration error",
        "Parameters",
        "Speed",
        "int8 kernels",
        "Time",
        "Memory",
    ]
    caption = "Every stage measured on the evaluation set; small figures are 95% intervals and ratios to the original"
    return table(caption, columns, [_stage_row(stage, first) for stage in stages], class_="stages")


def _stage_row(stage: StageResult, first: StageMetrics) -> list[Html]:
    m = stage.metrics
    metric, quality, latency = m.metric.value, m.quality, m.latency
    spread = words.between(words.quality(metric, quality.low), words.quality(metric, quality.high))
    zeros = f"{words.percent(m.zeros / m.parameters, 0)} zeros" if m.zeros and m.parameters else ""
    energy = "" if m.energy_ratio is None else f", energy {words.times(m.energy_ratio)}"
    if latency is None:
        speed = _two(words.NONE, "")
    else:
        ends = words.between(words.times(latency.low), words.times(latency.high))
        speed = _two(words.times(latency.value), f"{ends}, noise {words.noise(latency)}{energy}")
    kernels = m.kernels.int8 + m.kernels.float32
    ratio = words.times(first.size_bytes / m.size_bytes) if m.size_bytes else ""
    return [
        _two(stage.name, f"{stage.type}, cached" if stage.cached else stage.type),
        _two(words.quality(metric, quality.value), spread),
        _two(words.size(m.size_bytes), ratio if m is not first else ""),
        _two(words.NONE if m.compressed_bytes is None else words.size(m.compressed_bytes), ""),
        _two(words.NONE if m.session_bytes is None else words.size(m.session_bytes), ""),
        _calibration(m.calibration_error),
        _two(f"{m.parameters:,}", zeros),
        speed,
        _two(f"{m.kernels.int8} of {kernels}" if kernels else words.NONE, ""),
        _two(words.duration(stage.seconds), ""),
        _two(words.size(stage.peak_memory_bytes), ""),
    ]


def _calibration(error: Estimate | None) -> Html:
    if error is None:
        return _two(words.NONE, "")
    return _two(words.percent(error.value), words.between(words.percent(error.low), words.percent(error.high)))


def _two(main: str, small: str) -> Html:
    return join((h("span", main, class_="main"), h("small", small) if small else NOTHING))


def _detail(stage: StageResult, record: StageRecord | None) -> Html:
    head = h(
        "summary",
        h("h4", h("span", stage.name, class_="name"), " ", h("span", stage.type, class_="quiet")),
        h("span", "cached" if stage.cached else words.duration(stage.seconds), class_="quiet"),
    )
    if record is None:
        return h("details", head, h("p", f"There is no record at {stage.record}.", class_="quiet"))
    config = {name: value for name, value in record.config.items() if name not in {"name", "type"}}
    blocks = [
        ("What the stage found and did", tree(record.details)) if record.details else None,
        ("Configuration", tree(config)) if config else None,
        ("Repeat this stage", h("pre", h("code", shlex.join(record.reproduce)))) if record.reproduce else None,
        ("Record", pairs(_facts(stage, record))),
    ]
    shown = (h("div", h("h5", block[0]), block[1], class_="block") for block in blocks if block is not None)
    return h("details", head, h("div", *shown, class_="inside"))


def _facts(stage: StageResult, record: StageRecord) -> list[tuple[str, Html]]:
    files = [("ONNX" if role is Role.ONNX else role.capitalize(), blob) for role, blob in record.artifact.files.items()]
    return [
        ("Key", h("code", stage.key)),
        *((role, join((h("code", blob.digest), f" {words.size(blob.size)}"))) for role, blob in files),
        ("Seed, threads", join((f"{record.seed}, {record.threads}",))),
        ("File", h("code", stage.record)),
    ]
