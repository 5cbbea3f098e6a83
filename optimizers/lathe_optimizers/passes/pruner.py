"""Structured pruning of an exported program: choose channels, cut, re-export, and prove that the cut is right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue
from torch import Tensor
from torch.export import ExportedProgram

from lathe_api.recipe import PruneScope
from lathe_optimizers.errors import LatheError
from lathe_optimizers.passes.atoms import Group
from lathe_optimizers.passes.channel_choice import Choice, ParameterCount, choose_share, choose_width
from lathe_optimizers.passes.channel_rules_layers import KERNEL
from lathe_optimizers.passes.channels import ChannelGraph
from lathe_optimizers.passes.cut_proof import cut_error, masked_error, tolerance
from lathe_optimizers.passes.mac_count import MacCount
from lathe_optimizers.passes.programs import example_inputs, reexport, unlift

NORMALIZED = "LayerNorm takes its statistics over these channels"
UNPROVED = "cutting them changes the answers otherwise than zeroing them"


class Cost(StrEnum):
    """What pruning takes a share of."""

    PARAMETERS = "parameters"
    MACS = "macs"


Choose = Callable[[ChannelGraph, Sequence[Group]], Choice]


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
    macs_before: int
    """Multiply-accumulates for one sample, of the layers with weights."""
    macs_after: int
    reached: bool
    """Whether the target was met."""
    slice_error: float | None
    """Largest difference to the full network with the same weights zeroed, relative to the largest answer; of channels
    that LayerNorm does not normalise, and None if there were no such."""

    @property
    def removed_share(self) -> float:
        """Share of the parameters that is gone."""
        return 1 - self.parameters_after / max(self.parameters_before, 1)

    @property
    def removed_macs(self) -> float:
        """Share of the multiply-accumulates that is gone."""
        return 1 - self.macs_after / max(self.macs_before, 1)

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
            "macsBefore": self.macs_before,
            "macsAfter": self.macs_after,
            "removedMacs": self.removed_macs,
            "reached": self.reached,
            "sliceError": self.slice_error,
        }


def prune_program(
    ep: ExportedProgram,
    share: float,
    *,
    of: Cost = Cost.PARAMETERS,
    scope: PruneScope = PruneScope.GLOBAL,
    round_to: int = 8,
    max_cut: float = 0.9,
    normalized: bool = False,
    samples: tuple[Tensor, ...] | None = None,
) -> tuple[ExportedProgram, PruneReport]:
    """Remove the smallest channels until at least `share` of the parameters, or other cost, is gone.

    Convolution kernels work in blocks of 8 (AVX2) or 16 (AVX-512) channels: a size that is no multiple can be slower
    than the full layer.

    Args:
        ep: the program; it is not changed.
        share: share to remove, in (0, 1).
        of: what it is a share of.
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

    def choose(graph: ChannelGraph, groups: Sequence[Group]) -> Choice:
        cost = ParameterCount(graph) if of is Cost.PARAMETERS else MacCount(graph)
        return choose_share(graph, groups, share, scope, round_to, max_cut, cost)

    return _cut(ep, choose, samples, normalized=normalized)


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

    def choose(graph: ChannelGraph, groups: Sequence[Group]) -> Choice:
        return choose_width(graph, groups, width, round_to)

    return _cut(ep, choose, samples, normalized=normalized)


def _cut(
    ep: ExportedProgram, choose: Choose, samples: tuple[Tensor, ...] | None, *, normalized: bool
) -> tuple[ExportedProgram, PruneReport]:
    graph = ChannelGraph(unlift(ep))
    inputs = samples if samples is not None else example_inputs(ep)
    groups = [g for g in graph.groups if g.frozen is None and (normalized or not g.normalized)]
    choice = choose(graph, groups)
    unproved: list[Group] = []
    if cut_error(ep, _exact(choice, choice.groups), inputs) > tolerance(ep):
        # Two activations are multiplied, a channel is divided by, ...: leave those alone, and cut the rest.
        unproved = [g for g in groups if cut_error(ep, _exact(choice, [g]), inputs) > tolerance(ep)]
        choice = choose(graph, [g for g in groups if g not in unproved])
    exact = _exact(choice, choice.groups)
    parameters, macs = ParameterCount(graph), MacCount(graph)
    before, after = parameters(()), parameters(choice.removed)
    macs_before, macs_after = macs(()), macs(choice.removed)
    graph.remove(choice.removed)
    smaller = reexport(graph.gm, ep)
    if len(exact) == len(choice.removed):
        error = masked_error(ep, exact, smaller, inputs)
    else:
        # What LayerNorm sees changes with its width: prove the rest without.
        error = cut_error(ep, exact, inputs)
    if not error <= tolerance(ep):
        raise CutError(
            f"this model cannot be pruned: cutting channels out changes its answers by {error:.1e} of their range "
            f"beside zeroing the same weights (allowed: {tolerance(ep):.0e}). Leave the stage out, and report the "
            "model's operators, as a rule for one of them is wrong"
        )
    gone = set(choice.removed)
    report = PruneReport(
        groups=tuple(
            GroupCut(g.name, sum(c not in gone for c in g.channels.tolist()), len(g.channels), step)
            for g, step in zip(choice.groups, choice.multiples, strict=True)
        ),
        refused=_refused(graph.groups, choice.groups, unproved),
        blocked=graph.blocked,
        parameters_before=before,
        parameters_after=after,
        macs_before=macs_before,
        macs_after=macs_after,
        reached=choice.reached,
        slice_error=error if exact or not gone else None,
    )
    return smaller, report


def _exact(choice: Choice, groups: Sequence[Group]) -> list[int]:
    """Removed channels of these groups, of which zeroing is the same as cutting: LayerNorm does not see them."""
    open_to = {c for g in groups if not g.normalized for c in g.channels.tolist()}
    return [c for c in choice.removed if c in open_to]


def _refused(groups: Sequence[Group], chosen: Sequence[Group], unproved: Sequence[Group]) -> dict[str, int]:
    refused: dict[str, int] = {}
    for g in groups:
        if g.frozen == KERNEL or g in chosen:
            continue
        why = g.frozen or (f"{UNPROVED} ({g.name})" if g in unproved else NORMALIZED)
        refused[why] = refused.get(why, 0) + len(g.channels)
    return refused
