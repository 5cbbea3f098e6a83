"""The study: every combination at most once, equal searches for equal seeds, and going on after a stop."""

import pytest
from support.searches import METHODS, SHARES, searching

from lathe_api.searchresult import Trial, TrialCheck, TrialState, TrialValue
from lathe_optimizers.errors import StoreError
from lathe_optimizers.search.space import Space
from lathe_optimizers.search.study import opened
from lathe_optimizers.store import Store

SAMPLERS = ["Tpe", "Grid", "Random"]


def result(space, candidate, number):
    """Large shares are good; the largest one does not pass."""
    choices = space.search.choices
    values = tuple(
        TrialValue(stage=c.stage, field=c.field, value=v) for c, v in zip(choices, candidate.values, strict=True)
    )
    passes = candidate.values[0] != "0.7"
    return Trial(
        number=number,
        values=values,
        state=TrialState.PASSED if passes else TrialState.STOPPED,
        check=None if passes else TrialCheck.QUALITY,
        reason="",
        missed_by=None if passes else 0.2,
        seconds=1,
        goals=(float(candidate.values[0]),) if passes else (),
    )


def go_on(store, space, count, seed=0):
    """Up to `count` more trials; what was tried in them."""
    tried = []
    with opened(store, "sha256:abc", space, seed, lambda: None) as study:
        for _ in range(count):
            candidate = study.ask()
            if candidate is None:
                break
            study.tell(result(space, candidate, len(study.trials) + 1))
            tried.append(candidate.values)
    return tried


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_combination_is_tried_once_and_then_the_search_ends(sampler, tmp_path):
    space = Space(searching(SHARES, METHODS, sampler=sampler))
    tried = go_on(Store(str(tmp_path)), space, 20)
    assert sorted(tried) == sorted(space.values(i) for i in range(6))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_search_ends_like_one_that_was_not(sampler, tmp_path):
    space = Space(searching(SHARES, METHODS, sampler=sampler, maxTrials=6))
    whole = go_on(Store(str(tmp_path / "whole")), space, 6)

    store = Store(str(tmp_path / "parts"))
    first = go_on(store, space, 2)
    with opened(store, "sha256:abc", space, 0, lambda: None) as study:
        assert study.ask() is not None  # and is killed while it tries this
    assert [*first, *go_on(store, space, 20)] == whole


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    space = Space(searching(SHARES, METHODS))
    store = Store(str(tmp_path))
    first = go_on(store, space, 3)
    (journal,) = tmp_path.glob("searches/*/journal.log")
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker')
    assert len({*first, *go_on(store, space, 20)}) == 6
    assert go_on(store, space, 20) == []


def test_a_damaged_journal_is_named(tmp_path):
    space = Space(searching(SHARES, METHODS))
    go_on(Store(str(tmp_path)), space, 2)
    (journal,) = tmp_path.glob("searches/*/journal.log")
    journal.write_bytes(b"nonsense\n" + journal.read_bytes())
    with pytest.raises(StoreError, match=r"journal\.log: the journal is damaged"):
        go_on(Store(str(tmp_path)), space, 1)


def test_another_seed_is_another_order(tmp_path):
    space = Space(searching(SHARES, METHODS, sampler="Random"))
    orders = {tuple(go_on(Store(str(tmp_path / str(seed))), space, 6, seed)) for seed in range(4)}
    assert len(orders) > 1


def test_the_grid_goes_in_the_order_of_the_document(tmp_path):
    space = Space(searching(SHARES, METHODS, sampler="Grid"))
    assert go_on(Store(str(tmp_path)), space, 3) == [("0.3", "Static"), ("0.3", "Float16"), ("0.5", "Static")]


def test_a_search_in_an_object_store_goes_on_too(tmp_path):
    uri = f"local://{tmp_path}/bucket"
    space = Space(searching(SHARES, METHODS))
    first = go_on(Store(uri, tmp_path / "one"), space, 4)
    then = go_on(Store(uri, tmp_path / "two"), space, 20)
    assert len(first) == 4
    assert len({*first, *then}) == 6


def test_the_estimator_leads_to_what_is_good(tmp_path):
    shares = SHARES | {"values": [f"0.{n:02}" for n in range(5, 69, 2)]}
    rounds = {"stage": "slim", "field": "prune.roundTo", "values": [str(n) for n in range(1, 9)]}
    space = Space(searching(shares, rounds, maxTrials=40))
    tried = [float(v[0]) for v in go_on(Store(str(tmp_path)), space, 40)]
    assert sum(tried[20:]) / 20 > sum(tried[:13]) / 13
