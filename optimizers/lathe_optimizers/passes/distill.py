"""Distillation: a smaller student learns from the model's answers and features, beside an equal-budget control.

Distillation is not a win by itself. The same student is therefore trained a second time from the same start, with the
same order and number of steps, on the labels alone, and the better of both on held-out training data goes on.
"""

from typing import Final

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from lathe_api.recipe import Distill, DistillLoss, LossType, StudentInit, StudentOrigin
from lathe_optimizers.context import PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import features, training
from lathe_optimizers.passes.initialise import initialise
from lathe_optimizers.passes.losses import (
    LossFn,
    Outputs,
    TeacherFn,
    TrainingBatch,
    outputs_of,
    response_loss,
    task_loss,
)
from lathe_optimizers.passes.programs import (
    count_parameters,
    load_program,
    reexport,
    require_program,
    save_program,
    set_training,
    unlift,
)
from lathe_optimizers.passes.pruner import narrow_program
from lathe_optimizers.passes.teacher import teacher_of, tensors
from lathe_optimizers.quality import LARGER_IS_BETTER

HALF: Final = 0.5
"""Share of the stage's progress after which the control is trained."""


def run(ctx: PassContext) -> PassOutput:
    """Train a student and its control; leave the better one.

    Raises:
        InputError: there is no training set, or the student cannot be made or does not fit the teacher.
        StageError: the loss is not finite.
    """
    stage = ctx.stage
    if stage is None or not isinstance(stage.config, Distill):
        raise TypeError("not a Distill stage")
    config = stage.config
    if ctx.data.train is None or ctx.data.validation is None:
        raise InputError("spec.data.train", "nothing", f"Write the training set: stage {stage.name} trains")
    teacher = load_program(require_program(ctx.input, "spec.model.format"))
    start, made = _student(ctx, config, teacher)
    network = unlift(teacher)
    set_training(network, on=False)
    network.requires_grad_(requires_grad=False)

    student, control = unlift(start), unlift(start)
    loss, trained, also, pairs = _distillation(ctx, config, network, student)
    _train(ctx, config, trained, loss, also, slot="train", span=training.Span(0.0, HALF))
    _train(ctx, config, control, task_loss(ctx.objective.task), None, slot="control", span=training.Span(HALF, 1.0))
    set_training(student, on=False)
    set_training(control, on=False)

    held = ctx.data.validation
    scores = {
        "distilled": training.evaluate(student, held, ctx.objective) if len(held) else None,
        "control": training.evaluate(control, held, ctx.objective) if len(held) else None,
    }
    sign = 1 if ctx.objective.metric in LARGER_IS_BETTER else -1
    first, second = scores["distilled"], scores["control"]
    wins = first is None or second is None or sign * first >= sign * second
    program = ctx.workdir / "student.pt2"
    save_program(reexport(student if wins else control, start), program)
    details: dict[str, JsonValue] = {
        "parameters": {"teacher": count_parameters(teacher), "student": count_parameters(start)},
        "student": made,
        "validation": {"samples": len(held), str(ctx.objective.metric): dict(scores)},
        "winner": "distilled" if wins else "control",
        "pairs": list(pairs),
        "epochs": config.epochs,
    }
    warnings = () if wins else (_lost(stage.name, str(ctx.objective.metric), first, second),)
    return PassOutput(program=program, details=details, warnings=warnings)


def _lost(name: str, metric: str, distilled: float | None, control: float | None) -> str:
    return (
        f"the student of stage {name} that was trained without the teacher is better ({metric} {control:.4f} against "
        f"{distilled:.4f} on held-out data) and was taken: distillation does not help this model"
    )


