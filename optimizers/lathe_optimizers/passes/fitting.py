"""The one training loop: repeatable by seed, and resumable after any epoch with the same final weights."""

import hashlib
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from lathe_api.recipe import Schedule
from lathe_optimizers.context import Dataset, PassContext, Progress
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes.checkpointing import TrainingState
from lathe_optimizers.passes.losses import LossFn, TrainingBatch, outputs_of
from lathe_optimizers.passes.masking import Constraint
from lathe_optimizers.passes.teacher import tensors
from lathe_optimizers.passes.training_mode import ATEN

GRADIENT_NORM: Final = 5.0
"""Larger gradients are scaled down to it: one bad batch must not undo an epoch."""
ONE_CYCLE_WARM_UP: Final = 0.3
"""Share of the steps in which OneCycle rises (Smith & Topin 2017, arXiv:1708.07120)."""
REPORT_SECONDS: Final = 1.0
_MODE: Final = 5
"""Position of the mode among the arguments of `aten.batch_norm`."""


@dataclass(frozen=True)
class FitOptions:
    """How a network is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    schedule: Schedule = Schedule.COSINE
    seed: int = 0
    order: str = "fit"
    """Trainings of the same seed and order see the same samples in the same order."""


@dataclass(frozen=True)
class FitResult:
    """What training did."""

    epochs: int
    steps: int
    losses: tuple[float, ...]
    """Mean loss of each epoch that was trained in this process."""
    resumed_epochs: int
    """Epochs that an earlier, unfinished try had done."""


class Span(NamedTuple):
    """The part of a stage's progress that one training takes."""

    start: float
    end: float


WHOLE: Final = Span(0.0, 1.0)


def fit(  # noqa: PLR0913 - the two last are for some callers only
    network: nn.Module,
    data: Dataset,
    loss: LossFn,
    options: FitOptions,
    *,
    slot: str,
    ctx: PassContext,
    span: Span = WHOLE,
    also: nn.Module | None = None,
    constraint: Constraint | None = None,
) -> FitResult:
    """Train in place by AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101).

    Every epoch draws its order and its dropout from (seed, order, epoch) alone, so that a resumed training ends in
    the same weights, bit for bit, and no random state outside is touched.

    Args:
        network: the graph or module; its mode is the caller's business (`training.training_mode`).
        data: training samples. A last batch of one sample joins the batch before it, as BatchNorm cannot take it.
        loss: what is minimised.
        options: how.
        slot: name of the checkpoint and of the step in progress reports.
        ctx: checkpoints and progress.
        span: part of the stage's progress.
        also: a module that the loss uses and that is trained along, such as projections.
        constraint: what must not change.

    Raises:
        InputError: batches of one sample for a network with BatchNorm.
        StageError: the loss or a weight is not finite.
    """
    modules = nn.ModuleDict({"network": network} | ({"also": also} if also is not None else {}))
    _require_batches(network, min(options.batch_size, len(data)), ctx)
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
    )
    state = TrainingState(modules, optimizer, f"{options} {slot} {len(data)} {ctx.threads}")
    done = state.restore(ctx.checkpoints.load(slot), slot)
    if constraint is not None:
        constraint.begin()
    steps = len(_split(np.arange(len(data)), options.batch_size))
    losses = []
    for epoch in range(done, options.epochs):
        progress = _Reporter(ctx, slot, span, epoch, options.epochs)
        with torch.random.fork_rng(devices=[]), _deterministic():
            mean = _epoch(
                _Pass(network, parameters, optimizer, options, constraint, epoch, steps), data, loss, progress
            )
        losses.append(mean)
        if not math.isfinite(mean) or not all(bool(p.isfinite().all()) for p in parameters):
            raise StageError(
                ctx.stage.name if ctx.stage is not None else slot,
                f"training diverged: in epoch {epoch + 1} of step {slot} the loss is {mean:g}, or a weight is no "
                f"longer finite. Lower the stage's `learningRate` (it is {options.learning_rate:g})",
            )
        ctx.checkpoints.save(slot, state.dump(epoch + 1))
        progress.finished(mean)
    return FitResult(options.epochs, options.epochs * steps, tuple(losses), done)


