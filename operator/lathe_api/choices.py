"""Choices of a search: which setting of a stage each one means, and the stages with values put in. Pure."""

import itertools
import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from lathe_api import explain
from lathe_api.findings import Finding
from lathe_api.recipe import Stage
from lathe_api.search import Choice

FILES: Final = ("uri", "digest")
"""Names of fields that say which file is read."""
Path = tuple[str | int, ...]

FIXED: Final = ("name", "type", "resources", "timeout")
"""Fields of a stage that do not decide its result."""


def path_of(field: str) -> Path:
    """`distill.losses[0].weight` as `("distill", "losses", 0, "weight")`."""
    found: list[str | int] = []
    for part in field.split("."):
        name, *indices = re.findall(r"[A-Za-z0-9]+", part)
        found += [name, *(int(index) for index in indices)]
    return tuple(found)


def findings(choices: Sequence[Choice], stages: Sequence[Stage]) -> list[Finding]:
    """What is wrong with choices by themselves: stage, field, each value. Locations start at the list of choices."""
    named = {stage.name: stage for stage in stages}
    found = []
    for index, choice in enumerate(choices):
        stage = named.get(choice.stage)
        if stage is None:
            found.append(Finding((index, "stage"), choice.stage, f"name a stage of the recipe: {', '.join(named)}"))
        elif problem := _field_problem(stage, choice.field):
            found.append(Finding((index, "field"), f"{choice.field} of stage {stage.name}", problem))
        else:
            found += _value_findings(choice, index)
    return found


def parsed(field: str, text: str) -> JsonValue:
    """A value of a choice as the field takes it: a text, a number, or (from JSON) a list or an object.

    Raises:
        ValidationError: the field does not take it.
        ValueError: a stage has no such field.
    """
    annotation = _annotation(path_of(field))
    if annotation is None:
        raise ValueError(f"a stage has no field {field}")
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    value = adapter.validate_json(text) if _is_composed(annotation) else adapter.validate_strings(text)
    result: JsonValue = adapter.dump_python(value, mode="json", by_alias=True, exclude_none=True)
    return result


def applied(stages: Sequence[Stage], choices: Sequence[Choice], values: Sequence[str]) -> list[dict[str, JsonValue]]:
    """The stages as JSON with one value of each choice put in; they may still contradict each other.

    Raises:
        ValidationError, ValueError: see `parsed`.
    """
    written: list[dict[str, JsonValue]] = [s.model_dump(mode="json", by_alias=True, exclude_none=True) for s in stages]
    named = {stage["name"]: stage for stage in written}
    for choice, text in zip(choices, values, strict=True):
        _put(named[choice.stage], path_of(choice.field), parsed(choice.field, text))
    return written


def _field_problem(stage: Stage, field: str) -> str | None:
    path = path_of(field)
    block = stage.type.value.lower()
    if path[0] in FIXED or path[0] != block or len(path) == 1:
        return f"name a setting below `{block}`, such as {block}.{_example(stage)}"
    if path[-1] in FILES:
        return "write the file in the recipe: files are not searched, as each is pinned by its digest"
    if _annotation(path) is None:
        return f"no such setting; known in `{block}`: {', '.join(_names(type(stage.config)))}"
    node: Any = stage.model_dump(mode="json", by_alias=True, exclude_none=True)
    for part in path:
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                return f"the stage has no entry {part} there: write it in the recipe first"
            node = node[part]
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return None


def _value_findings(choice: Choice, index: int) -> list[Finding]:
    found, seen = [], set()
    for place, text in enumerate(choice.values):
        try:
            value = repr(parsed(choice.field, text))
        except ValidationError as error:
            remedy = explain.remedy(error, Stage, path_of(choice.field), text)
            found.append(Finding((index, "values", place), f'"{text}" for {choice.field}', remedy))
            continue
        if value in seen:
            found.append(Finding((index, "values", place), f'"{text}" a second time', "write each value once"))
        seen.add(value)
    return found


def _put(node: Any, path: Path, value: JsonValue) -> None:
    for part, following in itertools.pairwise(path):
        # A field that the document leaves to its default, such as `finetune`.
        node = node[part] if isinstance(part, int) else node.setdefault(part, [] if isinstance(following, int) else {})
    node[path[-1]] = value


def _annotation(path: Path) -> Any:
    """Type of the setting at a path from Stage, with its bounds; None where there is none."""
    current: Any = Stage
    for part in path:
        current = _plain(current)
        if isinstance(part, str) and isinstance(current, type) and issubclass(current, BaseModel):
            field = next((f for name, f in current.model_fields.items() if (f.alias or name) == part), None)
            if field is None:
                return None
            current = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        elif isinstance(part, int) and get_origin(current) is tuple:
            current = get_args(current)[0]
        else:
            return None
    return _without_none(current)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
    return annotation


def _plain(annotation: Any) -> Any:
    annotation = _without_none(annotation)
    while get_origin(annotation) is Annotated:
        annotation = _without_none(get_args(annotation)[0])
    return annotation


def _is_composed(annotation: Any) -> bool:
    plain = _plain(annotation)
    return get_origin(plain) is tuple or (isinstance(plain, type) and issubclass(plain, BaseModel))


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _example(stage: Stage) -> str:
    return _names(type(stage.config))[0]
