"""Which results are worth keeping when several things are to be good at once. Pure."""

import math
from collections.abc import Sequence


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is at least as good in everything and better in something; larger is better."""
    return all(a >= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def front(points: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Places of the points that no other point dominates, in order; of equal points the first.

    Args:
        points: of one length each; larger is better.
    """
    return tuple(
        index
        for index, point in enumerate(points)
        if not any(dominates(other, point) for other in points)
        and not any(tuple(other) == tuple(point) for other in points[:index])
    )


def thinned(points: Sequence[Sequence[float]], limit: int) -> tuple[int, ...]:
    """At most `limit` of the points, in order: one of a crowded neighbourhood at a time goes.

    How lonely a point is, is its crowding distance (Deb et al., NSGA-II, IEEE TEC 6(2), 2002): over each dimension the
    gap between its neighbours, as a share of the range; the ends are kept.
    """
    kept = list(range(len(points)))
    while len(kept) > max(limit, 0):
        distances = _crowding([points[i] for i in kept])
        # Of equals the later one goes.
        kept.pop(min(range(len(kept)), key=lambda place: (distances[place], -place)))
    return tuple(kept)


def _crowding(points: Sequence[Sequence[float]]) -> list[float]:
    found = [0.0] * len(points)
    for dimension in range(len(points[0])):
        order = sorted(range(len(points)), key=lambda i: points[i][dimension])
        low, high = points[order[0]][dimension], points[order[-1]][dimension]
        found[order[0]] = found[order[-1]] = math.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                found[here] += (points[after][dimension] - points[before][dimension]) / (high - low)
    return found
