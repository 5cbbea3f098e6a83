"""What people may write, and that it comes back unchanged."""

import json
from pathlib import Path

import pytest
import yaml
from support.yaml_documents import (
    AWARE,
    DISTILL,
    DYNAMIC,
    EVALUATION,
    EXPORT,
    PRUNE,
    STATIC,
    document,
    gate,
    stages,
    target,
)

from lathe_api.canonical import canonical_json, digest_of
from lathe_api.documents import KINDS, inspect_text, load_file, load_text, select_model
from lathe_api.federation import ModelFederationSpec
from lathe_api.optimizedmodel import OptimizedModel, OptimizedModelSpec
from lathe_api.recipe import StageType

HERE = Path(__file__).parent
VALID = {
    "nothing but what is required": {},
    "a reference to a recipe": {"recipe": "{ref: {name: cnn-int8}}"},
    "a reference with a kind": {"recipe": "{ref: {name: cnn-int8, kind: ClusterOptimizationRecipe}}"},
    "sections without a value, as the API server takes them": {"gates": "", "learning": "null", "rollout": "~"},
    "distil, prune, train for int8, export": stages(DISTILL, PRUNE, AWARE, EXPORT),
    "export before static quantisation": stages(PRUNE, EXPORT, STATIC),
    "export before dynamic quantisation": stages(EXPORT, DYNAMIC),
    "a stage called export that exports": stages(EXPORT.replace("onnx", "export")),
    "no training set, samples of their own": {"data": f"\n{EVALUATION}\ncalibration: {{source: {EVALUATION[12:]}}}\n"},
    "dynamic quantisation without any samples": {"data": f"\n{EVALUATION}\n", **stages(DYNAMIC)},
    "pruning without fine-tuning needs no training set": {"data": f"\n{EVALUATION}\n", **stages(PRUNE)},
    "a gate after the export that is appended": gate('metric: accuracy, min: "0.9", stages: [export]'),
    "a gate after a stage of a recipe elsewhere": {
        **gate('metric: accuracy, min: "0.9", stages: [int8]'),
        "recipe": "{ref: {name: edge}}",
    },
    "an absolute drop of a metric without bounds": {
        **gate('metric: rmse, maxDrop: "5"'),
        "objective": "{task: Regression, metric: rmse}",
    },
    "one replica": target("serving: {replicas: {min: 1}}"),
    "scale to zero": target("serving: {replicas: {min: 0, max: 1}}"),
    "a canary that ends at all": {"rollout": "{strategy: Canary, steps: [{weight: 100}]}"},
    "quoted words that look like truth values": {"model": '{uri: "yes", format: "Pt2"}'},
    "a time in a text field": {"model": "{uri: 12:30:45, format: Pt2}"},
    "a text in a block": {"model": "\nuri: >-\n  teacher.pt2\nformat: Pt2\n"},
    "text beyond ASCII": {"model": "{uri: modèle/π.pt2, format: Pt2}"},
}


@pytest.mark.parametrize("sections", VALID.values(), ids=VALID)
def test_it_loads_without_problem_or_warning(sections):
    found = inspect_text(document(sections))
    assert [str(p) for p in (*found.problems, *found.warnings)] == []
    assert [d.kind for d in found.documents] == ["OptimizedModel"]


def test_the_document_of_the_design_loads_unchanged():
    model = select_model(load_file(HERE / "design.yaml"))
    assert [s.type for s in model.spec.recipe.stages] == [
        StageType.DISTILL,
        StageType.PRUNE,
        StageType.QUANTIZE,
        StageType.EXPORT,
    ]
    assert [g.max_drop or g.min for g in model.spec.gates] == ["0.02", "3.5", "2.0"]
    assert [s.weight for s in model.spec.rollout.steps] == [10, 50]


def test_a_file_with_every_section_loads():
    model, federation, _recipe, _revision = load_file(HERE / "full.yaml")
    assert model.spec.model_fields_set == set(OptimizedModelSpec.model_fields)
    assert federation.spec.model_fields_set == set(ModelFederationSpec.model_fields) - {"suspend"}


@pytest.mark.parametrize("file", ["design.yaml", "full.yaml"])
def test_what_is_read_comes_back_unchanged(file):
    documents = load_file(HERE / file)
    for loaded in documents:
        as_json = canonical_json(loaded)
        [again] = load_text(as_json.decode())
        assert again == loaded
        assert canonical_json(again) == as_json
        [from_yaml] = load_text(yaml.safe_dump(json.loads(as_json)))
        assert digest_of(from_yaml) == digest_of(loaded)


def test_what_is_written_holds_every_value_of_the_text():
    """Nothing is converted on the way in: each value of the document is found again under its own name."""

    def contained(part, whole):
        if isinstance(part, dict):
            return all(key in whole and contained(value, whole[key]) for key, value in part.items())
        if isinstance(part, list):
            return len(part) == len(whole) and all(map(contained, part, whole))
        return part == whole

    text = (HERE / "full.yaml").read_text()
    for written, loaded in zip(yaml.safe_load_all(text), load_text(text), strict=True):
        assert contained(written, json.loads(canonical_json(loaded)))


def test_several_documents_in_one_file_keep_their_order():
    kinds = [d.kind for d in load_file(HERE / "full.yaml")]
    assert kinds == ["OptimizedModel", "ModelFederation", "OptimizationRecipe", "ModelRevision"]


def test_empty_documents_between_others_are_passed_over():
    text = f"---\n---\n# nothing\n---\n{document({})}---\n...\n"
    assert [type(d) for d in load_text(text)] == [OptimizedModel]


def test_every_kind_can_be_made_in_python_without_naming_version_or_kind():
    for name, model in KINDS.items():
        assert model.model_fields["kind"].default == name
        assert model.model_fields["api_version"].default == "lathe.dev/v1alpha1"
