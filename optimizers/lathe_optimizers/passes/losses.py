"""What training minimises: the labels, and a teacher's answers.

A network may have several outputs; the first one is its answer, and only that is trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lathe_api.data import Task

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainingBatch:
    """The samples of one step."""

    index: NDArray[np.int64]
    """Their places in the training set."""
    inputs: Inputs
    target: Tensor


LossFn = Callable[[TrainingBatch, Outputs], Tensor]
"""From a batch and the network's outputs on it to a scalar."""
TeacherFn = Callable[[TrainingBatch], Outputs]
"""A teacher's outputs on a batch, without gradients."""


def outputs_of(network: nn.Module, inputs: Inputs) -> Outputs:
    """All tensor outputs of a network."""
    out = network(*inputs)
    return tuple(t for t in out if isinstance(t, Tensor)) if isinstance(out, (tuple, list)) else (out,)


def task_loss(task: Task) -> LossFn:
    """Loss against the truth.

    Classification: cross entropy of scores (batch, classes) with class numbers, or binary cross entropy of one score
    per sample. Regression: mean squared error; the target is brought to the answer's shape.
    """

    def classify(batch: TrainingBatch, outputs: Outputs) -> Tensor:
        target = batch.target
        scores = outputs[0].reshape(len(target), -1)
        if scores.shape[1] == 1:
            return functional.binary_cross_entropy_with_logits(scores[:, 0], target.to(scores.dtype))
        return functional.cross_entropy(scores, target.to(torch.int64))

    def regress(batch: TrainingBatch, outputs: Outputs) -> Tensor:
        return functional.mse_loss(outputs[0], batch.target.reshape(outputs[0].shape).to(outputs[0].dtype))

    return classify if task is Task.CLASSIFICATION else regress


def response_loss(task: Task, answer: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far an answer is from the teacher's.

    Classification: Kullback-Leibler divergence of both answers softened by the temperature, times its square so that
    gradients keep their size (Hinton et al. 2015, arXiv:1503.02531, section 2). Regression: mean squared error.
    """
    if task is Task.REGRESSION:
        return functional.mse_loss(answer, teacher)
    own, other = (t.reshape(len(t), -1) / temperature for t in (answer, teacher))
    if own.shape[1] == 1:  # one score per sample is the difference of two
        own, other = (torch.cat([t, torch.zeros_like(t)], 1) for t in (own, other))
    divergence = functional.kl_div(own.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True)
    return divergence * temperature**2


def imitation_loss(task: Task, teacher: TeacherFn, weight: float, temperature: float) -> LossFn:
    """The labels' loss and the teacher's, mixed: `weight` is the teacher's share."""
    labels = task_loss(task)

    def loss(batch: TrainingBatch, outputs: Outputs) -> Tensor:
        hard = labels(batch, outputs) if weight < 1 else outputs[0].new_zeros(())
        return (1 - weight) * hard + weight * response_loss(task, outputs[0], teacher(batch)[0], temperature)

    return loss
