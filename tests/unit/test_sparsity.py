"""Which weights go, by method."""

import numpy as np
import pytest

from lathe_api.recipe import Prune
from lathe_optimizers.passes import sparsity

RNG = np.random.default_rng(0)
WEIGHTS = {
    "stem": RNG.normal(size=(8, 3, 3, 3)).astype(np.float32),
    "middle": 10 * RNG.normal(size=(16, 8, 3, 3)).astype(np.float32),
    "head": RNG.normal(size=(10, 64)).astype(np.float32),
}


def config(method, **settings):
    return Prune.model_validate({"method": method, **settings})


def gone(masks):
    return {name: 1 - mask.mean() for name, mask in masks.items()}


@pytest.mark.parametrize("method", ["MagnitudeUnstructured", "RandomUnstructured"])
def test_every_layer_loses_the_same_share(method):
    masks = sparsity.kept(WEIGHTS, config(method, sparsity="0.75"), 0.75, seed=0)
    assert gone(masks) == pytest.approx(dict.fromkeys(WEIGHTS, 0.75), abs=0.005)


def test_the_smallest_go():
    masks = sparsity.kept(WEIGHTS, config("MagnitudeUnstructured", sparsity="0.5"), 0.5, seed=0)
    for name, mask in masks.items():
        sizes = np.abs(WEIGHTS[name])
        assert sizes[~mask].max() <= sizes[mask].min()


def test_layers_of_small_weights_lose_more_when_all_compete():
    masks = sparsity.kept(WEIGHTS, config("GlobalMagnitude", sparsity="0.5"), 0.5, seed=0)
    total = sum(m.size for m in masks.values())
    assert sum(int((~m).sum()) for m in masks.values()) == round(total / 2)
    assert gone(masks)["stem"] > 0.8
    assert gone(masks)["middle"] < 0.5


@pytest.mark.parametrize("method", ["MagnitudeUnstructured", "RandomUnstructured", "GlobalMagnitude"])
def test_what_went_at_a_smaller_share_goes_at_a_larger_one(method):
    few, many = (sparsity.kept(WEIGHTS, config(method, sparsity="0.9"), share, seed=3) for share in (0.3, 0.9))
    assert all((few[name] | ~many[name]).all() for name in WEIGHTS)


def test_a_seed_draws_the_same_and_another_seed_others():
    first, again, other = (
        sparsity.kept(WEIGHTS, config("RandomUnstructured", sparsity="0.5"), 0.5, seed)["head"] for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(("pattern", "keep", "block"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_each_block_of_inputs_keeps_its_largest(pattern, keep, block):
    weights = {"layer": WEIGHTS["head"], "convolution": WEIGHTS["middle"]}
    masks = sparsity.kept(weights, config("NM", pattern=pattern), 0, seed=0)
    for name, mask in masks.items():
        blocks = np.moveaxis(mask, 1, -1).reshape(-1, block)
        sizes = np.moveaxis(np.abs(weights[name]), 1, -1).reshape(-1, block)
        assert (blocks.sum(1) == keep).all()
        assert (np.where(blocks, sizes, np.inf).min(1) >= np.where(blocks, 0, sizes).max(1)).all()


def test_inputs_that_fill_no_block_stay():
    masks = sparsity.kept({"a": WEIGHTS["stem"], "b": WEIGHTS["head"][:, :6]}, config("NM", pattern="2:4"), 0, seed=0)
    assert masks["a"].all()
    assert masks["b"][:, 4:].all()
    assert masks["b"][:, :4].mean() == 0.5


def test_the_schedule_is_fast_at_first_and_ends_at_the_target():
    shares = [sparsity.cubic(0.8, p) for p in (0, 0.25, 0.5, 1, 2)]
    assert shares[0] == 0
    assert shares[3] == shares[4] == 0.8
    assert shares[1] > 0.4
    assert shares == sorted(shares)


def test_the_target_of_a_pattern_is_what_it_leaves_out():
    assert sparsity.target(config("NM", pattern="2:4")) == 0.5
    assert sparsity.target(config("GlobalMagnitude", sparsity="0.8")) == 0.8
