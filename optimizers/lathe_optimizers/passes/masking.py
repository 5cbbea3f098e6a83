"""Training with weights that are zero and stay so."""

from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from lathe_api.recipe import Prune
from lathe_optimizers.passes import sparsity
from lathe_optimizers.passes.channel_rules_base import tensor_at

_RISING: Final = 0.7
"""Part of the training in which weights go; in the rest, what is left settles."""
_UPDATES: Final = 100
"""How often masks are drawn anew at the most."""
FEWEST: Final = 2
"""Dimensions of a weight; vectors are biases and scales."""
_PRUNED: Final = 0.05
"""Share of exact zeros from which a weight is taken for pruned: no training leaves so many."""


class Constraint(Protocol):
    """What a training must not change."""

    def begin(self) -> None:
        """Called before the first step, when the weights are those that training starts or goes on from."""
        ...

    def after_step(self, step: int, total: int) -> None:
        """Called after each change of the weights.

        Args:
            step: how many changes there were, over all epochs, this one included.
            total: how many there will be.
        """
        ...


@dataclass
class Sparsify:
    """Keeps pruned weights at zero while a network is trained, and lets more go along the schedule.

    What has gone does not come back. All it knows is in the weights themselves, so that a training that is resumed
    goes on as it would have.
    """

    gm: fx.GraphModule
    names: tuple[str, ...]
    config: Prune
    seed: int
    gradual: bool
    _masks: dict[str, Tensor] = field(default_factory=dict)

    def begin(self) -> None:
        """See `Constraint`."""
        if self.gradual:
            self._masks = {name: tensor_at(self.gm, name) != 0 for name in self.names}
        else:
            self.prune_to(sparsity.target(self.config))

    def after_step(self, step: int, total: int) -> None:
        """See `Constraint`."""
        rising = max(1, round(total * _RISING))
        self._hold()
        if self.gradual and step <= rising and (step % max(1, rising // _UPDATES) == 0 or step == rising):
            self.prune_to(sparsity.cubic(sparsity.target(self.config), step / rising))

    def prune_to(self, share: float) -> None:
        """Let weights go until `share` of them are zero."""
        weights: dict[str, NDArray[np.float32]] = {
            name: tensor_at(self.gm, name).detach().numpy() for name in self.names
        }
        masks = sparsity.kept(weights, self.config, share, self.seed)
        self._masks = {name: torch.from_numpy(mask) for name, mask in masks.items()}
        self._hold()

    def _hold(self) -> None:
        with torch.no_grad():
            for name, mask in self._masks.items():
                tensor_at(self.gm, name).mul_(mask)


@dataclass
class KeepZeros:
    """Keeps the zeros of pruned layers while a network is trained for another reason."""

    gm: torch.nn.Module
    _masks: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def begin(self) -> None:
        """See `Constraint`."""
        self._masks = [
            (p, p != 0)
            for p in self.gm.parameters()
            if p.dim() >= FEWEST and _PRUNED <= float((p == 0).float().mean()) < 1
        ]

    def after_step(self, step: int, total: int) -> None:  # noqa: ARG002 - as in `Sparsify`
        """See `Constraint`."""
        with torch.no_grad():
            for parameter, mask in self._masks:
                parameter.mul_(mask)
