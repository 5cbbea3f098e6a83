"""JSON Schema (2020-12) of each kind, for editors: completion, descriptions and red lines while one types."""

from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from lathe_api.base import BOUND
from lathe_api.documents import KINDS
from lathe_api.errors import UnknownKindError

SHORT_NAMES: Final = {
    "om": "OptimizedModel",
    "recipe": "OptimizationRecipe",
    "clusterrecipe": "ClusterOptimizationRecipe",
    "mrev": "ModelRevision",
    "mfed": "ModelFederation",
}
"""As `kubectl` takes them."""


def json_schema(kind: str) -> dict[str, Any]:
    """Schema of a kind: names as on the wire, unknown fields refused, every field described.

    Args:
        kind: its name or short name, in any case.

    Raises:
        UnknownKindError: there is no such kind.
    """
    model = KINDS[kind_name(kind)]
    schema = model.model_json_schema(by_alias=True, schema_generator=GenerateJsonSchema)
    schema["required"] = ["apiVersion", "kind", *schema.get("required", ())]
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": model.__name__,
        **{key: _tidy(value) for key, value in schema.items() if key != "title"},
    }


def kind_name(kind: str) -> str:
    """Full name of a kind that is given by name, short name or plural, in any case.

    Raises:
        UnknownKindError: there is no such kind.
    """
    folded = kind.lower()
    names = {name.lower(): name for name in KINDS} | {f"{name.lower()}s": name for name in KINDS} | SHORT_NAMES
    if folded not in names:
        known = [f"{name} ({short})" for short, name in SHORT_NAMES.items()]
        raise UnknownKindError(kind, known)
    return names[folded]


def _tidy(schema: Any) -> Any:
    """Without generated titles, and with absent values as absent fields rather than nulls."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "default" in schema:
        schema = {**schema, "default": _without_nulls(schema["default"])}
    choices = schema.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        rest = [c for c in choices if c != {"type": "null"}]
        outer = {k: v for k, v in schema.items() if k != "anyOf" and not (k == "default" and v is None)}
        schema = {**rest[0], **outer} if len(rest) == 1 else {**outer, "anyOf": rest}
    tidy: dict[str, Any] = {}
    for key, value in schema.items():
        if (key == "title" and isinstance(value, str)) or key == BOUND:
            continue
        named = key in ("properties", "$defs") and isinstance(value, dict)
        tidy[key] = {name: _tidy(item) for name, item in value.items()} if named else _tidy(value)
    return tidy


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [_without_nulls(item) for item in value]
        case _:
            return value
