"""Choosing a model among documents, and putting the recipe in that it refers to."""

import pytest
from support.yaml_documents import EVALUATION, PRUNE, STATIC, document

from lathe_api.documents import load_text, presets, resolve_recipe, select_model
from lathe_api.errors import DocumentError
from lathe_api.recipe import PruneMethod, QuantizeMethod, StageType

SHIPPED = ["cnn-int8", "edge", "encoder-int8", "tabular"]
REF = {"recipe": "{ref: {name: house}}"}


def recipe(name="house", kind="OptimizationRecipe", stage=PRUNE, namespace="") -> str:
    place = f", namespace: {namespace}" if namespace else ""
    head = f"apiVersion: lathe.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{place}}}\n"
    return f"{head}spec:\n  stages:\n  - {stage}\n"


def named(sections, name) -> str:
    return document(sections).replace("{name: digits}", f"{{name: {name}, namespace: vision}}")


def resolved(*texts):
    documents = load_text("---\n".join(texts))
    return resolve_recipe(select_model(documents), documents)


def test_all_presets_are_shipped():
    assert sorted(presets()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_fits_a_model_with_a_training_set(name):
    model = resolved(document({"recipe": f"{{ref: {{name: {name}}}}}"}))
    assert model.spec.recipe.ref is None
    assert model.spec.recipe.stages == presets()[name].spec.stages
    assert presets()[name].spec.description


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_uses_methods_for_any_exported_network(name):
    for stage in presets()[name].spec.stages:
        assert stage.type in (StageType.DISTILL, StageType.PRUNE, StageType.QUANTIZE, StageType.EXPORT)
        assert stage.prune is None or stage.prune.method is PruneMethod.STRUCTURED_MAGNITUDE
        assert stage.quantize is None or stage.quantize.method in (
            QuantizeMethod.STATIC,
            QuantizeMethod.QUANTIZATION_AWARE,
        )


def test_a_model_with_stages_of_its_own_stays_as_it_is():
    [model] = load_text(document({}))
    assert resolve_recipe(model) is model


def test_a_recipe_of_the_same_files_is_found():
    model = resolved(document(REF), recipe())
    assert [s.name for s in model.spec.recipe.stages] == ["slim"]


def test_the_rest_of_the_model_stays_as_it_is():
    model = resolved(document({**REF, "seed": "9"}), recipe())
    [plain] = load_text(document({**REF, "seed": "9"}))
    assert model.model_copy(update={"spec": plain.spec}) == plain
    assert model.spec.model_copy(update={"recipe": plain.spec.recipe}) == plain.spec


def test_a_recipe_of_the_namespace_goes_before_one_of_the_cluster():
    wide = recipe(kind="ClusterOptimizationRecipe", stage=STATIC)
    assert [s.name for s in resolved(document(REF), wide, recipe()).spec.recipe.stages] == ["slim"]
    named_wide = {"recipe": "{ref: {name: house, kind: ClusterOptimizationRecipe}}"}
    assert [s.name for s in resolved(document(named_wide), wide, recipe()).spec.recipe.stages] == ["int8"]


def test_a_recipe_of_the_files_goes_before_a_shipped_one():
    own = recipe("edge", kind="ClusterOptimizationRecipe", stage=STATIC)
    assert [s.name for s in resolved(document({"recipe": "{ref: {name: edge}}"}), own).spec.recipe.stages] == ["int8"]


def test_a_recipe_of_another_namespace_is_not_found():
    with pytest.raises(DocumentError, match="house"):
        resolved(named(REF, "digits"), recipe(namespace="other"))
    assert resolved(named(REF, "digits"), recipe(namespace="vision")).spec.recipe.stages


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(DocumentError) as refused:
        resolved(document({"recipe": "{ref: {name: cnn-int}}"}), recipe())
    [problem] = refused.value.problems
    assert problem.path == "spec.recipe.ref.name"
    assert problem.remedy == "did you mean cnn-int8? known: house, cnn-int8, edge, encoder-int8, tabular"


def test_a_preset_is_no_recipe_of_a_namespace():
    with pytest.raises(DocumentError, match="known: none"):
        resolved(document({"recipe": "{ref: {name: edge, kind: OptimizationRecipe}}"}))


def test_a_recipe_that_trains_without_training_set_is_refused():
    text = document({"recipe": "{ref: {name: edge}}", "data": f"\n{EVALUATION}\n"})
    with pytest.raises(DocumentError) as refused:
        resolved(text)
    assert [p.path for p in refused.value.problems] == ["spec.data.train"]
    assert "digits with edge" in str(refused.value)


def test_a_gate_after_a_stage_that_the_recipe_lacks_is_refused():
    gates = '[{name: g, metric: sizeRatio, min: "2", stages: [int4]}]'
    with pytest.raises(DocumentError, match="name a stage of the recipe: slim, export"):
        resolved(document({**REF, "gates": gates}), recipe())


def test_the_only_model_is_chosen_and_others_by_name():
    documents = load_text("---\n".join([named({}, "a"), recipe(), named({}, "b")]))
    assert select_model(documents, "b").metadata.name == "b"
    assert select_model(documents[:2]).metadata.name == "a"


@pytest.mark.parametrize(
    ("texts", "name", "message"),
    [
        ([recipe()], None, "no OptimizedModel; write a document of kind: OptimizedModel"),
        ([named({}, "a"), named({}, "b")], None, "2 OptimizedModels to choose from; name one of a, b"),
        ([named({}, "a")], "c", "no OptimizedModel called c; choose one of a"),
    ],
    ids=["none", "two", "another name"],
)
def test_a_choice_that_is_none_is_refused(texts, name, message):
    with pytest.raises(DocumentError, match=message):
        select_model(load_text("---\n".join(texts)), name)