def _student(ctx: PassContext, config: Distill, teacher: ExportedProgram) -> tuple[ExportedProgram, JsonValue]:
    """The student before training, and how it was made."""
    student = config.student
    if student.from_ is StudentOrigin.PT2:
        program = load_program(ctx.extras["student.uri"])
        _require_fit(ctx, teacher, program)
        return program, {"from": "Pt2"}
    if student.from_ is not StudentOrigin.TEACHER or student.width is None:
        raise InputError(
            f"recipe.stages.{ctx.stage.name if ctx.stage else ''}.distill.student",
            f"from {student.from_}",
            "Write from: Teacher with a width, or from: Pt2 with a uri",
        )
    program, report = narrow_program(teacher, float(student.width))
    if report.parameters_after >= report.parameters_before:
        raise InputError(
            f"recipe.stages.{ctx.stage.name if ctx.stage else ''}.distill.student.width",
            "nothing of this model can be made narrower",
            "Give a student of your own: from: Pt2 with a uri",
        )
    if student.init is StudentInit.RANDOM:
        gm = unlift(program)
        initialise(gm, ctx.seed)
        program = reexport(gm, program)
    return program, {"from": "Teacher", "width": student.width, "init": str(student.init)}


def _require_fit(ctx: PassContext, teacher: ExportedProgram, student: ExportedProgram) -> None:
    """Whether a given student takes the teacher's inputs and answers in its shape."""
    if ctx.data.train is None:
        return
    inputs, _ = tensors(ctx.data.train, np.zeros(2, np.int64))
    field = f"recipe.stages.{ctx.stage.name if ctx.stage else ''}.distill.student.uri"
    try:
        with torch.no_grad():
            shapes = [tuple(outputs_of(unlift(p), inputs)[0].shape) for p in (teacher, student)]
    except (RuntimeError, TypeError) as error:
        line = str(error).strip().splitlines()[0]
        raise InputError(
            field, f"the student does not take the teacher's inputs ({line})", "Export it for them"
        ) from error
    if shapes[0] != shapes[1]:
        raise InputError(
            field, f"the student answers in shape {shapes[1]}, the teacher in {shapes[0]}", "Give both one shape"
        )


def _distillation(
    ctx: PassContext, config: Distill, teacher: fx.GraphModule, student: fx.GraphModule
) -> tuple[LossFn, fx.GraphModule, nn.Module | None, tuple[str, ...]]:
    """The loss, the graph that is trained, what is trained along, and the names of compared layers."""
    if ctx.data.train is None or ctx.stage is None:
        raise TypeError("not a Distill stage with data")
    response = next((term for term in config.losses if term.type is LossType.RESPONSE), None)
    feature = next((term for term in config.losses if term.type is LossType.FEATURE), None)
    if feature is None:
        ask = teacher_of(teacher, ctx.data.train)
        return _loss(ctx, response, None, ask, None), student, None, ()
    field = f"recipe.stages.{ctx.stage.name}.distill.losses"
    taps = features.choose_taps(teacher, student, feature.pairs, field)
    ask = teacher_of(features.tapped(teacher, [t.teacher for t in taps]), ctx.data.train)
    projections = features.Projections(taps, ctx.seed)
    trained = features.tapped(student, [t.student for t in taps])
    return _loss(ctx, response, feature, ask, projections), trained, projections, tuple(t.names for t in taps)


def _loss(
    ctx: PassContext,
    response: DistillLoss | None,
    feature: DistillLoss | None,
    ask: TeacherFn,
    projections: features.Projections | None,
) -> LossFn:
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
    ctx: PassContext,
    config: Distill,
    network: fx.GraphModule,
    loss: LossFn,
    also: nn.Module | None,
    *,
    slot: str,
    span: training.Span,
) -> None:
    if ctx.data.train is None:
        raise TypeError("no training set")
    set_training(network, on=True)
    options = training.FitOptions(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=float(config.learning_rate),
        weight_decay=float(config.weight_decay),
        schedule=config.schedule,
        seed=ctx.seed,
        order="distill",
    )
    training.fit(network, ctx.data.train, loss, options, slot=slot, ctx=ctx, span=span, also=also)
