"""Rules in CEL: what the models check in Python, so that the API server refuses it when a document is applied.

The messages say what to write instead; the API server puts the field in front. A rule that needs more than one object
can hold, such as whether a referenced recipe fits, is left to the operator, which says it in a condition.
"""

from dataclasses import dataclass
from typing import Final

from lathe_api import base
from lathe_api.data import GATE_METRICS, TASK_METRICS
from lathe_api.gates import DROP_METRICS, QUALITY_METRICS, SHARE_METRICS
from lathe_api.recipe import StageType


@dataclass(frozen=True)
class Rule:
    """One entry of `x-kubernetes-validations`."""

    rule: str
    message: str
    field: str | None = None
    """Which field of the object is to be changed."""


@dataclass(frozen=True)
class Pattern:
    """What a text must look like."""

    remedy: str
    cel: str | None = None
    """Regular expression (RE2); by default the models'."""


def _default(field: str, value: str) -> str:
    return f"(has(self.{field}) ? self.{field} : '{value}')"


def _exactly_one(*fields: str) -> Rule:
    count = " + ".join(f"(has(self.{f}) ? 1 : 0)" for f in fields)
    names = ", ".join(f"`{f}:`" for f in fields)
    return Rule(f"{count} == 1", f"write exactly one of {names}" if len(fields) > 1 else f"write {names}")


def _only_with(field: str, condition: str, remedy: str) -> Rule:
    return Rule(f"!has(self.{field}) || {condition}", remedy, f".{field}")


def _needed_with(field: str, condition: str, remedy: str) -> Rule:
    return Rule(f"!({condition}) || has(self.{field})", remedy, f".{field}")


_UNIT: Final = r"^(0(\.[0-9]{1,12})?|1(\.0{1,12})?)$"
PATTERNS: Final = {
    base.NAME_PATTERN: Pattern("write lower-case letters, digits and dashes, beginning and ending with no dash"),
    base.SUBDOMAIN_PATTERN: Pattern("write lower-case letters, digits, dashes and dots, as in the name of an object"),
    base.DIGEST_PATTERN: Pattern("write sha256: and 64 lower-case hexadecimal digits"),
    base.DURATION_PATTERN: Pattern("write a whole number and a unit, such as 2ms, 30s, 5m or 1h"),
    base.QUANTITY_PATTERN: Pattern("write a quantity such as 500m, 2 or 4Gi"),
    base.TIMESTAMP_PATTERN: Pattern("write a time such as 2026-01-31T12:00:00Z"),
    base.CRON_PATTERN: Pattern('write five fields, minute first, such as "0 3 * * 0"'),
    base.DECIMAL_PATTERN: Pattern('write a decimal number in quotes, such as "0.02"'),
    r"^[1-9]:[1-9][0-9]?$": Pattern('write how many weights of a block are kept, such as "2:4"'),
    r"^[0-9]+(\.[0-9]+)?(ms|s|%)?$": Pattern('write a value such as "5ms", "70%" or "20"'),
    r"^[a-z][A-Za-z0-9]*(\.[a-z][A-Za-z0-9]*|\[[0-9]{1,3}\])*$": Pattern("write the path of a field, such as a.b[0].c"),
    "share": Pattern(
        'write a number more than 0 and less than 1 in quotes, such as "0.5"', r"^0\.[0-9]{0,11}[1-9][0-9]{0,11}$"
    ),
    "unit": Pattern('write a number from 0 to 1 in quotes, such as "0.5"', _UNIT),
    "positive": Pattern(
        'write a number more than 0 in quotes, such as "0.5"',
        r"^(0\.[0-9]{0,11}[1-9][0-9]{0,11}|[1-9][0-9]{0,8}(\.[0-9]{1,12})?)$",
    ),
    "nonNegative": Pattern(
        'write a number of 0 or more in quotes, such as "0.5"', r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?$"
    ),
}
"""By the pattern of the models, or the name of a bound that patterns cannot tell of."""


