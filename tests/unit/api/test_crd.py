"""The CustomResourceDefinitions follow from the models, and keep the rules of the Kubernetes API."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lathe_api.crd.kinds import definition, documents
from lathe_api.documents import KINDS

FOLDER = Path(__file__).parents[3] / "charts" / "lathe" / "files" / "crds"


def places(schema, path="") -> Iterator[tuple[str, dict]]:
    """Every place below a schema, with its path."""
    yield path, schema
    for name, value in schema.get("properties", {}).items():
        yield from places(value, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from places(schema[key], f"{path}[]")


ALL = [
    (kind, path, place)
    for kind in KINDS
    for path, place in places(definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
]


def broken(rule):
    return [f"{kind}{path}" for kind, path, place in ALL if not rule(path, place)]


def test_what_is_committed_is_what_is_generated():
    """`python -m lathe_api.crd charts/lathe/files/crds` mends it."""
    assert {f.name: f.read_text() for f in FOLDER.glob("*.yaml")} == documents()


RULES = {
    "every place has a type": lambda path, s: "type" in s,
    "no floating point": lambda path, s: s["type"] != "number",
    "every field but metadata is described in one line": lambda path, s: (
        path in ("", ".metadata") or path.endswith("[]") or ("description" in s and "\n" not in s["description"])
    ),
    "names are camelCase": lambda path, s: all(
        name[0].islower() and "_" not in name and "-" not in name for name in s.get("properties", {})
    ),
    "texts that people write are bounded": lambda path, s: (
        s["type"] != "string" or "enum" in s or "maxLength" in s or path in (".apiVersion", ".kind")
    ),
    "lists are bounded and say how they merge": lambda path, s: (
        s["type"] != "array" or ("maxItems" in s and "x-kubernetes-list-type" in s)
    ),
    "integers have a width and bounds": lambda path, s: (
        s["type"] != "integer" or (s["format"] == "int64" and "minimum" in s and "maximum" in s)
    ),
    "what is required exists": lambda path, s: set(s.get("required", [])) <= set(s.get("properties", {})),
    "nothing is filled in by the server": lambda path, s: "default" not in s,
    "rules say what to do": lambda path, s: all(
        rule["message"][:1].islower() and len(rule["message"]) < 200
        for rule in s.get("x-kubernetes-validations", [])
        if not rule["message"].startswith("a ModelRevision")
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_schemas_keep_the_rules_of_the_kubernetes_api(rule):
    assert broken(rule) == []


@pytest.mark.parametrize("kind", ["OptimizedModel", "ModelRevision", "ModelFederation"])
def test_conditions_are_a_map_by_type(kind):
    schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert set(conditions["items"]["required"]) == {
        "type",
        "status",
        "reason",
        "observedGeneration",
        "lastTransitionTime",
    }
