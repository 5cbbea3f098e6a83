"""From a validation error to problems that name line, field, what was found and what to write."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lathe_api import base, yamltree
from lathe_api.errors import Problem
from lathe_api.findings import RULE
from lathe_api.yamltree import Node, Path, Place, Scalar, path_text

_PATTERNS: Final[tuple[tuple[object, str], ...]] = (
    (base.Name, "write lower-case letters, digits and dashes, such as my-model"),
    (base.SubdomainName, "write lower-case letters, digits, dashes and dots"),
    (base.Digest, 'write "sha256:" and 64 hexadecimal digits, or remove the field'),
    (base.Duration, "write a whole number and a unit (ms, s, m or h), such as 30s"),
    (base.Quantity, 'write a number and a unit, such as "500m", "2" or 4Gi'),
    (base.Decimal, 'write a number without exponent in quotes, such as "0.02"'),
    (base.Timestamp, 'write a time such as "2026-01-31T12:00:00Z"'),
    (base.CronSchedule, 'write five fields, minute first, such as "0 3 * * 0"'),
)
_REMEDIES: Final[Mapping[str, str]] = {
    "string_too_short": "write at least {min_length} characters",
    "string_too_long": "write at most {max_length} characters",
    "too_short": "write at least {min_length} entries",
    "too_long": "write at most {max_length} entries",
    "greater_than_equal": "write at least {ge}",
    "less_than_equal": "write at most {le}",
    "int_type": "write a whole number without quotes",
    "int_from_float": "write a whole number",
    "int_parsing": "write a whole number",
    "int_parsing_size": "write a smaller number",
    "bool_type": "write true or false",
    "model_type": "write a mapping of fields (`name: value`)",
    "model_attributes_type": "write a mapping of fields (`name: value`)",
    "dict_type": "write a mapping (`key: value`)",
    "tuple_type": "write a list (`- entry`)",
    "list_type": "write a list (`- entry`)",
}


def problems(error: ValidationError, root: type[BaseModel], tree: Node, file: str) -> Iterator[Problem]:
    """One problem for each error, in the order of the model's fields.

    Args:
        error: what validation of the tree's value by `root` raised; locations are names as on the wire.
        root: the model that was tried.
        tree: the document.
        file: its name.
    """
    for details in _errors(error):
        path: Path = tuple(details["loc"])
        node: Node | None
        if path[-1:] == ("[key]",):
            path = path[:-1]
            place, node = _locate_key(tree, path)
        else:
            place, node = locate(tree, path)
        found, remedy = _explain(details, root, path, node)
        if details["type"] == "extra_forbidden" and (block := _empty_block(root, tree, path)):
            remedy = f"indent it below `{block}:`, which is empty"
        yield Problem(file, place.line, place.column, path_text(path), found, remedy)


def unplaced(error: ValidationError, root: type[BaseModel], file: str) -> Iterator[Problem]:
    """As `problems`, for a value that was not read from a text."""
    for details in _errors(error):
        path: Path = tuple(details["loc"])
        found, remedy = _explain(details, root, path, None)
        yield Problem(file, 0, 0, path_text(path), found, remedy)


def remedy(error: ValidationError, root: type[BaseModel], path: Path, text: str) -> str:
    """What to write instead of `text` at a path of `root`, where the type of the field there raised `error`."""
    details = _errors(error)[0]
    node = Scalar(yamltree.Place(0, 0), text, quoted=True)
    return _explain(details, root, path, node)[1]


def placed(problem: Problem, tree: Node, file: str) -> Problem:
    """A problem without a place, put where its field (or the nearest enclosing one) is written."""
    parts = re.findall(r"[^.\[\]']+", problem.path)
    place, _ = locate(tree, tuple(int(p) if p.isdecimal() else p for p in parts))
    return replace(problem, file=file, line=place.line, column=place.column)


def locate(tree: Node, path: Path) -> tuple[Place, Node | None]:
    """The place to look at for a path and the node there; the nearest enclosing place where there is none."""
    node: Node = tree
    place = tree.place
    for part in path:
        if isinstance(node, yamltree.Mapping) and isinstance(part, str) and part in node.items:
            place, node = node.keys[part], node.items[part]
        elif isinstance(node, yamltree.Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            place = node.place
        else:
            return place, None
    return (node.place if isinstance(node, Scalar) else place), node


def _locate_key(tree: Node, path: Path) -> tuple[Place, Node]:
    """The last key of a path, as a text of its own."""
    _, mapping = locate(tree, path[:-1])
    key = str(path[-1])
    place = mapping.keys[key] if isinstance(mapping, yamltree.Mapping) else tree.place
    return place, Scalar(place, key, quoted=True)


def _empty_block(root: type[BaseModel], tree: Node, path: Path) -> str | None:
    """The field without a value beside an unknown one that would know it: its content was not indented."""
    _, parent = locate(tree, path[:-1])
    if not isinstance(parent, yamltree.Mapping):
        return None
    for name, sibling in parent.items.items():
        model = _model_at(root, (*path[:-1], name))
        if yamltree.is_nothing(sibling) and model is not None and path[-1] in _names(model):
            return name
    return None


def closest(word: str, known: list[str]) -> str | None:
    """The known word that `word` is most likely meant to be."""
    camel = to_camel(word) if "_" in word else word
    if camel in known:
        return camel
    folded = {k.lower(): k for k in known}
    match = difflib.get_close_matches(camel.replace("-", "").lower(), list(folded), n=1, cutoff=0.6)
    return folded[match[0]] if match else None


def _errors(error: ValidationError) -> list[ErrorDetails]:
    """Without lists that seem too short only because their entries are wrong."""
    errors = error.errors(include_url=False, include_input=False)
    wrong = {e["loc"][:length] for e in errors for length in range(len(e["loc"]))}
    return [e for e in errors if e["type"] != "too_short" or e["loc"] not in wrong]


def _explain(details: ErrorDetails, root: type[BaseModel], path: Path, node: Node | None) -> tuple[str, str]:
    """What was found and what to write."""
    kind, context = details["type"], details.get("ctx", {})
    found = node.describe() if node else "nothing"
    match kind:
        case "extra_forbidden":
            found = f"the unknown field {yamltree.shown(str(path[-1]))}"
            remedy = _unknown_field(str(path[-1]), _model_at(root, path[:-1]))
        case "missing":
            remedy = _missing(_field_at(root, path), str(path[-1]))
        case "enum" | "literal_error":
            remedy = _choices(_field_type(root, path), node)
        case "string_type":
            remedy = _as_text(node)
        case "string_pattern_mismatch":
            remedy = _pattern(context["pattern"])
        case _ if kind == RULE:
            found, remedy = context["found"], context["remedy"]
        case _ if kind in _REMEDIES:
            remedy = _REMEDIES[kind].format(**context)
        case _:
            remedy = details["msg"][:1].lower() + details["msg"][1:]
    return found, remedy


def _as_text(node: Node | None) -> str:
    if isinstance(node, Scalar) and node.kind != "nothing":
        return f'write it in quotes: "{yamltree.shown(node.text)}"'
    return "write a text"


def _pattern(pattern: str) -> str:
    for annotated, remedy in _PATTERNS:
        if any(getattr(m, "pattern", None) == pattern for m in getattr(annotated, "__metadata__", ())):
            return remedy
    return f"write a text that matches {pattern}"


def _unknown_field(name: str, model: type[BaseModel] | None) -> str:
    known = _names(model) if model else []
    if not known:
        return "remove it"
    meant = closest(name, known)
    if meant and "_" in name and to_camel(name) == meant:
        return f"write {meant} (names are in camelCase)"
    listed = f"known here: {', '.join(known)}"
    return f"did you mean {meant}? ({listed})" if meant else f"remove it ({listed})"


def _missing(field: FieldInfo | None, name: str) -> str:
    doc = (field.description or "") if field else ""
    sentence = doc.replace("\n", " ").partition(". ")[0].partition("; ")[0].rstrip(".")
    return f"write {name}: {sentence[:1].lower()}{sentence[1:]}" if sentence else f"write {name}"


def _choices(annotation: Any, node: Node | None) -> str:
    values = [str(v) for v in _values(annotation)]
    if len(values) == 1:
        return f"write {values[0]}"
    text = node.text if isinstance(node, Scalar) else ""
    meant = closest(text, values) if text else None
    hint = f"did you mean {meant}? " if meant else ""
    return f"{hint}write one of {', '.join(values)}"


def _values(annotation: Any) -> list[object]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    return [value for value in get_args(annotation) if isinstance(value, str)]


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _field_at(root: type[BaseModel], path: Path) -> FieldInfo | None:
    model = _model_at(root, path[:-1])
    if model is None:
        return None
    return next((f for name, f in model.model_fields.items() if (f.alias or name) == path[-1]), None)


def _field_type(root: type[BaseModel], path: Path) -> Any:
    """The type at a path with Optional, Annotated and containers taken off; None where there is none."""
    current: Any = root
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields.items()
            current = next((f.annotation for name, f in fields if (f.alias or name) == part), None)
        elif get_origin(current) in (tuple, list):
            current = get_args(current)[0]
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        else:
            return None
        current = _bare(current)
    return current


def _model_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    found = _field_type(root, path)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _bare(annotation: Any) -> Any:
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(a for a in get_args(annotation) if a is not NoneType)
        else:
            return annotation
