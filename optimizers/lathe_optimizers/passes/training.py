"""Training as the stages use it: fine-tuning of a changed graph against the original, and choice between candidates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from lathe_api.data import Objective
from lathe_api.recipe import Schedule
from lathe_optimizers import quality
from lathe_optimizers.context import Dataset, PassContext
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes.fitting import WHOLE, FitOptions, FitResult, Span, fit
from lathe_optimizers.passes.losses import imitation_loss, outputs_of, task_loss
from lathe_optimizers.passes.masking import Constraint, KeepZeros
from lathe_optimizers.passes.programs import load_program, require_program, set_training, unlift
from lathe_optimizers.passes.teacher import teacher_of, tensors
from lathe_optimizers.passes.training_mode import ATEN, Switched
from lathe_optimizers.passes.views import scoring

__all__ = [
    "WHOLE", "FitOptions", "FitResult", "Span", "evaluate", "finetune", "fit", "original_network",
    "require_varying_batch", "training_mode",
]  # fmt: skip

TEMPERATURE: Final = 2.0
"""Softening of the teacher's answers in fine-tuning."""
EVALUATION_BATCH: Final = 256
_MODE, _MOMENTUM = 5, 6
"""Positions among the arguments of `aten.batch_norm`."""


def training_mode(gm: fx.GraphModule) -> Switched:
    """Switch to training, except BatchNorm whose statistics never move.

    Exported with `momentum=None`, BatchNorm carries a momentum of 0: normalising by the batch would train weights for
    statistics that inference does not use.
    """
    found = set_training(gm, on=True)
    for n in gm.graph.nodes:
        if n.target == ATEN.batch_norm.default and n.args[3] is not None and n.args[_MOMENTUM] == 0.0:
            n.args = (*n.args[:_MODE], False, *n.args[_MOMENTUM:])
    gm.recompile()
    return found


def require_varying_batch(gm: fx.GraphModule, field: str) -> None:
    """Training takes batches of several sizes.

    Raises:
        InputError: the program was exported for one batch size.
    """
    for n in gm.graph.nodes:
        value = n.meta.get("val")
        if n.op == "placeholder" and isinstance(value, Tensor) and (not value.dim() or is_concrete_int(value.shape[0])):
            size = int(value.shape[0]) if value.dim() else 1
            raise InputError(
                field,
                f"a program whose batch is always {size} cannot be trained",
                'Export it with dynamic_shapes=({0: torch.export.Dim("batch")},)',
            )


def finetune(  # noqa: PLR0913 - the fields of a recipe's training block
    gm: fx.GraphModule,
    ctx: PassContext,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    schedule: Schedule = Schedule.COSINE,
    teacher_weight: float = 0.5,
    slot: str = "finetune",
    span: Span = WHOLE,
    constraint: Constraint | None = None,
) -> FitResult:
    """Train a changed graph in place on the labels and the original's answers; it is left in inference mode.

    Weights that a Prune stage has set to zero stay zero, unless `constraint` says otherwise; weights that a Fuse stage
    has frozen stay as they are.

    Raises:
        InputError: there is no training set, no original to imitate, or the program takes one batch size only.
        StageError: the loss or a weight is not finite.
    """
    if ctx.data.train is None:
        raise InputError("spec.data.train", "nothing", "Write the training set: this stage trains")
    require_varying_batch(gm, "spec.model.uri")
    task = ctx.objective.task
    loss = task_loss(task)
    if teacher_weight > 0:
        teacher = teacher_of(scoring(original_network(ctx), task), ctx.data.train)
        loss = imitation_loss(task, teacher, teacher_weight, TEMPERATURE)
    network = scoring(gm, task)
    training_mode(network)
    constraint = constraint or KeepZeros(network)
    options = FitOptions(epochs, batch_size, learning_rate, weight_decay, schedule, ctx.seed)
    with _held(gm, ctx.input.manifest.frozen if ctx.input is not None else ()):
        result = fit(network, ctx.data.train, loss, options, slot=slot, ctx=ctx, span=span, constraint=constraint)
    set_training(gm, on=False)
    return result


@contextmanager
def _held(gm: fx.GraphModule, paths: Sequence[str]) -> Iterator[None]:
    """Keep these weights out of training; those that a stage between has replaced are no longer there."""
    wanted = set(paths)
    held = [p for name, p in gm.named_parameters() if name in wanted and p.requires_grad]
    for parameter in held:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad = True


def original_network(ctx: PassContext) -> fx.GraphModule:
    """The original model, for its answers only.

    Raises:
        InputError: it was given as ONNX.
    """
    gm = unlift(load_program(require_program(ctx.original, "spec.model.format")))
    set_training(gm, on=False)
    return gm.requires_grad_(requires_grad=False)


def evaluate(network: nn.Module, data: Dataset, objective: Objective) -> float:
    """The objective's metric of a network in inference mode, in torch: to choose between candidates."""
    found, truth = [], []
    with torch.no_grad():
        for start in range(0, len(data), EVALUATION_BATCH):
            index = np.arange(start, min(start + EVALUATION_BATCH, len(data)), dtype=np.int64)
            inputs, target = tensors(data, index)
            found.append(outputs_of(network, inputs)[0].numpy())
            truth.append(target.numpy())
    return quality.answered(objective.metric, np.concatenate(found), np.concatenate(truth)).value
