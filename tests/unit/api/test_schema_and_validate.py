"""`lathe schema` and `lathe validate`."""

import json
from pathlib import Path

import pytest
from support.yaml_documents import EVALUATION, document

from lathe_api.documents import KINDS
from lathe_api.errors import UnknownKindError
from lathe_api.schema import json_schema, kind_name
from lathe_cli.schema import run_schema
from lathe_cli.validate import run_validate

HERE = Path(__file__).parent
NAMES = {
    "om": "OptimizedModel",
    "OptimizedModel": "OptimizedModel",
    "optimizedmodels": "OptimizedModel",
    "recipe": "OptimizationRecipe",
    "mrev": "ModelRevision",
    "MFED": "ModelFederation",
}


@pytest.mark.parametrize(("given", "kind"), NAMES.items(), ids=NAMES)
def test_a_kind_goes_by_several_names(given, kind):
    assert kind_name(given) == kind
    assert json_schema(given)["title"] == kind


def test_an_unknown_kind_is_answered_with_the_known_ones(capsys):
    with pytest.raises(UnknownKindError, match=r"OptimizedModel \(om\), OptimizationRecipe \(recipe\)"):
        json_schema("pod")
    assert run_schema("pod") == 2
    assert "ModelFederation (mfed)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_schema_is_json_of_2020_12(kind, capsys):
    assert run_schema(kind) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["apiVersion", "kind", "metadata", "spec"]


def test_descriptions_and_defaults_reach_the_editor():
    gate = json_schema("om")["$defs"]["Gate"]["properties"]
    assert gate["maxDrop"]["description"] == "The value may be worse than the baseline's by at most this."
    assert gate["minSamples"] == {
        "default": 100,
        "description": "Fewer evaluation samples than this give Inconclusive; of worstSliceDrop: "
        "smaller slices are not judged.",
        "maximum": 100_000_000,
        "minimum": 1,
        "type": "integer",
    }
    assert json_schema("om")["$defs"]["Data"]["properties"]["calibration"]["default"] == {
        "from": "Train",
        "samples": 512,
    }


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    texts = {
        "good": document({}),
        "warned": document({"model": "{uri: y, format: Pt2}"}),
        "refers": document({"recipe": "{ref: {name: house}}"}),
        "recipe": "apiVersion: lathe.dev/v1alpha1\nkind: OptimizationRecipe\nmetadata: {name: house}\n"
        "spec: {stages: [{name: onnx, type: Export, export: {}}]}\n",
        "bad": document({"seed": "x", "suspend": "1"}),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: tmp_path / f"{name}.yaml" for name in texts}


def test_a_valid_file_is_named_with_what_it_holds(files, capsys):
    assert run_validate([files["good"], HERE / "full.yaml"], as_json=False) == 0
    out, err = capsys.readouterr()
    good, full = out.splitlines()
    assert good == f"{files['good']}: valid (OptimizedModel digits)"
    kinds = ["OptimizedModel digits", "ModelFederation digits-clinics", "OptimizationRecipe half"]
    assert full == f"{HERE / 'full.yaml'}: valid ({', '.join(kinds)}, ModelRevision digits-3f9a1c)"
    assert err == ""


def test_problems_go_to_stderr_and_the_exit_code_is_2(files, capsys):
    assert run_validate([files["bad"], files["good"]], as_json=False) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{files['good']}: valid (OptimizedModel digits)"]
    assert "spec.seed" in err
    assert "spec.suspend" in err
    assert err.splitlines()[-1] == "2 problems"


def test_warnings_do_not_fail(files, capsys):
    assert run_validate([files["warned"]], as_json=False) == 0
    assert "which kubectl reads as a boolean" in capsys.readouterr().err


def test_references_are_looked_for_in_all_files(files, capsys):
    assert run_validate([files["refers"], files["recipe"]], as_json=False) == 0
    assert run_validate([files["refers"]], as_json=False) == 2
    expected = f"{files['refers']}:10:24: spec.recipe.ref.name: found the reference to recipe house; known: cnn-int8"
    assert expected in capsys.readouterr().err


def test_a_mistake_that_a_recipe_brings_is_placed_in_the_model(tmp_path, capsys):
    text = document({"recipe": "{ref: {name: edge}}", "data": f"# <-\n{EVALUATION}\n"})
    (tmp_path / "model.yaml").write_text(text)
    assert run_validate([tmp_path / "model.yaml"], as_json=False) == 2
    line = 1 + text[: text.index("# <-")].count("\n")
    assert f"model.yaml:{line}:3: spec.data.train: found nothing" in capsys.readouterr().err


def test_machines_get_one_json_document_on_one_line(files, capsys):
    assert run_validate([files["bad"], files["warned"]], as_json=True) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    assert result["valid"] is False
    bad, warned = result["files"]
    assert bad["documents"] == []
    assert [p["path"] for p in bad["problems"]] == ["spec.seed", "spec.suspend"]
    assert bad["problems"][0] | {"line": 0, "column": 0} == {
        "file": str(files["bad"]),
        "line": 0,
        "column": 0,
        "path": "spec.seed",
        "found": '"x"',
        "remedy": "write a whole number without quotes",
    }
    assert warned["documents"] == [{"kind": "OptimizedModel", "name": "digits"}]
    assert len(warned["warnings"]) == 1
