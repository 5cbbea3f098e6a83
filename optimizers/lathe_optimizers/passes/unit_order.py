"""Hidden units of a network in another order: the same function, with weights that can be compared to another layer's.

Which indices of which weights belong to a unit is known from `channels`. What a rule there allows to be removed is not
always free to change places (groups, heads), so that every change of order is proven on the network's answers.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from lathe_optimizers.context import Array
from lathe_optimizers.passes import parity
from lathe_optimizers.passes.atoms import Indices
from lathe_optimizers.passes.channel_rules_base import tensor_at
from lathe_optimizers.passes.channels import ChannelGraph

TOLERANCE: Final = 1e-4
"""Largest difference of an answer, relative to the answers' range: sums in another order."""


def free_units(graph: ChannelGraph, weight: str, other: str) -> Indices | None:
    """The units that are the outputs of a layer, if they can change places without moving those of another layer.

    Args:
        graph: channels of the network.
        weight: path of the layer's weight.
        other: path of the weight that must stay as it is.

    Returns:
        One class per output, or None where an output is also an output or input of `other`, cannot be followed, or is
        the network's own.
    """
    by_path = {id(tensor_at(graph.gm, w.path)): w for w in graph.weights}
    own, fixed = (by_path.get(id(tensor_at(graph.gm, path))) for path in (weight, other))
    if own is None or fixed is None:
        return None
    units = own.roots[0]
    if len(np.unique(units)) != len(units) or any(np.isin(units, roots).any() for roots in fixed.roots):
        return None
    stuck = {c for g in graph.groups if g.frozen is not None for c in g.channels.tolist()}
    return None if stuck & set(units.tolist()) else units


def reorder(graph: ChannelGraph, units: Indices, order: NDArray[np.int64]) -> bool:
    """Let the unit at `order[i]` take the place of unit i in all weights, in place.

    Returns:
        False, with nothing changed, where units own different numbers of indices.
    """
    moved: dict[str, Tensor] = {}
    for weight in graph.weights:
        tensor, changed = weight.tensor.detach(), False
        for dim, roots in enumerate(weight.roots):
            index = _moved(roots, units, order)
            if index is None:
                return False
            if not np.array_equal(index, np.arange(len(index))):
                tensor, changed = tensor.index_select(dim, torch.from_numpy(index)), True
        if changed:
            moved[weight.path] = tensor
    with torch.no_grad():
        for path, tensor in moved.items():
            tensor_at(graph.gm, path).copy_(tensor)
    return True


def _moved(roots: Indices, units: Indices, order: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Which index of a dimension each index is taken from; None where two units own different numbers of them."""
    index = np.arange(len(roots), dtype=np.int64)
    places = {int(unit): np.flatnonzero(roots == unit) for unit in units}
    for i, unit in enumerate(units.tolist()):
        source = places[int(units[order[i]])]
        if len(source) != len(places[unit]):
            return None
        index[places[unit]] = source
    return index


def same_function(before: fx.GraphModule, after: fx.GraphModule, probe: Sequence[Array], batch: int) -> bool:
    """Whether two networks give the same answers."""
    answers = (parity.program_answers(network, probe, batch) for network in (before, after))
    return parity.difference(*answers) <= TOLERANCE
