"""Which layers share weights: pairs in the order of their likeness, each kept only if the metric stands it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from pydantic import JsonValue

from lathe_api.data import Metric
from lathe_api.recipe import Fuse
from lathe_optimizers.errors import InputError
from lathe_optimizers.quality import LARGER_IS_BETTER

TRIALS: Final = 64
"""Pairs that are tried at the most; each costs two evaluations."""
DRAWS: Final = 3
"""Random choices that the chosen pairs are compared with."""
_SHOWN: Final = 20

State = TypeVar("State")


@dataclass(frozen=True)
class Pair:
    """Two layers of one shape, by their numbers."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class Shared:
    """A pair that shares weights from now on."""

    kept: int
    replaced: int
    similarity: float
    quality: float
    """Of the network with this pair and all before it."""


@dataclass(frozen=True)
class Choice(Generic[State]):
    """What was chosen."""

    state: State
    shared: tuple[Shared, ...]
    refused: tuple[Shared, ...]
    """Pairs that cost more than is allowed, each with the better of both directions."""


@dataclass(frozen=True)
class Network(Generic[State]):
    """How a kind of network is changed and judged."""

    merge: Callable[[State, int, int], State]
    """The network in which the second layer, and all that share with it, read the first one's weights."""
    together: Callable[[State, int, int], bool]
    """Whether two layers share weights already."""
    quality: Callable[[State], float]
    metric: Metric

    def loss(self, before: float, after: float) -> float:
        """How much worse the metric got; negative where it got better."""
        return before - after if self.metric in LARGER_IS_BETTER else after - before


def choose(
    network: Network[State],
    start: State,
    pairs: Sequence[Pair],
    top_k: int,
    limit: float | None,
    report: Callable[[float], None],
) -> Choice[State]:
    """Share up to `top_k` pairs, the most similar first; of both weights of a pair those stay that answer better.

    Args:
        network: how the network is changed and judged.
        start: the network.
        pairs: all that could share.
        top_k: how many pairs are shared at the most.
        limit: how much worse the metric may get in all; None for any loss.
        report: told the share of the work that is done.
    """
    before, state = network.quality(start), start
    shared: list[Shared] = []
    refused: list[Shared] = []
    for pair in sorted(pairs, key=lambda p: (-p.similarity, p.first, p.second)):
        if len(shared) == top_k or len(shared) + len(refused) == TRIALS:
            break
        if network.together(state, pair.first, pair.second):
            continue
        tried = []
        for kept, replaced in ((pair.first, pair.second), (pair.second, pair.first)):
            candidate = network.merge(state, kept, replaced)
            tried.append((candidate, Shared(kept, replaced, pair.similarity, network.quality(candidate))))
        candidate, found = min(tried, key=lambda t: network.loss(before, t[1].quality))
        # Half a millionth for rounding: a drop of 0.02 may come out as 0.020000000000000018.
        if limit is not None and not network.loss(before, found.quality) <= limit + 5e-7:
            refused.append(found)
            continue
        state = candidate
        shared.append(found)
        report(len(shared) / top_k)
    return Choice(state, tuple(shared), tuple(refused))


def at_random(network: Network[State], start: State, pairs: Sequence[Pair], count: int, seed: int) -> list[float]:
    """The metric of networks in which as many pairs share that were drawn without looking at their likeness."""
    found = []
    for draw in range(DRAWS):
        rng, state, done = np.random.default_rng([seed, draw]), start, 0
        for index in rng.permutation(len(pairs)):
            if done == count:
                break
            sides = (pairs[index].first, pairs[index].second)
            kept, replaced = sides if rng.random() < 0.5 else sides[::-1]  # noqa: PLR2004 - a coin
            if not network.together(state, kept, replaced):
                state = network.merge(state, kept, replaced)
                done += 1
        found.append(network.quality(state))
    return found


def described(
    names: Sequence[str], pairs: Sequence[Pair], choice: Choice[State], random: Sequence[float], before: float
) -> dict[str, JsonValue]:
    """As JSON, for the record of a stage."""

    def told(found: Shared) -> dict[str, JsonValue]:
        return {
            "kept": names[found.kept],
            "replaced": names[found.replaced],
            "similarity": found.similarity,
            "quality": found.quality,
        }

    most = sorted(pairs, key=lambda p: (-p.similarity, p.first, p.second))[:_SHOWN]
    return {
        "candidates": len(pairs),
        "mostSimilar": [{"layers": [names[p.first], names[p.second]], "similarity": p.similarity} for p in most],
        "shared": [told(s) for s in choice.shared],
        "refused": [told(s) for s in choice.refused],
        "qualityBefore": before,
        "qualityShared": choice.shared[-1].quality,
        "randomPairs": {"pairs": len(choice.shared), "quality": list(random), "mean": float(np.mean(random))},
    }


def warnings(
    config: Fuse, choice: Choice[State], random: Sequence[float], network: Network[State], before: float
) -> tuple[str, ...]:
    """What a person should know about the choice."""
    found = []
    if len(choice.shared) < config.top_k:
        why = f"{len(choice.refused)} cost more than maxDrop allows" if choice.refused else "there are no more"
        found.append(f"{len(choice.shared)} of {config.top_k} pairs share weights: of the others, {why}.")
    after, mean = choice.shared[-1].quality, float(np.mean(random))
    if network.loss(before, after) >= network.loss(before, mean):
        found.append(
            f"Pairs drawn at random cost no more ({mean:.4f} beside {after:.4f}): "
            "that these layers are alike does not help here."
        )
    return tuple(found)


def no_pairs(where: str, names: Sequence[str]) -> InputError:
    """Why nothing can be shared, where no shapes are equal."""
    shown = ", ".join(names[:_SHOWN]) or "no layers with weights"
    return InputError(
        f"{where}.method",
        f"a model without two layers of equal shape ({shown})",
        "Remove the stage: only weights of equal shape can be shared.",
    )


def none_within(where: str, config: Fuse, names: Sequence[str], choice: Choice[State], before: float) -> InputError:
    """Why nothing was shared, where every pair costs too much."""
    nearest = min(choice.refused, key=lambda s: abs(s.quality - before))
    return InputError(
        f"{where}.maxDrop",
        f"{config.max_drop}, which none of {len(choice.refused)} pairs stays within: {names[nearest.kept]} and "
        f"{names[nearest.replaced]} come nearest, with {nearest.quality:.4f} after {before:.4f}",
        "Allow more, or leave maxDrop out, add finetune and let a gate decide; or remove the stage.",
    )
