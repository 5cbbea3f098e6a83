"""Structured pruning of an exported program: score channels, choose, cut, re-export, and prove that the cut is right.

A channel's score is the L2 norm of all weights that go with it, relative to the mean of its group (magnitude pruning,
Li et al. 2016, arXiv:1608.08710, over the dependency groups of `channels`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor, fx
from torch.export import ExportedProgram

from lathe_api.recipe import PruneScope
from lathe_optimizers.errors import LatheError
from lathe_optimizers.passes.atoms import Group
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.channel_rules_layers import KERNEL
from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import example_inputs, reexport, set_training, unlift

TOLERANCE = 1e-4
"""Largest allowed difference between a cut network and the full one with the same weights zeroed, relative to the
largest answer. Measured on float32 networks: about 1e-6."""
NORMALIZED = "LayerNorm takes its statistics over these channels"


class CutError(LatheError):
    """A network that was cut answers differently from the full one with the same weights zeroed."""


@dataclass(frozen=True)
class GroupCut:
    """What was done to one group of channels."""

    layer: str
    """Module path of the first layer whose outputs these channels are."""
    kept: int
    total: int
    multiple_of: int
    """Sizes of the weights stay multiples of this along these channels, where they were before."""


@dataclass(frozen=True)
class PruneReport:
    """What was found and done."""

    groups: tuple[GroupCut, ...]
    """Groups of channels that can be removed."""
    refused: dict[str, int]
    """Why channels were not touched -> how many."""
    blocked: dict[str, str]
    """Operators through which channels could not be followed (module path and operator) -> why."""
    parameters_before: int
    parameters_after: int
    reached: bool
    """Whether the target was met."""
    slice_error: float | None
    """Largest difference to the full network with the same weights zeroed, relative to the largest answer; None if
    nothing was compared, as only normalised channels were cut."""
    finer: dict[str, int] = field(default_factory=dict)
    """Groups too small for the wanted rounding: layer -> the rounding that was used."""

    @property
    def removed_share(self) -> float:
        """Share of the parameters that is gone."""
        return 1 - self.parameters_after / max(self.parameters_before, 1)

    def details(self) -> dict[str, JsonValue]:
        """As JSON, for the stage's record."""
        return {
            "groups": [
                {"layer": g.layer, "kept": g.kept, "total": g.total, "multipleOf": g.multiple_of} for g in self.groups
            ],
            "refused": dict(self.refused),
            "blocked": dict(self.blocked),
            "parametersBefore": self.parameters_before,
            "parametersAfter": self.parameters_after,
            "removedShare": self.removed_share,
            "reached": self.reached,
            "sliceError": self.slice_error,
            "finerRounding": dict(self.finer),
        }


def prune_program(
    ep: ExportedProgram,
    share: float,
    *,
    scope: PruneScope = PruneScope.GLOBAL,
    round_to: int = 8,
    max_cut: float = 0.9,
    normalized: bool = False,
    samples: tuple[Tensor, ...] | None = None,
) -> tuple[ExportedProgram, PruneReport]:
    """Remove the smallest channels until at least `share` of the parameters is gone.

    Convolution kernels work in blocks of 8 (AVX2) or 16 (AVX-512) channels: a size that is no multiple can be slower
    than the full layer.

    Args:
        ep: the program; it is not changed.
        share: share of the parameters to remove, in (0, 1).
        scope: rank channels over the whole network, or cut the same share of every group.
        round_to: sizes stay multiples of this, where they were before.
        max_cut: no group loses more than this share of its channels.
        normalized: also cut channels that LayerNorm normalises; what is left is then no longer exactly a part of the
            full network.
        samples: network inputs for the proof; by default the example inputs of the program.

    Returns:
        A program with the same inputs and outputs, and what was done. `reached` is false when the target was missed.

    Raises:
        CutError: the cut network answers wrongly.
    """
    graph = ChannelGraph(unlift(ep))
    groups = _prunable(graph, normalized=normalized)
    removed = _choose(graph, groups, share, scope, round_to, max_cut)
    steps = [_step(g, round_to) * g.multiplicity for g in groups]
    parameters = _ParameterCount(graph)
    reached = parameters(removed) <= (1 - share) * parameters(())
    return _cut(ep, graph, _Choice(groups, removed, steps, reached, {}), samples)


