"""The one training loop: repeatable by seed, and resumable after any epoch with the same final weights."""

import hashlib
import io
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from lathe_api.data import Objective
from lathe_api.recipe import Schedule
from lathe_optimizers import quality
from lathe_optimizers.context import Dataset, PassContext, Progress
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes.losses import LossFn, TrainingBatch, imitation_loss, outputs_of, task_loss
from lathe_optimizers.passes.programs import load_program, require_program, set_training, unlift
from lathe_optimizers.passes.teacher import teacher_of, tensors

GRADIENT_NORM: Final = 5.0
"""Larger gradients are scaled down to it: one bad batch must not undo an epoch."""
TEMPERATURE: Final = 2.0
"""Softening of the teacher's answers in fine-tuning."""
EVALUATION_BATCH: Final = 256
ONE_CYCLE_WARM_UP: Final = 0.3
"""Share of the steps in which OneCycle rises (Smith & Topin 2017, arXiv:1708.07120)."""

_log = logging.getLogger(__name__)


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


def fit(
    network: nn.Module,
    data: Dataset,
    loss: LossFn,
    options: FitOptions,
    *,
    slot: str,
    ctx: PassContext,
    span: Span = WHOLE,
    also: nn.Module | None = None,
) -> FitResult:
    """Train in place by AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101).

    Every epoch draws its order and its dropout from (seed, order, epoch) alone, so that a resumed training ends in
    the same weights, bit for bit, and no random state outside is touched.

    Args:
        network: the graph or module; its mode is the caller's business.
        data: training samples; the last batch is dropped when it holds one sample, which BatchNorm cannot take.
        loss: what is minimised.
        options: how.
        slot: name of the checkpoint and of the step in progress reports.
        ctx: checkpoints and progress.
        span: part of the stage's progress.
        also: a module that the loss uses and that is trained along, such as projections.

    Raises:
        StageError: the loss is not finite.
    """
    modules = nn.ModuleDict({"network": network} | ({"also": also} if also is not None else {}))
    state = _State(modules, options, slot, len(data))
    done = state.restore(ctx.checkpoints.load(slot))
    losses = []
    for epoch in range(done, options.epochs):
        with torch.random.fork_rng(devices=[]):
            mean = _epoch(state, data, loss, epoch)
        losses.append(mean)
        if not math.isfinite(mean):
            name = ctx.stage.name if ctx.stage is not None else slot
            raise StageError(
                name, f"the loss of step {slot} is {mean} in epoch {epoch + 1}. Lower the stage's `learningRate`"
            )
        ctx.checkpoints.save(slot, state.dump(epoch + 1))
        fraction = span.start + (span.end - span.start) * (epoch + 1) / options.epochs
        ctx.report(Progress(fraction, slot, epoch=epoch + 1, epochs=options.epochs, loss=mean))
    return FitResult(options.epochs, options.epochs * state.steps, tuple(losses), done)


class _State:
    """Everything that goes on from one epoch to the next."""

    def __init__(self, modules: nn.ModuleDict, options: FitOptions, slot: str, samples: int) -> None:
        self.modules = modules
        self.network = modules["network"]
        self.options = options
        self.slot = slot
        self.samples = samples
        self.steps = max(1, sum(len(i) > 1 for i in _split(np.arange(samples), options.batch_size)))
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
        )

    @property
    def identity(self) -> dict[str, object]:
        """What a checkpoint must have in common with this training to be of use."""
        shapes = [f"{k}:{tuple(v.shape)}" for k, v in self.modules.state_dict().items()]
        text = "\n".join([*shapes, str(asdict(self.options)), self.slot, str(self.samples)])
        return {"digest": hashlib.sha256(text.encode()).hexdigest()}

    def dump(self, epoch: int) -> bytes:
        """A checkpoint: tensors and plain values only."""
        buffer = io.BytesIO()
        state = {
            "identity": self.identity,
            "epoch": epoch,
            "tensors": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, data: bytes | None) -> int:
        """Take a checkpoint over; the number of epochs it has done, 0 where it is of no use."""
        if data is None:
            return 0
        try:
            state: Mapping[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
            if state["identity"] != self.identity:
                _log.warning("the checkpoint %s is of another training; starting afresh", self.slot)
                return 0
            self.modules.load_state_dict(state["tensors"])
            self.optimizer.load_state_dict(state["optimizer"])
            return int(state["epoch"])
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            _log.warning("the checkpoint %s cannot be read (%s); starting afresh", self.slot, error)
            return 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted over all epochs."""
        total = max(1, self.options.epochs * self.steps)
        peak, position = self.options.learning_rate, step / total
        match self.options.schedule:
            case Schedule.CONSTANT:
                return peak
            case Schedule.COSINE:
                return peak * (1 + math.cos(math.pi * position)) / 2
            case Schedule.ONE_CYCLE:
                if position < ONE_CYCLE_WARM_UP:
                    return peak * (0.04 + 0.96 * position / ONE_CYCLE_WARM_UP)
                fall = (position - ONE_CYCLE_WARM_UP) / (1 - ONE_CYCLE_WARM_UP)
                return peak * (1 + math.cos(math.pi * fall)) / 2


def _epoch(state: _State, data: Dataset, loss: LossFn, epoch: int) -> float:
    seed = _seed(state.options.seed, state.options.order, epoch)
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(data)).astype(np.int64)
    total, samples, step = 0.0, 0, epoch * state.steps
    for index in _split(order, state.options.batch_size):
        if len(index) == 1 and len(order) > 1:
            continue
        batch = TrainingBatch(index, *tensors(data, index))
        for group in state.optimizer.param_groups:
            group["lr"] = state.rate(step)
        value = loss(batch, outputs_of(state.network, batch.inputs))
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.parameters, GRADIENT_NORM)
        state.optimizer.step()
        total += float(value.detach()) * len(index)
        samples += len(index)
        step += 1
    return total / max(samples, 1)


def _split(order: np.ndarray[Any, np.dtype[np.int64]], size: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _seed(seed: int, order: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{order}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


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
) -> FitResult:
    """Train a changed graph in place on the labels and the original's answers; it is left in inference mode.

    Raises:
        InputError: there is no training set, or no original to imitate.
        StageError: the loss is not finite.
    """
    if ctx.data.train is None:
        raise InputError("spec.data.train", "nothing", "Write the training set: this stage trains")
    loss = task_loss(ctx.objective.task)
    if teacher_weight > 0:
        loss = imitation_loss(
            ctx.objective.task, teacher_of(original_network(ctx), ctx.data.train), teacher_weight, TEMPERATURE
        )
    set_training(gm, on=True)
    options = FitOptions(epochs, batch_size, learning_rate, weight_decay, schedule, ctx.seed)
    result = fit(gm, ctx.data.train, loss, options, slot=slot, ctx=ctx, span=span)
    set_training(gm, on=False)
    return result


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
