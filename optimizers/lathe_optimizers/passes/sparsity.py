"""Which single weights go. Pure: numpy arrays in, masks out.

Weights are given with output channels first and input channels second, whatever follows.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from lathe_api.recipe import Prune, PruneMethod

Weights = Mapping[str, NDArray[np.float32]]
Mask = NDArray[np.bool_]
NO_SPEED: Final = (
    "Zeros do not make ONNX Runtime faster, on no CPU: they compress well, for transport. For speed, prune by "
    "StructuredMagnitude, which removes channels."
)


def target(config: Prune) -> float:
    """Share of the weights that is to be zero."""
    if config.pattern is not None:
        kept, block = _pattern(config)
        return 1 - kept / block
    return float(config.sparsity or 0)


def kept(weights: Weights, config: Prune, share: float, seed: int) -> dict[str, Mask]:
    """Which weights stay when `share` of them go.

    MagnitudeUnstructured takes the smallest of each layer, GlobalMagnitude of the network, RandomUnstructured any of
    each layer (those of a smaller share are among those of a larger one). NM keeps the n largest of each m inputs at
    one place of the kernel (Mishra et al. 2021, arXiv:2104.08378); inputs that do not fill a block stay.
    """
    match config.method:
        case PruneMethod.N_M:
            return {name: _blocks(np.abs(w), *_pattern(config)) for name, w in weights.items()}
        case PruneMethod.RANDOM_UNSTRUCTURED:
            return {name: _largest(_noise(w.shape, name, seed), share) for name, w in weights.items()}
        case PruneMethod.GLOBAL_MAGNITUDE:
            together = _largest(np.concatenate([np.abs(w).ravel() for w in weights.values()]), share)
            ends = np.cumsum([w.size for w in weights.values()])[:-1]
            parts = np.split(together, ends)
            return {n: p.reshape(w.shape) for (n, w), p in zip(weights.items(), parts, strict=True)}
        case _:
            return {name: _largest(np.abs(w), share) for name, w in weights.items()}


def described(masks: Mapping[str, Mask]) -> dict[str, JsonValue]:
    """Which share of the weights is gone, in all and by layer, for the record of a stage."""
    total = sum(mask.size for mask in masks.values())
    stay = sum(int(mask.sum()) for mask in masks.values())
    return {"zeros": 1 - stay / total, "layers": {name: float(1 - mask.mean()) for name, mask in masks.items()}}


def cubic(final: float, position: float) -> float:
    """Share at a position 0..1 of the schedule: fast at first, slow at the end (Zhu & Gupta 2017, arXiv:1710.01878)."""
    return final * (1 - (1 - min(1.0, position)) ** 3)


def _largest(score: NDArray[Any], share: float) -> Mask:
    gone = round(score.size * share)
    mask = np.ones(score.size, bool)
    # Stable, so that equal scores go in the same order everywhere.
    mask[np.argsort(score.ravel(), kind="stable")[:gone]] = False
    return mask.reshape(score.shape)


def _blocks(score: NDArray[Any], keep: int, block: int) -> Mask:
    mask = np.ones(score.shape, bool)
    inputs = score.shape[1] // block * block
    if not inputs:
        return mask
    # Blocks along the inputs, the places of the kernel apart.
    parts = np.moveaxis(score[:, :inputs], 1, -1).reshape(-1, block)
    inside = np.zeros(parts.shape, bool)
    np.put_along_axis(inside, np.argsort(-parts, axis=1, kind="stable")[:, :keep], values=True, axis=1)
    others = (score.shape[0], *score.shape[2:], inputs)
    mask[:, :inputs] = np.moveaxis(inside.reshape(others), -1, 1)
    return mask


def _noise(shape: tuple[int, ...], name: str, seed: int) -> NDArray[np.float64]:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).random(shape)


def _pattern(config: Prune) -> tuple[int, int]:
    keep, _, block = str(config.pattern).partition(":")
    return int(keep), int(block)
