"""Every mistake is answered with its line, its field and what to write. `# <-` marks the line that must be named."""

import re
from typing import NamedTuple

import pytest
from support.yaml_documents import (
    AWARE,
    DISTILL,
    DYNAMIC,
    EVALUATION,
    EXPORT,
    FUSE,
    ONLINE,
    PICTURES,
    PRUNE,
    STATIC,
    document,
    gate,
    one_stage,
    stages,
    target,
)

from lathe_api.documents import inspect_text


class Row(NamedTuple):
    id: str
    sections: dict[str, str]
    path: str
    remedy: str
    found: str = ""
    kind: str = "OptimizedModel"


STAGE = "spec.recipe.stages[0]"
ROWS = [
    # Spelling
    Row("a misspelt section", {"objectiv": "{}  # <-"}, "spec.objectiv", "did you mean objective?"),
    Row("a snake case field", gate('metric: accuracy, max_drop: "0.1"'), "spec.gates[0].max_drop", "write maxDrop"),
    Row(
        "a misspelt field deep down",
        one_stage('{name: a, type: Prune, prune: {method: StructuredMagnitude, paramters: "0.5"}}'),
        f"{STAGE}.prune.paramters",
        "did you mean parameters? (known here: method, parameters, macs",
    ),
    Row("a field from nowhere", {"zebra": "1  # <-"}, "spec.zebra", "remove it (known here: model, data"),
    Row(
        "an enum in the wrong case",
        {"objective": "{task: classification, metric: accuracy}  # <-"},
        "spec.objective.task",
        "did you mean Classification? write one of Classification, Regression",
    ),
    Row(
        "an enum from nowhere",
        target("serving: {runtime: Zebra}"),
        "spec.targets[0].serving.runtime",
        "write one of Lathe, Triton",
    ),
    Row(
        "a name with capitals", {"targets": "[{name: CPU, hardware: Cuda}]  # <-"}, "spec.targets[0].name", "lower-case"
    ),
    Row(
        "a block that is not indented",
        {"recipe": "\nstages:\n- name: a\n  type: Export\n  export:\n  opset: 20  # <-\n"},
        f"{STAGE}.opset",
        "indent it below `export:`, which is empty",
    ),
    Row(
        "a label with too long a key",
        target(f"pool: {{nodeSelector: {{{'k' * 400}: v}}}}"),
        f"spec.targets[0].pool.nodeSelector.{'k' * 59}…",
        "write at most 317 characters",
        '"kkk',
    ),
    # Types
    Row(
        "a float",
        gate("metric: accuracy, maxDrop: 0.02"),
        "spec.gates[0].maxDrop",
        'write it in quotes: "0.02"',
        "0.02 (a",
    ),
    Row("an integer for a decimal", gate("metric: sizeRatio, min: 3"), "spec.gates[0].min", 'write it in quotes: "3"'),
    Row(
        "a number in scientific notation",
        {"learning": "{method: OnlineGradientDescent, learningRate: 1e-3}  # <-"},
        "spec.learning.learningRate",
        'write it in quotes: "1e-3"',
    ),
    Row(
        "scientific notation in quotes",
        {"learning": '{method: OnlineGradientDescent, learningRate: "1e-3"}  # <-'},
        "spec.learning.learningRate",
        'write a number without exponent in quotes, such as "0.02"',
    ),
    Row(
        "a text for an integer",
        gate('metric: accuracy, maxDrop: "0.02", minSamples: "500"'),
        "spec.gates[0].minSamples",
        "write a whole number without quotes",
    ),
    Row("a fraction for an integer", {"seed": "1.5  # <-"}, "spec.seed", "write a whole number"),
    Row("an octal for an integer", {"seed": "0o17  # <-"}, "spec.seed", "write a whole number", "0o17 (a number)"),
    Row("a truth value for an integer", {"seed": "true  # <-"}, "spec.seed", "write a whole number without quotes"),
    Row("a text for a truth value", {"suspend": '"true"  # <-'}, "spec.suspend", "write true or false"),
    Row("a truth value for a text", {"model": "{uri: yes, format: Pt2}  # <-"}, "spec.model.uri", 'quotes: "yes"'),
    Row("a text for a mapping", {"model": "teacher.pt2  # <-"}, "spec.model", "write a mapping of fields"),
    Row("a mapping for a list", {"gates": "{name: g}  # <-"}, "spec.gates", "write a list (`- entry`)", "a mapping"),
    Row("a list for a mapping", {"data": "[]  # <-"}, "spec.data", "write a mapping of fields", "a list of 0"),
    Row("a list for a text", {"model": "{uri: [a], format: Pt2}  # <-"}, "spec.model.uri", "write a text"),
    Row(
        "cores without quotes",
        target("serving: {resources: {limits: {cpu: 2}}}"),
        "spec.targets[0].serving.resources.limits.cpu",
        '"2"',
    ),
    # Missing
    Row(
        "a missing required field",
        {"model": "{uri: teacher.pt2}  # <-"},
        "spec.model.format",
        "write format: how it is",
    ),
    Row(
        "a required field without a value",
        {"model": "{uri: , format: Pt2}  # <-"},
        "spec.model.uri",
        "write uri: where",
    ),
    Row("no targets", {"targets": "[]  # <-"}, "spec.targets", "write at least 1 entries"),
    # Formats and bounds
    Row("a duration without unit", {"rollout": '{deadline: "10"}  # <-'}, "spec.rollout.deadline", "such as 30s"),
    Row(
        "a short digest",
        {"model": "{uri: a, format: Pt2, digest: sha256:12}  # <-"},
        "spec.model.digest",
        "64 hexadecimal",
    ),
    Row(
        "a quantity with a wrong unit",
        target('serving: {resources: {limits: {memory: "4GB"}}}'),
        "spec.targets[0].serving.resources.limits.memory",
        "such as",
    ),
    Row(
        "a share of one",
        gate('metric: accuracy, min: "0.9", confidence: "1"'),
        "spec.gates[0].confidence",
        "less than 1",
    ),
    Row(
        "too small an opset",
        one_stage("{name: a, type: Export, export: {opset: 9}}"),
        f"{STAGE}.export.opset",
        "write at least 18",
    ),
    Row(
        "too large a port of call",
        {"revisionHistoryLimit": "101  # <-"},
        "spec.revisionHistoryLimit",
        "write at most 100",
    ),
    Row(
        "a learning rate of 0",
        {"learning": '{method: HedgeBackpropagation, learningRate: "0"}  # <-'},
        "spec.learning.learningRate",
        "more than 0",
    ),
    # Data
    Row(
        "no training set for a stage that trains",
        {"data": f"# <-\n{EVALUATION}\n", **stages(DISTILL)},
        "spec.data.train",
        "as stage student trains",
    ),
    Row(
        "no samples for static quantisation",
        {"data": f"# <-\n{EVALUATION}\n", **stages(STATIC)},
        "spec.data.calibration",
        "write data.calibration.source or data.train",
    ),
    Row(
        "calibration from nowhere",
        {"data": f"\n{EVALUATION}\ncalibration: {{samples: 8}}  # <-\n"},
        "spec.data.calibration",
        "exactly one of `from:`, `source:`",
    ),
    Row(
        "two inputs of one name",
        {"data": "\nevaluation: {uri: a.npz, inputs: [{name: a, field: x}, {name: a, field: y1}], target: t}  # <-\n"},
        "spec.data.evaluation.inputs[1].name",
        "a name of its own",
    ),
    Row(
        "weights without an architecture",
        {"model": "{uri: a.safetensors, format: Safetensors}  # <-"},
        "spec.model.architecture",
        "registered name",
    ),
    Row(
        "a metric of another task",
        {"objective": "{task: Regression, metric: accuracy}  # <-"},
        "spec.objective.metric",
        "write rmse or mae or r2 for Regression",
    ),
    # Recipe
    Row("neither reference nor stages", {"recipe": "{}  # <-"}, "spec.recipe", "write `stages:`, or `ref:", "neither"),
    Row(
        "reference and stages",
        {"recipe": f"{{ref: {{name: edge}}, stages: [{STATIC}]}}  # <-"},
        "spec.recipe",
        "keep one",
    ),
    Row("two stages of one name", stages(PRUNE, f"{PRUNE}  # <-"), "spec.recipe.stages[1].name", "a name of its own"),
    Row(
        "the name of the first stage",
        one_stage("{name: import, type: Export, export: {}}"),
        f"{STAGE}.name",
        "another name",
    ),
    Row(
        "the name of the stage that is appended",
        one_stage(PRUNE.replace("slim", "export")),
        f"{STAGE}.name",
        "another name",
    ),
    Row(
        "a block of another type",
        one_stage("{name: a, type: Export, prune: {method: NM, pattern: '2:4'}, export: {}}"),
        f"{STAGE}.prune",
        "type: Prune",
    ),
    Row("no block", one_stage("{name: a, type: Export}"), f"{STAGE}.export", "write the block `export:`"),
    Row(
        "pruning after quantisation",
        stages(STATIC, f"{PRUNE}  # <-"),
        "spec.recipe.stages[1].type",
        "move slim before int8",
    ),
    Row(
        "distillation after quantisation",
        stages(DYNAMIC, f"{DISTILL}  # <-"),
        "spec.recipe.stages[1].type",
        "move student before dynamic",
    ),
    Row(
        "fusion after quantisation",
        stages(STATIC, f"{FUSE}  # <-"),
        "spec.recipe.stages[1].type",
        "move fused before int8",
    ),
    Row(
        "training-aware quantisation after export",
        stages(EXPORT, f"{AWARE}  # <-"),
        "spec.recipe.stages[1].type",
        "move aware before onnx",
        "Quantize QuantizationAware after Export",
    ),
    Row(
        "pruning after export", stages(EXPORT, f"{PRUNE}  # <-"), "spec.recipe.stages[1].type", "move slim before onnx"
    ),
    Row(
        "two exports",
        stages(EXPORT, f"{EXPORT.replace('onnx', 'again')}  # <-"),
        "spec.recipe.stages[1].type",
        "keep one Export stage",
    ),
    Row(
        "two quantisations", stages(STATIC, f"{DYNAMIC}  # <-"), "spec.recipe.stages[1].type", "keep one Quantize stage"
    ),
    Row(
        "distillation after pruning",
        stages(PRUNE, f"{DISTILL}  # <-"),
        "spec.recipe.stages[1].type",
        "the student is cut from the teacher",
    ),
    Row(
        "a student without a width",
        one_stage("{name: a, type: Distill, distill: {student: {}, epochs: 1}}"),
        f"{STAGE}.distill.student.width",
        'write width: "0.5"',
    ),
    Row(
        "a student's file for a student cut from the teacher",
        one_stage('{name: a, type: Distill, distill: {student: {width: "0.5", uri: s.pt2}, epochs: 1}}'),
        f"{STAGE}.distill.student.uri",
        "a student from Teacher has none",
    ),
    Row(
        "a response loss above one",
        one_stage(
            '{name: a, type: Distill, distill: {epochs: 2, student: {width: "0.5"}, '
            'losses: [{type: Response, weight: "2"}]}}'
        ),
        f"{STAGE}.distill.losses[0].weight",
        "write at most 1",
    ),
    Row(
        "two pruning targets",
        one_stage('{name: a, type: Prune, prune: {method: StructuredMagnitude, parameters: "0.5", macs: "0.5"}}'),
        f"{STAGE}.prune",
        "exactly one of `parameters:`, `macs:`, `latency:`",
        "`parameters:` and `macs:`",
    ),
    Row(
        "a pruning target of another method",
        one_stage('{name: a, type: Prune, prune: {method: GlobalMagnitude, parameters: "0.5"}}'),
        f"{STAGE}.prune",
        "write `sparsity:`",
    ),
    Row(
        "a pattern that keeps all",
        one_stage('{name: a, type: Prune, prune: {method: NM, pattern: "4:4"}}'),
        f"{STAGE}.prune.pattern",
        "fewer weights than the block has",
    ),
    # Gates
    Row(
        "a gate without a bound",
        gate("metric: accuracy"),
        "spec.gates[0]",
        "exactly one of `min:`, `max:`, `maxDrop:`",
        "none",
    ),
    Row(
        "a gate with two bounds",
        gate('metric: accuracy, min: "0.9", maxDrop: "0.1"'),
        "spec.gates[0]",
        "exactly one",
        "`min:` and `maxDrop:`",
    ),
    Row("a drop of a ratio", gate('metric: sizeRatio, maxDrop: "0.1"'), "spec.gates[0].maxDrop", 'write min: "2.0"'),
    Row("points in place of a share", gate('metric: accuracy, maxDrop: "2"'), "spec.gates[0].maxDrop", 'write "0.02"'),
    Row(
        "a relative drop above one",
        gate('metric: rmse, dropType: Relative, maxDrop: "5"') | {"objective": "{task: Regression, metric: rmse}"},
        "spec.gates[0].maxDrop",
        'write "0.05": a relative drop is a share',
    ),
    Row(
        "a gate metric of another task",
        gate('metric: rmse, max: "1"'),
        "spec.gates[0].metric",
        "as objective.task is Classification",
    ),
    Row(
        "a gate after a stage that is not there",
        gate('metric: accuracy, min: "0.9", stages: [slim, nope]'),
        "spec.gates[0].stages[1]",
        "name a stage of the recipe: slim, int8, export",
    ),
    Row(
        "two gates of one name",
        {"gates": '\n- {name: g, metric: sizeRatio, min: "2"}\n- {name: g, metric: sizeRatio, min: "3"}  # <-\n'},
        "spec.gates[1].name",
        "a name of its own",
    ),
    # Targets
    Row(
        "two targets of one name",
        {"targets": "\n- {name: a, hardware: Cuda}\n- {name: a, hardware: Arm64}  # <-\n"},
        "spec.targets[1].name",
        "a name of its own",
    ),
    Row(
        "batches in single-sample mode",
        target("serving: {batch: {maxSize: 4}}"),
        "spec.targets[0].serving.batch",
        "write mode: DynamicBatch",
    ),
    Row(
        "fewer replicas at most than at least",
        target("serving: {replicas: {min: 4, max: 2}}"),
        "spec.targets[0].serving.replicas.max",
        "write at least 4",
    ),
    Row(
        "a signal without a value to steer to",
        target("serving: {replicas: {max: 4, scaleOn: QueueTime}}"),
        "spec.targets[0].serving.replicas.target",
        'write target: "5ms"',
    ),
    Row(
        "a value in another unit",
        target('serving: {replicas: {max: 4, scaleOn: Cpu, target: "5ms"}}'),
        "spec.targets[0].serving.replicas.target",
        '"70%"',
    ),
    Row(
        "a value without a signal",
        target('serving: {replicas: {max: 4, target: "5ms"}}'),
        "spec.targets[0].serving.replicas.scaleOn",
        "QueueTime",
    ),
    Row(
        "scaling without room",
        target('serving: {replicas: {scaleOn: Cpu, target: "70%"}}'),
        "spec.targets[0].serving.replicas.max",
        "room to scale",
    ),
    Row(
        "a toleration that exists and equals",
        target("pool: {tolerations: [{key: a, operator: Exists, value: b}]}"),
        "spec.targets[0].pool.tolerations[0].value",
        "operator: Equal",
    ),
    Row("edge settings elsewhere", target("edge: {}"), "spec.targets[0].edge", "write hardware: Edge"),
    # Rollout
    Row(
        "weights that fall",
        {"rollout": "{strategy: Canary, steps: [{weight: 50}, {weight: 10}]}  # <-"},
        "spec.rollout.steps[1].weight",
        "write more than 50",
    ),
    Row(
        "a canary without steps",
        {"rollout": "{strategy: Canary}  # <-"},
        "spec.rollout.steps",
        "write at least one step",
    ),
    Row(
        "steps without a canary",
        {"rollout": "{steps: [{weight: 50}]}  # <-"},
        "spec.rollout.steps",
        "write strategy: Canary",
    ),
    Row(
        "a shadow without its strategy",
        {"rollout": "{shadow: {share: 10}}  # <-"},
        "spec.rollout.shadow",
        "strategy: Shadow",
    ),
    Row(
        "a check without a bound",
        {"rollout": "{checks: [{metric: agreement}]}  # <-"},
        "spec.rollout.checks[0]",
        "exactly one of `min:`, `max:`",
    ),
    Row(
        "percent in place of a share",
        {"rollout": '{checks: [{metric: errorRate, max: "5"}]}  # <-'},
        "spec.rollout.checks[0].max",
        "a share from 0 to 1",
    ),
    Row(
        "one check twice",
        {"rollout": '{checks: [{metric: errorRate, max: "0.1"}, {metric: errorRate, max: "0.2"}]}  # <-'},
        "spec.rollout.checks[1].metric",
        "of its own",
    ),
    # After deployment
    Row(
        "hedge settings for gradient descent",
        {"learning": "{method: OnlineGradientDescent, hedge: {}}  # <-"},
        "spec.learning.hedge",
        "HedgeBackpropagation",
    ),
    Row(
        "a trigger of two types",
        {"learning": ONLINE % "{name: a, type: Samples, samples: {count: 5}, schedule: {cron: '@daily'}}"},
        "spec.learning.triggers[0]",
        "write `samples:`",
    ),
    Row(
        "a drift trigger without a test",
        {"learning": ONLINE % "{name: a, type: Drift, drift: {}}"},
        "spec.learning.triggers[0].drift",
        "write monitoring.tests",
    ),
    Row(
        "a schedule of four fields",
        {"learning": ONLINE % "{name: a, type: Schedule, schedule: {cron: '0 3 * *'}}"},
        "spec.learning.triggers[0].schedule.cron",
        "write five fields",
    ),
    Row(
        "a window smaller than its minimum",
        {"monitoring": "{window: {samples: 10}}  # <-"},
        "spec.monitoring.window.minSamples",
        "write at most 10",
    ),
    Row(
        "an embedding without a tensor",
        {"monitoring": "{tests: [{name: a, subject: Embedding, method: Classifier}]}  # <-"},
        "spec.monitoring.tests[0].fields",
        "name the tensor",
    ),
    Row(
        "boxes for full answers",
        {"dataPolicy": "{answers: {boxes: {}}}  # <-"},
        "spec.dataPolicy.answers.boxes",
        "write type: Boxes",
    ),
    Row(
        "a search in a stage that is not there",
        {"search": "{goals: [{metric: sizeRatio}], choices: [{stage: x, field: prune.macs, values: [a, b]}]}  # <-"},
        "spec.search.choices[0].stage",
        "slim, int8",
    ),
    Row(
        "a mean for one channel of three",
        {"data": f"\n{EVALUATION}\ntrain: {EVALUATION[12:]}\n{PICTURES}\n"},
        "spec.data.preprocessing[0].image.mean",
        "write 3",
    ),
    # Federation
    Row(
        "masks for a median",
        {"aggregation": "{method: Median}  # <-", "masking": "{mode: Pairwise}"},
        "spec.aggregation.method",
        "cannot be compared",
        kind="ModelFederation",
    ),
    Row("a quorum above the clients", {"quorum": "5  # <-"}, "spec.quorum", "write at most 2", kind="ModelFederation"),
    Row(
        "a trimmed mean without a share",
        {"aggregation": "{method: TrimmedMean}  # <-"},
        "spec.aggregation.trim",
        'write trim: "0.1"',
        kind="ModelFederation",
    ),
    Row(
        "a schedule that is not used",
        {"start": "{schedule: '@daily'}  # <-"},
        "spec.start.schedule",
        "type: Schedule",
        kind="ModelFederation",
    ),
    Row(
        "bounds in the wrong order",
        {"admission": '{maxNorm: "5", rejectNorm: "1"}  # <-'},
        "spec.admission.rejectNorm",
        'write at least "5"',
        kind="ModelFederation",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_mistake_is_named_with_line_field_and_remedy(row):
    text = document(row.sections, row.kind)
    marked = [number for number, line in enumerate(text.splitlines(), start=1) if "# <-" in line]
    problems = inspect_text(text, "model.yaml").problems
    named = {p.path: p for p in problems}
    assert row.path in named, "\n".join(map(str, problems))
    problem = named[row.path]
    assert row.remedy in problem.remedy
    assert row.found in problem.found
    assert (problem.file, [problem.line]) == ("model.yaml", marked)
    assert len(problems) == 1 or row.id == "a misspelt section"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_mistake_is_one_readable_line(row):
    for problem in inspect_text(document(row.sections, row.kind), "model.yaml").problems:
        assert re.fullmatch(r"model\.yaml:\d+:\d+: \S+: found .+; .+", str(problem))
        assert "\n" not in str(problem)
        assert "value_error" not in str(problem)


def test_the_base_documents_are_valid():
    assert inspect_text(document({})).problems == ()
    assert inspect_text(document({}, "ModelFederation")).problems == ()


def test_all_mistakes_of_a_file_are_told_at_once_in_the_order_of_the_text():
    text = document({"objective": "{task: Clasification, metric: accuracy}", "seed": "-1", "zebra": "1"})
    text += "---\n" + document({"seed": "one"})
    problems = inspect_text(text, "model.yaml").problems
    assert [p.path for p in problems] == ["spec.objective.task", "spec.seed", "spec.zebra", "spec.seed"]
    assert [p.line for p in problems] == sorted(p.line for p in problems)


def test_an_error_reads_as_in_the_guide():
    text = document(gate("metric: accuracy, maxDrop: 0.02"))
    [problem] = inspect_text(text, "model.yaml").problems
    assert str(problem) == 'model.yaml:15:48: spec.gates[0].maxDrop: found 0.02 (a number); write it in quotes: "0.02"'