@dataclass(frozen=True)
class _Pass:
    """What one pass over the data needs."""

    network: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    options: FitOptions
    constraint: Constraint | None
    epoch: int
    steps: int
    """Of each epoch."""


def _epoch(one: _Pass, data: Dataset, loss: LossFn, progress: "_Reporter") -> float:
    """Mean loss over the samples."""
    seed = _seed(one.options.seed, one.options.order, one.epoch)
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(data)).astype(np.int64)
    total, seen = 0.0, 0
    for step, index in enumerate(_split(order, one.options.batch_size)):
        for group in one.optimizer.param_groups:
            group["lr"] = rate(one.options, one.epoch * one.steps + step, one.options.epochs * one.steps)
        batch = TrainingBatch(index, *tensors(data, index))
        value = loss(batch, outputs_of(one.network, batch.inputs))
        one.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(one.parameters, GRADIENT_NORM)
        one.optimizer.step()
        if one.constraint is not None:
            one.constraint.after_step(one.epoch * one.steps + step + 1, one.options.epochs * one.steps)
        total += float(value.detach()) * len(index)
        seen += len(index)
        progress.inside(seen / len(order), total / seen)
    return total / seen


def rate(options: FitOptions, step: int, total: int) -> float:
    """Learning rate of a step out of `total`, counted over all epochs."""
    peak, position = options.learning_rate, step / max(1, total)
    match options.schedule:
        case Schedule.CONSTANT:
            return peak
        case Schedule.COSINE:
            return peak * (1 + math.cos(math.pi * position)) / 2
        case Schedule.ONE_CYCLE:
            if position < ONE_CYCLE_WARM_UP:
                return peak * (0.04 + 0.96 * position / ONE_CYCLE_WARM_UP)
            fall = (position - ONE_CYCLE_WARM_UP) / (1 - ONE_CYCLE_WARM_UP)
            return peak * (1 + math.cos(math.pi * fall)) / 2


def _split(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def _require_batches(network: nn.Module, size: int, ctx: PassContext) -> None:
    """One value per channel has no variance, and would leave NaN in the running one."""
    nodes = network.graph.nodes if isinstance(network, fx.GraphModule) else ()
    if size < 2 and any(n.target == ATEN.batch_norm.default and n.args[_MODE] for n in nodes):  # noqa: PLR2004
        raise InputError(
            f"spec.recipe.stages.{ctx.stage.name if ctx.stage is not None else ''}: batchSize",
            f"batches of {size} for a network with BatchNorm",
            "Write at least 2, and give at least 2 training samples",
        )


class _Reporter:
    """Progress of one epoch: at most one report a second inside it, and one at its end."""

    def __init__(self, ctx: PassContext, slot: str, span: Span, epoch: int, epochs: int) -> None:
        self.ctx, self.slot, self.span, self.epoch, self.epochs = ctx, slot, span, epoch, epochs
        self.last = time.monotonic()

    def inside(self, share: float, loss: float) -> None:
        """A part of the epoch is done; `epoch` in the report counts finished ones."""
        if time.monotonic() - self.last > REPORT_SECONDS:
            self._tell(self.epoch + share, self.epoch, loss)

    def finished(self, loss: float) -> None:
        """The epoch is done."""
        self._tell(self.epoch + 1, self.epoch + 1, loss)

    def _tell(self, done: float, epoch: int, loss: float) -> None:
        fraction = self.span.start + (self.span.end - self.span.start) * done / self.epochs
        self.ctx.report(Progress(fraction, self.slot, epoch=epoch, epochs=self.epochs, loss=loss))
        self.last = time.monotonic()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Kernels that give the same bits each time, where there are any; the setting of before comes back."""
    memory: Any = torch.utils.deterministic
    mode, fill = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    memory.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*does not have a deterministic implementation", category=UserWarning
            )
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill


def _seed(seed: int, order: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{order}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
