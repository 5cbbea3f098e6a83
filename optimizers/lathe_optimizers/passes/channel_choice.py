"""Which channels go: the smallest by magnitude, in whole blocks.

A channel's score is the L2 norm of all weights that go with it, relative to the mean of its group (magnitude pruning,
Li et al. 2016, arXiv:1608.08710, over the dependency groups of `channels`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lathe_api.recipe import PruneScope
from lathe_optimizers.passes.atoms import Group, Indices
from lathe_optimizers.passes.channels import ChannelGraph


class ParameterCount:
    """Parameters that are left when some channels are removed."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._dims = [w.roots for w in graph.weights if w.trainable]

    def __call__(self, removed: Sequence[int]) -> int:
        """Elements of the trainable weights without these channels; shared weights count once."""
        kept = ~self._graph.mask(removed)
        return sum(math.prod(int(kept[roots].sum()) for roots in dims) for dims in self._dims)


@dataclass(frozen=True)
class Choice:
    """Channels to remove."""

    groups: Sequence[Group]
    """Groups that were open to removal."""
    removed: Sequence[int]
    """Representatives of the channels that go."""
    multiples: Sequence[int]
    """Per group, the rounding of its sizes."""
    reached: bool
    """Whether the target was met."""


def choose_share(
    graph: ChannelGraph,
    groups: Sequence[Group],
    share: float,
    scope: PruneScope,
    round_to: int,
    max_cut: float,
    cost: Callable[[Sequence[int]], int],
) -> Choice:
    """The fewest channels, by rank, whose removal takes `share` of the cost; else all that `max_cut` allows.

    `cost` is what the network costs without some channels, such as `ParameterCount`.
    """
    ranked = _ranked(graph, groups, scope, round_to)
    goal = (1 - share) * cost(())

    def reaches(keeps: Sequence[int]) -> bool:
        return cost(_removed(ranked, keeps)) <= goal

    def at(threshold: float) -> list[int]:
        return [r.keep_above(threshold, max_cut) for r in ranked]

    levels = np.unique(np.concatenate([r.ranks for r in ranked])) if ranked else np.zeros(1)
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(at(float(levels[middle]))) else (middle + 1, high)
    keeps = at(float(levels[low]))
    reached = reaches(keeps)
    if reached and scope is PruneScope.GLOBAL:
        # Coarse steps overshoot: give back the best of what was cut, as long as the goal stays met.
        for i in sorted(range(len(ranked)), key=lambda i: -ranked[i].best_of_cut(keeps[i])):
            while keeps[i] < len(ranked[i].order):
                fuller = [*keeps[:i], min(keeps[i] + ranked[i].step, len(ranked[i].order)), *keeps[i + 1 :]]
                if not reaches(fuller):
                    break
                keeps = fuller
    multiples = [r.step * g.multiplicity for g, r in zip(groups, ranked, strict=True)]
    return Choice(groups, _removed(ranked, keeps), multiples, reached)


def choose_width(graph: ChannelGraph, groups: Sequence[Group], width: float, round_to: int) -> Choice:
    """All but about `width` of every group; groups too small for `round_to` take a smaller power of two."""
    ranked = _ranked(graph, groups, PruneScope.UNIFORM, round_to)
    keeps: list[int] = []
    multiples: list[int] = []
    for group, r in zip(groups, ranked, strict=True):
        total, step = len(r.order), r.step
        while step >= total:
            step = max(step // 2, 1)
        largest = (total - 1) // step * step
        keeps.append(min(max(math.floor(width * total / step + 0.5) * step, step), largest))
        multiples.append(step * group.multiplicity)
    removed = _removed(ranked, keeps)
    return Choice(groups, removed, multiples, bool(removed))


@dataclass(frozen=True)
class _Ranked:
    """The channels of a group from the least to the most important."""

    order: Indices
    ranks: NDArray[np.float64]
    """What is compared between groups, ascending."""
    step: int
    """Channels that go together, so that sizes stay rounded."""

    def keep_above(self, threshold: float, max_cut: float) -> int:
        """How many stay when those up to a rank go."""
        total = len(self.order)
        # 1e-9: a tenth of ten channels is one channel, whatever floating point makes of 1 - 0.9.
        least = max(math.ceil(total * (1 - max_cut) - 1e-9), 1)
        keep = max(total - int((self.ranks <= threshold).sum()), least)
        return min(total, -(-keep // self.step) * self.step)

    def best_of_cut(self, keep: int) -> float:
        """Rank of the most important channel that goes."""
        cut = len(self.order) - keep
        return float(self.ranks[cut - 1]) if cut else -math.inf


def _ranked(graph: ChannelGraph, groups: Sequence[Group], scope: PruneScope, round_to: int) -> list[_Ranked]:
    out = []
    for group, score in zip(groups, _scores(graph, groups), strict=True):
        order = np.argsort(score, kind="stable")
        ranks = score[order] if scope is PruneScope.GLOBAL else (np.arange(len(score)) + 0.5) / len(score)
        # A channel may own several indices of a weight.
        step = round_to // math.gcd(round_to, max(group.multiplicity, 1))
        out.append(_Ranked(group.channels[order], ranks, step))
    return out


def _scores(graph: ChannelGraph, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
    squares = np.zeros(len(graph))
    for weight in graph.weights:
        if weight.trainable:
            square = weight.tensor.detach().double().square()
            for d, roots in enumerate(weight.roots):
                others = [i for i in range(square.dim()) if i != d]
                np.add.at(squares, roots, (square.sum(others) if others else square).cpu().numpy())
    norms = [np.sqrt(squares[g.channels]) for g in groups]
    return [norm / max(float(norm.mean()), 1e-12) for norm in norms]


def _removed(ranked: Sequence[_Ranked], keeps: Sequence[int]) -> list[int]:
    return [int(c) for r, keep in zip(ranked, keeps, strict=True) for c in r.order[: len(r.order) - keep]]
