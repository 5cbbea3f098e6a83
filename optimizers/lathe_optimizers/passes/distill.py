"""Distillation: a smaller student learns from the model's answers and features, beside an equal-budget control.

Distillation is not a win by itself. The same student is therefore trained a second time from the same start, with the
same order and number of steps, on the labels alone, and the better of both on held-out training data goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue
from torch import Tensor, fx, nn

from lathe_api.recipe import Distill, DistillLoss, LossType
from lathe_optimizers.context import Dataset, PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import features, training
from lathe_optimizers.passes.losses import LossFn, Outputs, TeacherFn, TrainingBatch, response_loss, task_loss
from lathe_optimizers.passes.programs import (
    count_parameters,
    load_program,
    reexport,
    require_program,
    save_program,
    set_training,
    unlift,
)
from lathe_optimizers.passes.students import make_student
from lathe_optimizers.passes.teacher import teacher_of
from lathe_optimizers.passes.views import scoring, tapped
from lathe_optimizers.quality import LARGER_IS_BETTER

HALF: Final = 0.5
"""Share of the stage's progress after which the control is trained."""


def run(ctx: PassContext) -> PassOutput:
    """Train a student and its control; leave the better one.

    Raises:
        InputError: there is no training set, or the student cannot be made or does not fit the teacher.
        StageError: training diverged.
    """
    if ctx.stage is None or not isinstance(ctx.stage.config, Distill):
        raise TypeError("this pass does Distill stages")
    config, field = ctx.stage.config, f"spec.recipe.stages.{ctx.stage.name}.distill"
    if ctx.data.train is None or ctx.data.validation is None:
        raise InputError("spec.data.train", "nothing", f"Write the training set: stage {ctx.stage.name} trains")
    program = load_program(require_program(ctx.input, field))
    start, made = make_student(ctx, config.student, program, ctx.data.train, f"{field}.student")
    teacher = unlift(program)
    set_training(teacher, on=False)
    teacher.requires_grad_(requires_grad=False)

    student, control = unlift(start), unlift(start)
    lesson = _lesson(ctx, config, teacher, student, ctx.data.train, f"{field}.losses")
    labels = _Lesson(scoring(control, ctx.objective.task), task_loss(ctx.objective.task))
    fitted = [
        _train(ctx, config, lesson, ctx.data.train, "train", training.Span(0.0, HALF)),
        _train(ctx, config, labels, ctx.data.train, "control", training.Span(HALF, 1.0)),
    ]
    choice = _choose(ctx, student, control, ctx.data.validation)
    result = ctx.workdir / "student.pt2"
    save_program(reexport(control if choice.lost else student, start), result)
    outputs = len(start.graph_signature.user_outputs)
    details: dict[str, JsonValue] = {
        "parameters": {"teacher": count_parameters(program), "student": count_parameters(start)},
        "student": made,
        "validation": {"samples": len(ctx.data.validation), str(ctx.objective.metric): dict(choice.values)},
        "winner": "control" if choice.lost else "distilled",
        "pairs": list(lesson.pairs),
        "epochs": config.epochs,
        "steps": {"distilled": fitted[0].steps, "control": fitted[1].steps},
    }
    warnings = list(choice.warnings)
    if outputs > 1:
        warnings.append(f"only the first of {outputs} outputs is trained; the others follow it as they can")
    return PassOutput(program=result, details=details, warnings=tuple(warnings))


@dataclass(frozen=True)
class _Lesson:
    """What is trained, and on what."""

    network: fx.GraphModule
    """A view of the student that also gives what the loss looks at."""
    loss: LossFn
    also: nn.Module | None = None
    """Trained along."""
    pairs: tuple[str, ...] = ()
    """Names of compared layers."""


def _lesson(
    ctx: PassContext, config: Distill, teacher: fx.GraphModule, student: fx.GraphModule, data: Dataset, field: str
) -> _Lesson:
    terms = {term.type: (index, term) for index, term in enumerate(config.losses)}
    _, response = terms.get(LossType.RESPONSE, (0, None))
    index, feature = terms.get(LossType.FEATURE, (0, None))
    teaching, learning = scoring(teacher, ctx.objective.task), scoring(student, ctx.objective.task)
    if feature is None:
        return _Lesson(learning, _loss(ctx, response, None, teacher_of(teaching, data), None))
    taps = features.choose_taps(teaching, learning, feature.pairs, f"{field}[{index}]")
    ask = teacher_of(tapped(teaching, [t.teacher for t in taps]), data)
    projections = features.Projections(taps, ctx.seed)
    network = tapped(learning, [t.student for t in taps])
    loss = _loss(ctx, response, feature, ask, projections)
    return _Lesson(network, loss, projections, tuple(t.names for t in taps))


def _loss(
    ctx: PassContext,
    response: DistillLoss | None,
    feature: DistillLoss | None,
    ask: TeacherFn,
    projections: features.Projections | None,
) -> LossFn:
    """The labels' loss, mixed with the softened answers', plus the features'."""
    task = ctx.objective.task
    labels = task_loss(task)

    def loss(batch: TrainingBatch, outputs: Outputs) -> Tensor:
        other = ask(batch)
        total = labels(batch, outputs)
        if response is not None:
            weight = float(response.weight)
            soft = response_loss(task, outputs[0], other[0], float(response.temperature))
            total = (1 - weight) * total + weight * soft
        if feature is not None and projections is not None:
            taps = len(projections.layers)
            total = total + float(feature.weight) * features.feature_loss(projections(outputs[-taps:]), other[-taps:])
        return total

    return loss


def _train(
    ctx: PassContext, config: Distill, lesson: _Lesson, data: Dataset, slot: str, span: training.Span
) -> training.FitResult:
    training.training_mode(lesson.network)
    options = training.FitOptions(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=float(config.learning_rate),
        weight_decay=float(config.weight_decay),
        schedule=config.schedule,
        seed=ctx.seed,
        order="distill",
    )
    return training.fit(lesson.network, data, lesson.loss, options, slot=slot, ctx=ctx, span=span, also=lesson.also)


@dataclass(frozen=True)
class _Choice:
    """Which candidate goes on."""

    lost: bool
    """Whether the control is better; a tie is the student's."""
    values: dict[str, float | None]
    warnings: Sequence[str]


def _choose(ctx: PassContext, student: fx.GraphModule, control: fx.GraphModule, held: Dataset) -> _Choice:
    """Compare both on samples that neither was trained nor is judged on."""
    for network in (student, control):
        set_training(network, on=False)
    if not len(held):
        told = "there are no held-out samples to compare the student with its control on: raise data.validationShare"
        return _Choice(lost=False, values={"distilled": None, "control": None}, warnings=(told,))
    first, second = (training.evaluate(network, held, ctx.objective) for network in (student, control))
    metric = ctx.objective.metric
    lost = second > first if metric in LARGER_IS_BETTER else second < first
    told = (
        f"the student that was trained without the teacher is better ({metric} {second:.4f} against {first:.4f} on "
        f"{len(held)} held-out samples) and was taken: distillation does not help this model"
    )
    return _Choice(lost, {"distilled": first, "control": second}, (told,) if lost else ())
