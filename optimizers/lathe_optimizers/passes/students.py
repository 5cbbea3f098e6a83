"""The student of a distillation before it is trained: cut out of its teacher, or given."""

import numpy as np
import torch
from pydantic import JsonValue
from torch.export import ExportedProgram

from lathe_api.recipe import Student, StudentInit, StudentOrigin
from lathe_optimizers.context import Dataset, PassContext
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import training
from lathe_optimizers.passes.batch_norm import recompute_statistics
from lathe_optimizers.passes.initialise import initialise
from lathe_optimizers.passes.losses import outputs_of
from lathe_optimizers.passes.programs import load_program, reexport, set_training, unlift
from lathe_optimizers.passes.pruner import narrow_program
from lathe_optimizers.passes.teacher import tensors

Made = tuple[ExportedProgram, JsonValue]
"""A student, and how it was made."""


def make_student(ctx: PassContext, student: Student, teacher: ExportedProgram, data: Dataset, field: str) -> Made:
    """The student that a document asks for.

    Args:
        ctx: seed and further files.
        student: what is asked for.
        teacher: the model.
        data: training samples; BatchNorm statistics of a student cut out of the teacher are taken from them.
        field: field path of `student`, for errors.

    Raises:
        InputError: there is no such way to make one, nothing of the teacher can be made narrower, or a given student
            does not take the teacher's inputs and give its outputs.
    """
    training.require_varying_batch(unlift(teacher), "spec.model.uri")
    if student.from_ is StudentOrigin.PT2:
        program = load_program(ctx.extras["student.uri"], student.uri)
        training.require_varying_batch(unlift(program), f"{field}.uri")
        _require_fit(teacher, program, data, f"{field}.uri")
        return program, {"from": str(student.from_), "uri": student.uri}
    if student.from_ is not StudentOrigin.TEACHER:
        raise InputError(
            f"{field}.from",
            f"{student.from_} is not available in this version",
            f"Available: {StudentOrigin.TEACHER} with a width, {StudentOrigin.PT2} with a uri",
        )
    if student.depth is not None or student.width is None:
        raise InputError(f"{field}.depth", "is not available in this version", 'Write width: "0.5" instead')
    program, report = narrow_program(teacher, float(student.width))
    if not report.reached:
        raise InputError(
            f"{field}.width",
            f'"{student.width}", but nothing of this model can be made narrower',
            "Give a student of your own: from: Pt2 with a uri",
        )
    gm = unlift(program)
    if student.init is StudentInit.RANDOM:
        initialise(gm, ctx.seed)
    recompute_statistics(gm, program, data)
    made: JsonValue = {
        "from": str(student.from_),
        "width": student.width,
        "init": str(student.init),
        "groups": report.details()["groups"],
    }
    return reexport(gm, program), made


def _require_fit(teacher: ExportedProgram, student: ExportedProgram, data: Dataset, field: str) -> None:
    """Whether a given student takes the teacher's inputs, and answers in its shapes."""
    expected, found = (tuple(p.graph_signature.user_inputs) for p in (teacher, student))
    if expected != found and sorted(map(str, expected)) == sorted(map(str, found)):
        raise InputError(
            field,
            f"the student takes its inputs in the order {', '.join(map(str, found))}",
            f"Export it with the teacher's order: {', '.join(map(str, expected))}",
        )
    inputs, _ = tensors(data, np.arange(2, dtype=np.int64) % len(data))
    shapes = []
    for program in (teacher, student):
        gm = unlift(program)
        set_training(gm, on=False)
        try:
            with torch.no_grad():
                shapes.append([tuple(o.shape[1:]) for o in outputs_of(gm, inputs)])
        except Exception as error:
            if program is teacher:
                raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                field, f"the student does not take the teacher's inputs ({line})", "Export it for the same inputs"
            ) from error
    if shapes[0] != shapes[1]:
        raise InputError(
            field,
            f"for each sample the student gives outputs of shape {_shown(shapes[1])}, the teacher {_shown(shapes[0])}",
            "Give the student the same outputs",
        )


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
