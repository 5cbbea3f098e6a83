"""Which channel indices of a network live and die together: a union-find over single indices.

Every index of every dimension of every weight is an *atom*. An operator that ties two dimensions unifies their atoms
index by index; an operator through which a removal cannot be followed freezes the atoms that reach it. A class of
atoms that nobody froze is a channel that can be removed, with all its indices in all weights. Grouped convolutions,
concatenation, channel shuffle, attention heads and tied weights need no cases of their own in this form. The idea of
dependency groups is that of DepGraph (Fang et al. 2023, arXiv:2301.12900).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Labels = Indices | None
"""The atoms along one dimension of a tensor, one per index; None: the dimension is not followed."""
Dims = list[Labels]
"""One entry per dimension of a tensor."""


class Atoms:
    """Union-find over channel indices. A class keeps the first reason for which it was frozen."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int, reason: str | None = None) -> Indices:
        """`count` atoms, each a class of its own, frozen if a reason is given."""
        ids = np.arange(len(self._parent), len(self._parent) + count, dtype=np.int64)
        self._parent.extend(ids.tolist())
        if reason is not None:
            self.freeze(ids, reason)
        return ids

    def find(self, atom: int) -> int:
        """The representative of the atom's class."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def roots(self, labels: Indices) -> Indices:
        """The representative of each label's class."""
        return np.array([self.find(a) for a in labels.tolist()], dtype=np.int64)

    def union(self, a: Indices, b: Indices) -> None:
        """Unify the classes of `a[i]` and `b[i]` for every i; a class is frozen if either part was."""
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            root, other = self.find(x), self.find(y)
            if root != other:
                self._parent[other] = root
                reason = self._frozen.pop(other, None)
                if reason is not None:
                    self._frozen.setdefault(root, reason)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid the removal of these classes. Dimensions that are not followed are ignored."""
        if labels is not None:
            for atom in labels.tolist():
                self._frozen.setdefault(self.find(atom), reason)

    def frozen(self, root: int) -> str | None:
        """Why the class of this representative stays; None if it may be removed."""
        return self._frozen.get(root)


@dataclass(frozen=True)
class Slot:
    """A dimension of a weight."""

    path: str
    """Attribute path of the weight (`layers.0.conv.weight`)."""
    dim: int


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that sit in the same slots: the outputs of a layer together with all that produces and consumes them."""

    slots: tuple[Slot, ...]
    """In the order in which the weights are declared; the first names the group."""
    channels: Indices
    """Class representatives, in index order."""
    frozen: str | None = None
    """Why none of them may be removed."""
    normalized: bool = False
    """Whether LayerNorm takes its statistics over these channels, so that removing some changes the rest."""
    multiplicity: int = 1
    """Indices that a channel owns in its narrowest slot: 4 for an attention head of size 4."""

    @property
    def name(self) -> str:
        """Module path of the layer whose outputs these are (`layers.0.conv`)."""
        slot = next((s for s in self.slots if s.dim == 0), self.slots[0])
        return slot.path.rpartition(".")[0] or slot.path