def narrow_program(
    ep: ExportedProgram,
    width: float,
    *,
    round_to: int = 8,
    normalized: bool = True,
    samples: tuple[Tensor, ...] | None = None,
) -> tuple[ExportedProgram, PruneReport]:
    """Keep about `width` of the channels of every group, those of largest magnitude: a student out of its teacher.

    A group too small for `round_to` is rounded to a smaller power of two, and listed in `finer` of the report.

    Args:
        ep: the program; it is not changed.
        width: share of the channels to keep, in (0, 1).
        round_to: sizes are multiples of this, where they were before.
        normalized: also narrow what LayerNorm normalises, such as the model width of an encoder.
        samples: network inputs for the proof; by default the example inputs of the program.

    Returns:
        A program with the same inputs and outputs, and what was done. `reached` is false when nothing could be removed.

    Raises:
        CutError: the cut network answers wrongly.
    """
    graph = ChannelGraph(unlift(ep))
    groups = _prunable(graph, normalized=normalized)
    removed: list[int] = []
    steps: list[int] = []
    finer: dict[str, int] = {}
    for group, score in zip(groups, _scores(graph, groups), strict=True):
        total = len(group.channels)
        step = _step(group, round_to)
        while step >= total:
            step = max(step // 2, 1)
        if step < _step(group, round_to):
            finer[group.name] = step * group.multiplicity
        largest = (total - 1) // step * step
        keep = min(max(math.floor(width * total / step + 0.5) * step, step), largest)
        removed += group.channels[np.argsort(score, kind="stable")[: total - keep]].tolist()
        steps.append(step * group.multiplicity)
    return _cut(ep, graph, _Choice(groups, removed, steps, bool(removed), finer), samples)


@dataclass(frozen=True)
class _Choice:
    groups: Sequence[Group]
    removed: Sequence[int]
    steps: Sequence[int]
    reached: bool
    finer: dict[str, int]


def _prunable(graph: ChannelGraph, *, normalized: bool) -> list[Group]:
    return [g for g in graph.groups if g.frozen is None and (normalized or not g.normalized)]


def _scores(graph: ChannelGraph, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
    """L2 norm of everything that goes with a channel, divided by the mean of its group."""
    squares = np.zeros(len(graph))
    for weight in graph.weights:
        if weight.trainable:
            square = weight.tensor.detach().double().square()
            for d, roots in enumerate(weight.roots):
                others = [i for i in range(square.dim()) if i != d]
                np.add.at(squares, roots, (square.sum(others) if others else square).cpu().numpy())
    norms = [np.sqrt(squares[g.channels]) for g in groups]
    return [norm / max(float(norm.mean()), 1e-12) for norm in norms]


class _ParameterCount:
    """Parameters that are left when some channels are removed."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._dims = [w.roots for w in graph.weights if w.trainable]

    def __call__(self, removed: Sequence[int]) -> int:
        kept = ~self._graph.mask(removed)
        return sum(math.prod(int(kept[roots].sum()) for roots in dims) for dims in self._dims)


def _step(group: Group, round_to: int) -> int:
    """Channels that go together so that sizes stay multiples of `round_to`; a channel may own several indices."""
    return round_to // math.gcd(round_to, max(group.multiplicity, 1))


def _choose(
    graph: ChannelGraph, groups: Sequence[Group], share: float, scope: PruneScope, round_to: int, max_cut: float
) -> list[int]:
    """The fewest channels, by rank, whose removal reaches the share; as many as `max_cut` allows if none does."""
    if not groups:
        return []
    scores = _scores(graph, groups)
    orders = [np.argsort(score, kind="stable") for score in scores]
    if scope is PruneScope.GLOBAL:
        ranks = [np.sort(score) for score in scores]
    else:
        ranks = [(np.arange(len(g.channels)) + 0.5) / len(g.channels) for g in groups]
    steps = [_step(g, round_to) for g in groups]

    def keeps(threshold: float) -> list[int]:
        """How many channels each group keeps when those up to this rank go."""
        out = []
        for rank, step in zip(ranks, steps, strict=True):
            total = len(rank)
            # 1e-9: a tenth of ten channels is one channel, whatever floating point makes of 1 - 0.9.
            least = max(math.ceil(total * (1 - max_cut) - 1e-9), 1)
            keep = max(total - int((rank <= threshold).sum()), least)
            out.append(min(total, -(-keep // step) * step))
        return out

    def removed(kept: Sequence[int]) -> list[int]:
        parts = [g.channels[o[: len(o) - k]] for g, o, k in zip(groups, orders, kept, strict=True)]
        return [int(c) for part in parts for c in part]

    parameters = _ParameterCount(graph)
    goal = (1 - share) * parameters(())

    def reaches(kept: Sequence[int]) -> bool:
        return parameters(removed(kept)) <= goal

    levels = np.unique(np.concatenate(ranks))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if reaches(keeps(float(levels[middle]))):
            high = middle
        else:
            low = middle + 1
    kept = keeps(float(levels[low]))
    if scope is PruneScope.GLOBAL and reaches(kept):
        # Coarse steps overshoot: give back the best of what was cut, as long as the goal stays met.
        order = sorted(range(len(groups)), key=lambda i: -ranks[i][max(len(ranks[i]) - kept[i] - 1, 0)])
        for i in order:
            while kept[i] < len(ranks[i]):
                fuller = [*kept[:i], min(kept[i] + steps[i], len(ranks[i])), *kept[i + 1 :]]
                if not reaches(fuller):
                    break
                kept = fuller
    return removed(kept)


def _cut(
    ep: ExportedProgram, graph: ChannelGraph, choice: _Choice, samples: tuple[Tensor, ...] | None
) -> tuple[ExportedProgram, PruneReport]:
    parameters = _ParameterCount(graph)
    before, after = parameters(()), parameters(choice.removed)
    gone = set(choice.removed)
    normalized = {int(c) for g in choice.groups if g.normalized for c in g.channels}
    exact = [c for c in choice.removed if c not in normalized]
    inputs = samples if samples is not None else example_inputs(ep)
    masked = _masked_answers(ep, graph, exact, inputs) if exact else None
    error: float | None = 0.0 if not gone else None
    if masked is not None and len(exact) < len(gone):
        # What LayerNorm sees changes with the rest: prove the exact part on a copy of its own.
        partial = ChannelGraph(unlift(ep))
        partial.remove(exact)
        error = _difference(masked, partial.gm, inputs)
    graph.remove(choice.removed)
    smaller = reexport(graph.gm, ep)
    if masked is not None and len(exact) == len(gone):
        error = _difference(masked, unlift(smaller), inputs)
    if error is not None and not error <= TOLERANCE:
        raise CutError(
            f"pruning is not possible for this model: cutting channels out changes its answers by {error:.1e} of their "
            f"range against zeroing the same weights (allowed: {TOLERANCE:.0e}). Leave this stage out, and report the "
            "model's operators, as a rule for one of them must be wrong"
        )
    report = PruneReport(
        groups=tuple(
            GroupCut(g.name, sum(c not in gone for c in g.channels.tolist()), len(g.channels), step)
            for g, step in zip(choice.groups, choice.steps, strict=True)
        ),
        refused=_refused(graph.groups, choice.groups),
        blocked=graph.blocked,
        parameters_before=before,
        parameters_after=after,
        reached=choice.reached,
        slice_error=error,
        finer=choice.finer,
    )
    return smaller, report


def _refused(groups: Sequence[Group], chosen: Sequence[Group]) -> dict[str, int]:
    refused: dict[str, int] = {}
    for g in groups:
        why = g.frozen or (NORMALIZED if g not in chosen else None)
        if why is not None and why != KERNEL:
            refused[why] = refused.get(why, 0) + len(g.channels)
    return refused


def _masked_answers(
    ep: ExportedProgram, graph: ChannelGraph, removed: Sequence[int], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    """Answers of the full network with the weights of the removed channels zeroed."""
    gone = graph.mask(removed)
    full = unlift(ep)
    with torch.no_grad():
        for weight in graph.weights:
            for d, roots in enumerate(weight.roots):
                tensor_at(full, weight.path).index_fill_(d, torch.from_numpy(np.flatnonzero(gone[roots])), 0)
    return _answers(full, inputs)


def _answers(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    set_training(gm, on=False)
    with torch.no_grad():
        out = gm(*inputs)
    return [t.double() for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]


def _difference(expected: Sequence[Tensor], gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference over all outputs, each relative to its largest magnitude; infinite if a shape differs."""
    found = _answers(gm, inputs)
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.numel():
            scale = max(float(a.abs().max()), 1e-6)
            error = float((a - b).abs().max()) / scale
            worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst
