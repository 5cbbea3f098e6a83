"""Combinations of choices: what they mean, which are possible, and what is wrong at load."""

import pytest
from pydantic import ValidationError
from support.searches import DISTILL, METHODS, PRUNE, QUANTIZE, SHARES, searching

from lathe_api import choices
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.search import Search
from lathe_optimizers.errors import InputError
from lathe_optimizers.search.driver import checked
from lathe_optimizers.search.space import Candidate, Impossible, Space


def test_indices_name_every_combination_once():
    space = Space(searching(SHARES, METHODS))
    assert space.total == 6
    everything = [space.values(i) for i in range(6)]
    assert everything[0] == ("0.3", "Static")
    assert everything[-1] == ("0.7", "Float16")
    assert len(set(everything)) == 6
    assert [space.index(v) for v in everything] == list(range(6))


def test_a_combination_is_the_document_with_its_values_and_the_constraints_as_gates():
    space = Space(searching(SHARES, METHODS, constraints=[{"metric": "accuracy", "min": "0.9"}]))
    found = space.look(3)
    assert isinstance(found, Candidate)
    slim, int8 = found.document.spec.recipe.stages
    assert slim.prune.parameters == "0.5"
    assert int8.quantize.method == "Float16"
    assert found.document.spec.search is None
    (gate,) = found.document.spec.gates
    assert (gate.metric, gate.min) == ("accuracy", "0.9")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        pytest.param("prune.roundTo", "16", 16, id="a whole number"),
        pytest.param("prune.maxCut", "0.4", "0.4", id="a decimal"),
        pytest.param("quantize.method", "Dynamic", "Dynamic", id="a word"),
        pytest.param("quantize.exclude", '["head"]', ["head"], id="a list"),
        pytest.param("distill.losses[0].temperature", "4", "4", id="within a list"),
        pytest.param("prune.finetune.epochs", "3", 3, id="within an optional block"),
    ],
)
def test_values_are_read_as_their_field_takes_them(field, text, value):
    assert choices.parsed(field, text) == value


def test_a_value_in_a_block_that_the_recipe_leaves_out_makes_the_block():
    epochs = {"stage": "slim", "field": "prune.finetune.epochs", "values": ["1", "2"]}
    found = Space(searching(epochs)).look(1)
    assert isinstance(found, Candidate)
    assert found.document.spec.recipe.stages[0].prune.finetune.epochs == 2


