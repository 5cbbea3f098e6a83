"""How much alike two layers are. Pure: numpy arrays in, numbers out; 1 is equal, higher is more alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def cosine(a: Floats, b: Floats) -> float:
    """Cosine of the angle between two weights of one shape, taken as vectors; 0 where one of them is zero."""
    first, second = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else 0.0


def alignment(a: Floats, b: Floats) -> NDArray[np.int64]:
    """Which output of `b` stands for each output of `a`: `b[alignment(a, b)]` has the largest cosine with `a`.

    Networks whose hidden units are in another order compute the same, so that weights are compared in the best order
    (Ainsworth et al. 2022, arXiv:2209.04836, section 3.2, for one layer).

    Args:
        a: weights, outputs first.
        b: weights of the same shape.
    """
    first, second = (w.astype(np.float64).reshape(len(w), -1) for w in (a, b))
    return assignment(-(first @ second.T))


def assignment(cost: Floats) -> NDArray[np.int64]:
    """For each row a column of its own such that the sum of the costs is the least, in O(n³).

    Shortest augmenting paths with potentials (Jonker and Volgenant 1987, doi:10.1007/BF02278710).

    Args:
        cost: square and finite.
    """
    size = len(cost)
    row_price, column_price = np.zeros(size + 1), np.zeros(size + 1)
    # Column `size` stands for the start of a path; `size` in `owner` for a column without a row.
    owner = np.full(size + 1, size, dtype=np.int64)
    for row in range(size):
        owner[size], column = row, size
        shortest, came_from = np.full(size, np.inf), np.full(size, size, dtype=np.int64)
        seen = np.zeros(size + 1, dtype=np.bool_)
        while owner[column] != size:
            seen[column] = True
            here = owner[column]
            open_ = ~seen[:size]
            reached = cost[here] - row_price[here] - column_price[:size]
            nearer = open_ & (reached < shortest)
            shortest[nearer], came_from[nearer] = reached[nearer], column
            following = int(np.where(open_, shortest, np.inf).argmin())
            step = shortest[following]
            row_price[owner[seen]] += step
            column_price[seen] -= step
            shortest[open_] -= step
            column = following
        while column != size:
            before = came_from[column]
            owner[column], column = owner[before], before
    found = np.empty(size, dtype=np.int64)
    found[owner[:size]] = np.arange(size)
    return found


def cka(a: Floats, b: Floats) -> float:
    """Linear centred kernel alignment of two layers' activations on the same samples.

    It does not depend on the order, rotation or scale of features (Kornblith et al. 2019, arXiv:1905.00414, section 3).

    Args:
        a: (samples, features).
        b: (samples, features), of any number of features.

    Returns:
        0 to 1; 0 where one of them is constant.
    """
    first, second = (x.astype(np.float64) - x.astype(np.float64).mean(0) for x in (a, b))
    shared = float(((first.T @ second) ** 2).sum())
    own = float(np.sqrt(((first.T @ first) ** 2).sum() * ((second.T @ second) ** 2).sum()))
    return shared / own if own else 0.0


def influence(before: Floats, after: Floats) -> float:
    """Block influence: 1 minus the mean cosine between what enters a block and what leaves it.

    Near 0 the block hardly changes its input (Men et al. 2024, arXiv:2403.03853, equation 1).

    Args:
        before: (vectors, features).
        after: the same shape.
    """
    first, second = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(1)
    return 1 - float(np.mean(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)))


def equal_shapes(shapes: Sequence[object]) -> list[tuple[int, int]]:
    """Indices of all pairs with equal descriptions, the earlier first."""
    return [(i, j) for i in range(len(shapes)) for j in range(i + 1, len(shapes)) if shapes[i] == shapes[j]]
