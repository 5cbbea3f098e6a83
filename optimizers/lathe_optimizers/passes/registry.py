"""Which stages and methods exist, and where they live. No heavy imports: plans are made with this table.

A document may name more than is built (its schema is the whole API); `check_available` refuses the rest before any
work starts.
"""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from lathe_api.recipe import (
    LossType,
    Stage,
    StageType,
    StudentOrigin,
)
from lathe_optimizers.context import PassContext, PassOutput
from lathe_optimizers.errors import InputError

IMPORT: Final = "Import"
"""Type of the stage that every run begins with; a recipe cannot name it."""


@dataclass(frozen=True)
class Choice:
    """The values of one field that are built; None among them means that the field may be left out."""

    path: tuple[str, ...]
    """Attributes below the stage's block, as in `lathe_api.recipe`; of a list, every item is checked."""
    available: tuple[str | None, ...]


@dataclass(frozen=True)
class Pass:
    """A stage type: its module below `lathe_optimizers.passes`, and what it can do."""

    module: str
    choices: tuple[Choice, ...] = ()


PASSES: Final[dict[str, Pass]] = {
    IMPORT: Pass("import_model"),
    StageType.DISTILL: Pass(
        "distill",
        (
            Choice(("student", "from_"), (StudentOrigin.TEACHER, StudentOrigin.PT2)),
            Choice(("student", "depth"), (None,)),
            Choice(("losses", "type"), (LossType.RESPONSE, LossType.FEATURE)),
        ),
    ),
    StageType.PRUNE: Pass(
        "prune",
        (Choice(("latency",), (None,)),),
    ),
    StageType.FUSE: Pass("fuse"),
    StageType.QUANTIZE: Pass("quantize"),
    StageType.EXPORT: Pass("export"),
}


def check_available(stage: Stage, index: int) -> None:
    """Refuse a stage that asks for something that is not built.

    Args:
        stage: a stage of the recipe.
        index: its place in the recipe, from 0.

    Raises:
        InputError: names the field, what it says, and what can be written there.
    """
    block = stage.type.value.lower()
    for choice in PASSES[stage.type].choices:
        found: list[object] = [stage.config]
        for name in choice.path:
            values = [getattr(part, name) for part in found]
            found = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
        for value in found:
            if value not in choice.available:
                field = ".".join(name.rstrip("_") for name in choice.path)
                raise InputError(f"spec.recipe.stages[{index}].{block}.{field}", _found(value), _remedy(stage, choice))


def _found(value: object) -> str:
    return f"{value} is not available in this version" if value is not None else "nothing"


def _remedy(stage: Stage, choice: Choice) -> str:
    names = [name for name in choice.available if name is not None]
    if names:
        return f"Available: {', '.join(names)}."
    if choice.available:
        return "Leave the field out."
    others = ", ".join(sorted(t for t, p in PASSES.items() if p.module and t != IMPORT))
    return f"No {stage.type} stage is available; remove it. Available stages: {others}."


def load(stage_type: str) -> Callable[[PassContext], PassOutput]:
    """The function that does stages of this type. Imports onnx or torch; call it in the stage's own process.

    Raises:
        KeyError: no such stage type is built.
    """
    if not PASSES[stage_type].module:
        raise KeyError(stage_type)
    run: Callable[[PassContext], PassOutput] = importlib.import_module(f"{__package__}.{PASSES[stage_type].module}").run
    return run


@cache
def source_digest() -> str:
    """sha256 over the source of all passes, so that results of other source are never taken for current ones."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"
