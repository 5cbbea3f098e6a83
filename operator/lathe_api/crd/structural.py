"""From a pydantic model to the structural schema that the API server takes.

A structural schema (kubernetes.io, "Specifying a structural schema") has no references, no unions of types and a type
everywhere; what those say becomes rules in CEL. Defaults stay out: they are told in descriptions and filled in by
whoever reads a document, so that an applied document and the stored one are the same and `kubectl diff` stays empty.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from lathe_api.base import BOUND, ApiModel
from lathe_api.crd.rules import PATTERNS, RULES, SPEC_RULES, Rule

Json = dict[str, Any]

_KEYS: Final = ("name", "type", "revision", "field")
"""By which of its fields an entry of a list is known, the first that every entry has."""
_KEYED: Final = frozenset({"InputField", "Gate", "Target", "Stage", "Trigger", "DriftTest", "Condition", "StageStatus"})
_KEYED_STATUS: Final = frozenset(
    {"GateStatus", "SearchPoint", "TargetStatus", "TrafficShare", "ResolvedInput", "DriftStatus"}
)
_COPIED: Final = ("enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties")


def structural(model: type[ApiModel]) -> Json:
    """The `openAPIV3Schema` of a kind."""
    schema = model.model_json_schema(by_alias=True, schema_generator=GenerateJsonSchema)
    definitions: Json = schema.pop("$defs", {})
    properties = {
        name: _metadata() if name == "metadata" else _node(value, definitions, written=name == "spec")
        for name, value in schema["properties"].items()
        if name not in ("apiVersion", "kind")
    }
    properties["apiVersion"] = {"type": "string", "description": "Group and version."}
    properties["kind"] = {"type": "string", "description": "Kind of the document."}
    spec_rules = SPEC_RULES.get(model.__name__, ())
    if spec_rules:
        properties["spec"] = _with_rules(properties["spec"], spec_rules)
    found: Json = {
        "type": "object",
        "description": _described(schema.get("description", ""), None),
        "properties": properties,
        "required": ["spec"],
    }
    return _with_rules(found, RULES[""])


def _metadata() -> Json:
    """The API server knows what metadata is, and takes no schema of it."""
    return {"type": "object"}


def _node(value: Json, definitions: Mapping[str, Json], *, written: bool) -> Json:
    """One place of the schema.

    Args:
        value: JSON Schema as pydantic writes it.
        definitions: what its references mean.
        written: whether people write it: then a pattern becomes a rule that says what to write instead.
    """
    outer: Json = {key: value[key] for key in ("description", "default") if key in value}
    choices = [c for c in value.get("anyOf", ()) if c != {"type": "null"}]
    if choices:
        (choice,) = choices
        value = {**choice, **outer}
    name = None
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        value = {**definitions[name], **{k: v for k, v in value.items() if k != "$ref"}}
    found: Json = {"type": value["type"]} if "type" in value else {}
    found["description"] = _described(value.get("description", ""), value.get("default"))
    found |= {key: value[key] for key in _COPIED if key in value}
    if "const" in value:
        found["enum"] = [value["const"]]
    if value.get("type") == "integer":
        found["format"] = "int64"
    if "pattern" in value:
        found |= _patterned(value, written=written)
    match value.get("type"):
        case "array":
            found |= _list(value, definitions, written=written)
        case "object":
            found |= _object(value, definitions, written=written)
        case _:
            pass
    if not found["description"]:
        del found["description"]
    return _with_rules(found, RULES.get(name or "", ()) if name else ())


def _list(value: Json, definitions: Mapping[str, Json], *, written: bool) -> Json:
    entry = value["items"]
    items = _node(entry, definitions, written=written)
    name = entry.get("$ref", "").rpartition("/")[2]
    if name in _KEYED | _KEYED_STATUS:
        key = next(k for k in _KEYS if k in items["required"])
        return {"items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return {"items": items, "x-kubernetes-list-type": "atomic"}


def _object(value: Json, definitions: Mapping[str, Json], *, written: bool) -> Json:
    if "properties" not in value:
        more = value.get("additionalProperties")
        return {"additionalProperties": _node(more, definitions, written=written)} if isinstance(more, dict) else {}
    found: Json = {"properties": {k: _node(v, definitions, written=written) for k, v in value["properties"].items()}}
    if value.get("required"):
        found["required"] = list(value["required"])
    return found


def _patterned(value: Json, *, written: bool) -> Json:
    pattern = value["pattern"]
    if not written:
        return {"pattern": pattern}
    bound = value.get(BOUND)
    rule = PATTERNS[pattern] if bound is None else PATTERNS[bound]
    return {"x-kubernetes-validations": [_rule(Rule(f"self.matches({_quoted(rule.cel or pattern)})", rule.remedy))]}


def _with_rules(schema: Json, rules: tuple[Rule, ...]) -> Json:
    if not rules:
        return schema
    before = schema.get("x-kubernetes-validations", [])
    return {**schema, "x-kubernetes-validations": [*before, *map(_rule, rules)]}


def _rule(rule: Rule) -> Json:
    found: Json = {"rule": rule.rule, "message": rule.message}
    if rule.field:
        found["fieldPath"] = rule.field
    return found


def _described(text: str, default: Any) -> str:
    """One line, with the default where there is one that people could write."""
    line = " ".join(text.split())
    if default in (None, "", [], {}) or isinstance(default, dict | list):
        return line
    told = default if isinstance(default, str) else json.dumps(default)
    return f"{line} Default: {told}."


def _quoted(pattern: str) -> str:
    """A raw CEL string, in which a backslash is a backslash."""
    return f"r'{pattern}'"