@pytest.mark.parametrize(
    ("listed", "where", "words"),
    [
        pytest.param(SHARES | {"stage": "slimm"}, ("stage",), "name a stage of the recipe: student, slim, int8",
                     id="no such stage"),
        pytest.param(SHARES | {"field": "prune.share"}, ("field",), "no such setting; known in `prune`: method",
                     id="no such field"),
        pytest.param(SHARES | {"field": "name"}, ("field",), "name a setting below `prune`", id="the name"),
        pytest.param(SHARES | {"field": "quantize.method"}, ("field",), "name a setting below `prune`",
                     id="of another type"),
        pytest.param(SHARES | {"values": ["0.3", "1.5"]}, ("values", 1), "more than 0 and less than 1",
                     id="beyond its bound"),
        pytest.param(SHARES | {"values": ["half", "0.5"]}, ("values", 0), "number", id="no number"),
        pytest.param({"stage": "student", "field": "distill.student.uri", "values": ["a.pt2", "b.pt2"]}, ("field",),
                     "files are not searched", id="a file"),
        pytest.param(METHODS | {"values": ["Static", "Statik"]}, ("values", 1), "did you mean Static?", id="misspelt"),
        pytest.param({"stage": "slim", "field": "prune.roundTo", "values": ["8", "x"]}, ("values", 1),
                     "write a whole number", id="no whole number"),
        pytest.param({"stage": "slim", "field": "prune.roundTo", "values": ["8", "08"]}, ("values", 1),
                     "write each value once", id="the same twice"),
        pytest.param({"stage": "student", "field": "distill.losses[2].weight", "values": ["0.1", "0.2"]}, ("field",),
                     "no entry 2", id="beyond the list"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_choice_is_told_at_load(listed, where, words):
    with pytest.raises(ValidationError) as caught:
        searching(listed, stages=(DISTILL, PRUNE, QUANTIZE))
    (error,) = caught.value.errors()
    assert error["loc"] == ("spec", "search", "choices", 0, *where)
    assert words in error["ctx"]["remedy"]


def test_combinations_that_contradict_themselves_or_the_data_are_left_out_with_the_reason():
    method = {"stage": "int8", "field": "quantize.method", "values": ["Static", "QuantizationAware"]}
    space = Space(searching(method, train=False, stages=(QUANTIZE,)))
    census = space.census()
    assert (census.total, census.possible) == (2, 1)
    assert "data.train" in census.reasons[0]


def test_a_combination_that_this_version_cannot_do_is_left_out_with_the_reason():
    def refuse(candidate: OptimizedModel) -> None:
        if candidate.spec.recipe.stages[1].quantize.method == "Float16":
            raise InputError("spec.recipe", "no Float16 here", "Write Static")

    space = Space(searching(METHODS), refuse)
    assert space.census().reasons == ("spec.recipe: no Float16 here. Write Static",)


@pytest.mark.parametrize(
    ("stages", "gate", "reason"),
    [
        pytest.param([QUANTIZE], {"metric": "sizeRatio", "min": "5.1"}, "Static keeps 8 of 32 bits", id="bits"),
        pytest.param([QUANTIZE], {"metric": "sizeRatio", "min": "4.9"}, None, id="within the slack"),
        pytest.param([PRUNE, QUANTIZE], {"metric": "sizeRatio", "min": "50"}, None, id="channels go"),
        pytest.param([DISTILL], {"metric": "sizeRatio", "min": "50"}, None, id="a smaller student"),
        pytest.param([], {"metric": "sizeRatio", "min": "2"}, "no stage takes bits or weights away", id="export only"),
        pytest.param([], {"metric": "int8Coverage", "min": "0.5"}, "no stage makes integers", id="no integers"),
        pytest.param([QUANTIZE], {"metric": "int8Coverage", "min": "0.5"}, None, id="integers"),
        pytest.param([QUANTIZE], {"metric": "sizeRatio", "max": "50"}, None, id="another end"),
    ],
)
def test_only_what_arithmetic_proves_is_out_of_reach(stages, gate, reason):
    export = {"name": "onnx", "type": "Export", "export": {}}
    opsets = {"stage": "onnx", "field": "export.opset", "values": ["19", "20"]}
    found = Space(searching(opsets, stages=(*stages, export), gates=[{"name": "bound", **gate}])).look(0)
    if reason is None:
        assert isinstance(found, Candidate)
    else:
        assert isinstance(found, Impossible)
        assert reason in found.reason


def test_a_search_without_any_possible_combination_is_refused():
    space = Space(searching(METHODS, stages=(QUANTIZE,), gates=[{"name": "g", "metric": "sizeRatio", "min": "9"}]))
    with pytest.raises(InputError, match="none of the 2 combinations is possible"):
        checked(space)


def test_trials_at_the_same_time_are_refused():
    with pytest.raises(InputError, match="parallelism"):
        checked(Space(searching(METHODS, parallelism=2)))


def test_a_large_space_is_not_counted():
    many = [
        {"stage": "slim", "field": f"prune.{name}", "values": [f"0.{n:02}" for n in range(10, 42)]}
        for name in ("parameters", "maxCut")
    ]
    rounds = {"stage": "slim", "field": "prune.roundTo", "values": ["4", "8"]}
    census = Space(searching(*many, rounds)).census()
    assert (census.total, census.possible) == (2048, None)


def test_goals_have_the_end_that_fits_their_metric():
    search = Search.model_validate({
        "choices": [SHARES], "goals": [{"metric": "rmse"}, {"metric": "sizeRatio"}],
    })  # fmt: skip
    from lathe_optimizers.search.picking import direction

    assert [direction(g) for g in search.goals] == ["Minimize", "Maximize"]
