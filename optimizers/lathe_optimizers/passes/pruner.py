"""Structured pruning of an exported program: choose channels, cut, re-export, and prove that the cut is right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, fx
from torch.export import ExportedProgram

from lathe_api.recipe import PruneScope
from lathe_optimizers.errors import LatheError
from lathe_optimizers.passes.atoms import Group
from lathe_optimizers.passes.channel_choice import Choice, ParameterCount, choose_share, choose_width
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.channel_rules_layers import KERNEL
from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.programs import example_inputs, reexport, unlift
from lathe_optimizers.passes.training_mode import set_training

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
    choice = choose_share(graph, _open(graph, normalized=normalized), share, scope, round_to, max_cut)
    return _cut(ep, graph, choice, samples)


def narrow_program(
    ep: ExportedProgram,
    width: float,
    *,
    round_to: int = 8,
    normalized: bool = True,
    samples: tuple[Tensor, ...] | None = None,
) -> tuple[ExportedProgram, PruneReport]:
    """Keep about `width` of the channels of every group, those of largest magnitude: a student out of its teacher.

    A group too small for `round_to` is rounded to a smaller power of two; `multiple_of` in the report says so.

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
    choice = choose_width(graph, _open(graph, normalized=normalized), width, round_to)
    return _cut(ep, graph, choice, samples)


def _open(graph: ChannelGraph, *, normalized: bool) -> list[Group]:
    """Groups that may be cut."""
    return [g for g in graph.groups if g.frozen is None and (normalized or not g.normalized)]


def _cut(
    ep: ExportedProgram, graph: ChannelGraph, choice: Choice, samples: tuple[Tensor, ...] | None
) -> tuple[ExportedProgram, PruneReport]:
    parameters = ParameterCount(graph)
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
            for g, step in zip(choice.groups, choice.multiples, strict=True)
        ),
        refused=_refused(graph.groups, choice.groups),
        blocked=graph.blocked,
        parameters_before=before,
        parameters_after=after,
        reached=choice.reached,
        slice_error=error,
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