def _metrics(names: frozenset[str] | tuple[str, ...] | set[str]) -> str:
    return "[" + ", ".join(f"'{n}'" for n in sorted(names)) + "]"


def _task_rule(metrics: str, where: str, field: str) -> Rule:
    """Metrics of a task are used with that task only; `metrics` is CEL for the list of all that are used."""
    quality = _metrics({m.value for m in QUALITY_METRICS})
    fits = " || ".join(
        f"(self.objective.task == '{task.value}' && m in {_metrics({m.value for m in fitting})})"
        for task, fitting in GATE_METRICS.items()
    )
    told = "; ".join(f"{task.value}: {', '.join(fitting)}" for task, fitting in GATE_METRICS.items())
    return Rule(f"{where}{metrics}.all(m, !(m in {quality}) || {fits})", f"write a metric of the task ({told})", field)


def _stages(at: str, guard: str = "") -> tuple[Rule, ...]:
    """Order of a list of stages: training changes weights, so that it comes before the numbers are frozen.

    Comprehensions over index and value need Kubernetes 1.33.
    """
    field = f".{at.removeprefix('self.')}"

    def never_after(earlier: str, later: str, message: str) -> Rule:
        """`earlier` is CEL about a stage `a`, `later` about a stage `b` that must not follow it."""
        rule = f"{guard}{at}.all(i, a, !({earlier}) || {at}.all(j, b, j <= i || !({later})))"
        return Rule(rule, message, field)

    trains = "b.type in ['Distill', 'Prune', 'Fuse']"
    aware = "has(b.quantize) && b.quantize.method == 'QuantizationAware'"
    frozen = "can no longer be trained or cut"
    return (
        never_after(
            "a.type == 'Quantize'",
            trains,
            f"move Distill, Prune and Fuse stages before Quantize: what it leaves {frozen}",
        ),
        never_after(
            "a.type == 'Export'",
            f"{trains} || ({aware})",
            f"move stages that train before Export: what it leaves {frozen}",
        ),
        never_after(
            "a.type in ['Prune', 'Fuse']",
            "b.type == 'Distill'",
            "move the Distill stage before Prune and Fuse: the student is cut from the teacher",
        ),
        never_after(
            "has(a.fuse) && has(a.fuse.operators) && a.fuse.operators.exists(o, o != 'BatchNorm')",
            "(has(b.prune) && (b.prune.method == 'StructuredMagnitude' || has(b.prune.finetune)))"
            f" || (has(b.fuse) && has(b.fuse.finetune)) || ({aware})",
            "move stages that cut or train before Fuse: the operators that it fuses have no form in a program",
        ),
        Rule(
            f"{guard}{at}.all(s, s.name != 'import')",
            "give the stage named import another name: every run adds one itself",
            field,
        ),
        Rule(
            f"{guard}{at}.all(s, s.name != 'export') || {at}.exists(s, s.type == 'Export')",
            "give the stage named export another name: a run adds one itself where there is none of type Export",
            field,
        ),
        *(
            Rule(f"{guard}{at}.filter(s, s.type == '{kind}').size() <= 1", f"keep one {kind} stage", field)
            for kind in ("Quantize", "Export")
        ),
    )


_TRAINS: Final = (
    "s.type == 'Distill'"
    " || (has(s.quantize) && s.quantize.method == 'QuantizationAware')"
    " || (has(s.prune) && has(s.prune.finetune) && (!has(s.prune.finetune.epochs) || s.prune.finetune.epochs > 0))"
    " || (has(s.fuse) && has(s.fuse.finetune) && (!has(s.fuse.finetune.epochs) || s.fuse.finetune.epochs > 0))"
)
_STATIC: Final = "has(s.quantize) && s.quantize.method == 'Static'"
_FROM_TRAIN: Final = "(!has(self.data.calibration) || has(self.data.calibration.from))"
_INLINE: Final = "!has(self.recipe.stages) || "
_SHARE_METRICS: Final = _metrics({m.value for m in SHARE_METRICS})


def _within_unit(field: str) -> Rule:
    relative = f" || {_default('dropType', 'Absolute')} == 'Relative'" if field == "maxDrop" else ""
    return Rule(
        f"!has(self.{field}) || !(self.metric in {_SHARE_METRICS}{relative}) || self.{field}.matches(r'{_UNIT}')",
        'write a share from 0 to 1, such as "0.02"',
        f".{field}",
    )


RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "": (
        Rule(
            "self.metadata.name.size() <= 63 && self.metadata.name.matches(r'" + base.NAME_PATTERN + "')",
            "metadata.name: write at most 63 lower-case letters, digits and dashes",
        ),
    ),
    "Stage": tuple(
        Rule(
            f"(self.type == '{t.value}') == has(self.{t.value.lower()})",
            f"write the block `{t.value.lower()}:` with type: {t.value}, and with no other type",
            f".{t.value.lower()}",
        )
        for t in StageType
    ),
    "Recipe": (
        Rule(
            "has(self.ref) != (has(self.stages) && self.stages.size() > 0)",
            "write either `stages:`, or `ref: {name: ...}` for a recipe kept elsewhere",
        ),
        *_stages("self.stages", "!has(self.stages) || "),
    ),
    "RecipeSpec": _stages("self.stages"),
    "ModelSource": (
        _only_with("architecture", "self.format == 'Safetensors'", "remove it: only Safetensors files need one"),
        _needed_with("architecture", "self.format == 'Safetensors'", "write the registered name of the network"),
    ),
    "CalibrationSource": (_exactly_one("from", "source"),),
    "ImagePreprocessing": tuple(
        Rule(
            f"!has(self.{name}) || self.{name}.size() == 0 || ({_default('type', 'Float32')} != 'Uint8' && "
            f"self.{name}.size() == ({_default('color', 'Rgb')} == 'Rgb' ? 3 : 1))",
            "write one number for each channel, and none for type: Uint8",
            f".{name}",
        )
        for name in ("mean", "deviation")
    ),
    "Preprocessing": (_exactly_one("image"),),
    "Objective": tuple(
        Rule(
            f"self.task != '{task.value}' || self.metric in {_metrics({m.value for m in fitting})}",
            f"write {' or '.join(fitting)} for {task.value}",
            ".metric",
        )
        for task, fitting in TASK_METRICS.items()
    ),
    "Student": (
        *(
            _only_with(f, f"self.from == '{origin}'", f"remove it: only a student from {origin} has one")
            for origin, fields in {
                "Teacher": ("width", "depth"),
                "Pt2": ("uri", "digest"),
                "Registered": ("component",),
            }.items()
            for f in fields
        ),
        Rule("self.from != 'Teacher' || has(self.width) || has(self.depth)", 'write width: "0.5"', ".width"),
        Rule("self.from != 'Pt2' || has(self.uri) || has(self.digest)", "write uri: student.pt2", ".uri"),
        _needed_with("component", "self.from == 'Registered'", "write component: my-network"),
    ),
    "DistillLoss": (
        Rule(
            f"self.type != 'Response' || !has(self.weight) || self.weight.matches(r'{_UNIT}')",
            "write at most 1: it is the share of the soft loss beside the labels'",
            ".weight",
        ),
        _only_with(
            "pairs", "self.pairs.size() == 0 || self.type == 'Feature'", "write them for a loss of type Feature"
        ),
    ),
    "Distill": (
        Rule(
            "!has(self.losses) || self.losses.all(a, self.losses.exists_one(b, b.type == a.type))",
            "write each kind of loss once",
            ".losses",
        ),
    ),
    "Prune": (
        Rule(
            "(has(self.parameters) ? 1 : 0) + (has(self.macs) ? 1 : 0) + (has(self.latency) ? 1 : 0) + "
            "(has(self.sparsity) ? 1 : 0) + (has(self.pattern) ? 1 : 0) == 1 && "
            "(self.method == 'StructuredMagnitude' ? (has(self.parameters) || has(self.macs) || has(self.latency)) : "
            "self.method == 'NM' ? has(self.pattern) : has(self.sparsity))",
            "write exactly one: parameters, macs or latency for StructuredMagnitude, pattern for NM, else sparsity",
        ),
    ),
    "Fuse": (
        *(
            _only_with(
                f, "self.method == 'SimilarLayers'", "remove it, or write method: SimilarLayers: Operators has none"
            )
            for f in ("similarity", "maxDrop", "shared", "finetune")
        ),
        _only_with(
            "operators",
            "self.operators.size() == 0 || self.method == 'Operators'",
            "remove them, or write method: Operators: SimilarLayers has none",
        ),
        Rule(
            "!has(self.operators) || self.operators.all(a, self.operators.exists_one(b, b == a))",
            "write each operator once",
            ".operators",
        ),
    ),
    "Gate": (
        _exactly_one("min", "max", "maxDrop"),
        _only_with(
            "maxDrop",
            f"self.metric in {_metrics({m.value for m in DROP_METRICS})}",
            'write min: "2.0", for example: only qualities have a drop',
        ),
        _needed_with("maxDrop", "self.metric == 'worstSliceDrop'", 'write maxDrop: "0.05": the metric is a loss'),
        *(_within_unit(f) for f in ("min", "max", "maxDrop")),
    ),
    "RolloutCheck": (
        _exactly_one("min", "max"),
        *(
            Rule(
                f"!has(self.{f}) || !(self.metric in ['errorRate', 'agreement']) || self.{f}.matches(r'{_UNIT}')",
                'write a share from 0 to 1, such as "0.01"',
                f".{f}",
            )
            for f in ("min", "max")
        ),
    ),
    "Traffic": tuple(
        _only_with(f, f"{_default('routing', 'Auto')} != 'Service'", "remove it, or write routing: HttpRoute")
        for f in ("gateway", "hostname")
    ),
    "Rollout": (
        Rule(
            f"{_default('strategy', 'BlueGreen')} != 'Canary' || (has(self.steps) && self.steps.size() > 0)",
            "write at least one step, such as {weight: 10, hold: 5m}",
            ".steps",
        ),
        Rule(
            f"{_default('strategy', 'BlueGreen')} == 'Canary' || !has(self.steps) || self.steps.size() == 0",
            "remove them, or write strategy: Canary",
            ".steps",
        ),
        _only_with(
            "shadow", f"{_default('strategy', 'BlueGreen')} == 'Shadow'", "remove it, or write strategy: Shadow"
        ),
        Rule(
            "!has(self.steps) || (self.steps.map(s, s.weight).isSorted() && "
            "self.steps.all(a, self.steps.exists_one(b, b.weight == a.weight)))",
            "write weights that rise from step to step",
            ".steps",
        ),
    ),
    "Toleration": (
        _only_with("value", f"{_default('operator', 'Equal')} == 'Equal'", "remove it, or write operator: Equal"),
    ),
    "Replicas": (
        Rule(
            "!has(self.max) || self.max >= (has(self.min) ? self.min : 1)",
            "write at least as many as min (1 where min is not given)",
            ".max",
        ),
        _needed_with("max", "has(self.scaleOn)", "write the largest number of servers, so that there is room to scale"),
        _needed_with("target", "has(self.scaleOn)", 'write target: "70%" for Cpu, "5ms" for QueueTime, "20" else'),
        _needed_with("scaleOn", "has(self.target)", "write what the target is measured in: Cpu, Concurrency, ..."),
        Rule(
            "!has(self.scaleOn) || !has(self.target) || (self.scaleOn == 'Cpu' ? self.target.endsWith('%') : "
            "self.scaleOn == 'QueueTime' ? self.target.endsWith('s') : self.target.matches(r'^[0-9]+(\\.[0-9]+)?$'))",
            'write a value such as "70%" for Cpu, "5ms" for QueueTime, "20" else',
            ".target",
        ),
    ),
    "Serving": (
        _only_with(
            "batch", f"{_default('mode', 'SingleSample')} == 'DynamicBatch'", "remove it, or write mode: DynamicBatch"
        ),
    ),
    "Target": (_only_with("edge", "self.hardware == 'Edge'", "remove it, or write hardware: Edge"),),
    "Trigger": tuple(
        Rule(
            f"(self.type == '{kind}') == has(self.{kind.lower()})",
            f"write the block `{kind.lower()}:` with type: {kind}, and with no other type",
            f".{kind.lower()}",
        )
        for kind in ("Schedule", "Samples", "Drift", "Quality")
    ),
    "Learning": (
        _only_with(
            "hedge", "self.method == 'HedgeBackpropagation'", "remove it, or write method: HedgeBackpropagation"
        ),
        _only_with("features", f"{_default('scope', 'Head')} != 'All'", "remove it, or write scope: Head"),
    ),
    "Window": (
        Rule(
            "(has(self.minSamples) ? self.minSamples : 300) <= (has(self.samples) ? self.samples : 1000)",
            "write at most as many as samples, the size of the window",
            ".minSamples",
        ),
    ),
    "SearchConstraint": (_exactly_one("min", "max"),),
    "Answers": (
        _only_with("topK", "self.type == 'TopK'", "remove it, or write type: TopK"),
        _only_with("boxes", "self.type == 'Boxes'", "remove it, or write type: Boxes"),
    ),
    "Aggregation": (
        *(
            rule
            for name, method, example in (("trim", "TrimmedMean", 'trim: "0.1"'), ("faulty", "Krum", "faulty: 1"))
            for rule in (
                _only_with(
                    name, f"{_default('method', 'FedAvg')} == '{method}'", f"remove it, or write method: {method}"
                ),
                _needed_with(name, f"{_default('method', 'FedAvg')} == '{method}'", f"write {example}"),
            )
        ),
    ),
}
"""By name of the model whose every occurrence they hold for; the empty name is the whole document."""

SPEC_RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "ModelRevision": (
        Rule("self == oldSelf", "a ModelRevision is never changed: change the OptimizedModel, which makes a new one"),
        *_stages("self.stages"),
    ),
    "OptimizedModel": (
        Rule(
            f"has(self.data.train) || {_INLINE}self.recipe.stages.all(s, !({_TRAINS}))",
            "write the training set, as a stage of the recipe trains",
            ".data.train",
        ),
        Rule(
            f"has(self.data.train) || (has(self.data.calibration) && has(self.data.calibration.source)) || "
            f"{_INLINE}self.recipe.stages.all(s, !({_STATIC}))",
            "write calibration.source or train, as a stage of the recipe measures activation ranges",
            ".data",
        ),
        _task_rule("self.gates.map(g, g.metric)", "!has(self.gates) || ", ".gates"),
        Rule(
            "self.objective.task != 'Regression' || has(self.data.slices) || !has(self.gates) || "
            "!self.gates.exists(g, g.metric == 'worstSliceDrop')",
            "write data.slices: the values of a regression make no slices by themselves",
            ".gates",
        ),
        _task_rule("self.search.goals.map(g, g.metric)", "!has(self.search) || ", ".search.goals"),
        Rule(
            f"!has(self.gates) || {_INLINE}self.gates.all(g, !has(g.stages) || g.stages.all(n, "
            "self.recipe.stages.exists(s, s.name == n) || "
            "(n == 'export' && !self.recipe.stages.exists(s, s.type == 'Export'))))",
            "name stages of the recipe in `stages` of a gate",
            ".gates",
        ),
    ),
}
"""By kind: rules for its whole `spec`."""
