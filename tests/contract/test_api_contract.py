"""The rules of the API, checked over the schemas of all kinds: what breaks one of them breaks users later."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from lathe_api import schema as schemas
from lathe_api.documents import KINDS

KIND_NAMES = list(KINDS)
json_schema = functools.cache(schemas.json_schema)
FREE_FORM = {"ObjectMeta.managedFields"}
"""Written by the API server alone, and no part of a CRD."""
KUBERNETES_BOOLEANS = {
    "OptimizedModelSpec.suspend",
    "ModelFederationSpec.suspend",
    "OwnerReference.controller",
    "OwnerReference.blockOwnerDeletion",
}
"""Named and typed as Kubernetes does."""


def definitions(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    schema = json_schema(kind)
    yield kind, {k: v for k, v in schema.items() if k != "$defs"}
    yield from schema["$defs"].items()


def fields(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of every object as `Model.field`, with its schema."""
    for name, schema in definitions(kind):
        for field, value in schema.get("properties", {}).items():
            if f"{name}.{field}" not in FREE_FORM:
                yield f"{name}.{field}", value


def description(kind: str, schema: dict[str, Any]) -> str:
    """A field that is described in the very words of its type has them at the type alone."""
    target = json_schema(kind)["$defs"].get(schema.get("$ref", "").rpartition("/")[2], {})
    return schema.get("description") or target.get("description", "")


def parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A field's schema and those of its items and values."""
    yield schema
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from parts(schema[key])


def is_fixed(schema: dict[str, Any]) -> bool:
    return "enum" in schema or "const" in schema


def unbounded(schema: dict[str, Any]) -> str | None:
    match schema.get("type"):
        case "string" if not is_fixed(schema) and "maxLength" not in schema:
            return "a text without maxLength"
        case "array" if "maxItems" not in schema:
            return "a list without maxItems"
        case "object" if "additionalProperties" in schema and "maxProperties" not in schema:
            return "a map without maxProperties"
        case "object" if "additionalProperties" in schema and "maxLength" not in schema.get("propertyNames", {}):
            return "a map with keys of any length"
        case "integer" if not {"minimum", "maximum"} <= schema.keys():
            return "an integer without bounds"
    return None


def in_spec(name: str) -> bool:
    return not name.startswith("ObjectMeta.")


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_everything_is_bounded(kind):
    found = [
        f"{name}: {wrong}"
        for name, schema in fields(kind)
        if in_spec(name)
        for part in parts(schema)
        if (wrong := unbounded(part))
    ]
    assert found == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_there_are_no_floats_and_no_free_form_values(kind):
    types = {"string", "integer", "boolean", "array", "object"}
    found = [
        f"{name}: {json.dumps(part)}"
        for name, schema in fields(kind)
        for part in parts(schema)
        if "$ref" not in part and not is_fixed(part) and part.get("type") not in types
    ]
    assert found == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nothing_is_used_that_a_structural_schema_cannot_say(kind):
    forbidden = {"oneOf", "anyOf", "allOf", "not", "prefixItems", "patternProperties", "uniqueItems", "discriminator"}
    found = [
        f"{name}: {sorted(forbidden & part.keys())}"
        for name, schema in [*fields(kind), *definitions(kind)]
        for part in parts(schema)
        if forbidden & part.keys()
    ]
    assert found == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_object_refuses_unknown_fields(kind):
    found = [n for n, s in definitions(kind) if "properties" in s and s.get("additionalProperties") is not False]
    assert found == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_field_and_type_is_described_in_sentences(kind):
    described = [(n, s) for n, s in [*fields(kind), *definitions(kind)] if n != "JsonValue"]
    found = [n for n, s in described if not re.fullmatch(r"([A-Z0-9`]|sha256).*[.:`]", description(kind, s), re.DOTALL)]
    assert found == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_values_of_enums_are_camel_case(kind):
    """Metrics are named as the fields that report them, in lower camel case."""
    found = []
    for name, schema in definitions(kind):
        pattern = r"[a-z][A-Za-z0-9]*" if name.endswith("Metric") else r"[A-Z][A-Za-z0-9_]*"
        found += [f"{name}: {value}" for value in schema.get("enum", ()) if not re.fullmatch(pattern, value)]
    assert found == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_names_of_fields_are_camel_case(kind):
    assert [n for n, _ in fields(kind) if not re.fullmatch(r"\w+\.[a-z][A-Za-z0-9]*", n)] == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_truth_values_are_only_where_kubernetes_has_them(kind):
    booleans = {name for name, schema in fields(kind) if schema.get("type") == "boolean"}
    assert booleans <= KUBERNETES_BOOLEANS


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_no_default_is_null(kind):
    assert [n for n, s in fields(kind) if "default" in s and s["default"] is None] == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_no_type_refers_to_itself(kind):
    schema = json_schema(kind)
    refs = {name: set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(value))) for name, value in schema["$defs"].items()}
    while leaves := [name for name, uses in refs.items() if not uses]:
        for leaf in leaves:
            del refs[leaf]
        for uses in refs.values():
            uses.difference_update(leaves)
    assert refs == {}


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_names_that_yaml_reads_as_truth_values_are_not_used(kind):
    words = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    assert [n for n, _ in fields(kind) if n.partition(".")[2].lower() in words] == []


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_kind_has_version_kind_metadata_and_spec(kind):
    schema = json_schema(kind)
    assert {"apiVersion", "kind", "metadata", "spec"} <= set(schema["required"])
    assert schema["properties"]["kind"]["const"] == kind


def test_every_optional_block_of_a_union_is_named_as_its_type():
    stage = json_schema("om")["$defs"]["Stage"]["properties"]
    types = json_schema("om")["$defs"]["StageType"]["enum"]
    assert {t.lower() for t in types} <= stage.keys()


def test_models_are_immutable_and_closed():
    waiting: list[Any] = list(KINDS.values())
    seen: set[Any] = set()
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in seen:
                seen.add(annotation)
                waiting += [f.annotation for f in annotation.model_fields.values()]
        else:
            waiting += getattr(annotation, "__args__", ())
    assert [m.__name__ for m in seen if not (m.model_config["frozen"] and m.model_config["extra"] == "forbid")] == []
    assert len(seen) > 50
