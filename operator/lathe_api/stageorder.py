"""Which stages may follow which: the reasons that a recipe can be refused for before anything has run.

Training changes weights, so that it must come before the numbers are frozen: a quantised or exported graph can no
longer be trained. One rule per function of the earlier stage, first violation wins per stage.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lathe_api.findings import Finding, duplicates

if TYPE_CHECKING:
    from lathe_api.recipe import Stage

IMPORT_STAGE: Final = "import"
"""Name of the stage that every run starts with."""
EXPORT_STAGE: Final = "export"
"""Name of the stage that is appended when the recipe has none of type Export."""
_TRAINING_FREE: Final = ("Dynamic", "Static", "WeightOnly4", "WeightOnly8", "Float16")


def stage_findings(stages: Sequence["Stage"]) -> list[Finding]:
    """What is wrong with names and order of a stage list, with locations below `stages`."""
    findings = duplicates((s.name for s in stages), "stages")
    exports = any(s.type == "Export" for s in stages)
    for index, stage in enumerate(stages):
        if stage.name == IMPORT_STAGE or (stage.name == EXPORT_STAGE and not exports):
            found = f"{stage.name}, the name of a stage that every run adds itself"
            findings.append(Finding(("stages", index, "name"), found, "give the stage another name"))
        if order := _misplaced(stages[:index], stage):
            findings.append(Finding(("stages", index, "type"), *order))
    return findings


def known_stage_names(stages: Sequence["Stage"]) -> tuple[str, ...]:
    """Names that a gate may refer to: those of the recipe, and of the Export stage that is appended without one."""
    names = tuple(s.name for s in stages)
    return names if any(s.type == "Export" for s in stages) else (*names, EXPORT_STAGE)


def _misplaced(before: Sequence["Stage"], stage: "Stage") -> tuple[str, str] | None:
    for earlier in before:
        if reason := _after(earlier, stage):
            return f"{_label(stage)} after {_label(earlier)}", reason
    return None


def _after(earlier: "Stage", stage: "Stage") -> str | None:
    """Why `stage` cannot come after `earlier`, or None."""
    kinds = (earlier.type.value, stage.type.value)
    if kinds in (("Export", "Export"), ("Quantize", "Quantize")):
        return f"keep one {stage.type} stage"
    if earlier.type.value in ("Quantize", "Export") and _changes_weights(stage):
        return f"move {stage.name} before {earlier.name}: what {earlier.type} leaves can no longer be trained or cut"
    if kinds in (("Prune", "Distill"), ("Fuse", "Distill")):
        return (
            f"move {stage.name} before {earlier.name}: the student is cut from the teacher, "
            f"so that all that {earlier.name} did would be lost"
        )
    if earlier.fuse is not None and earlier.fuse.leaves_onnx and _needs_program(stage):
        return (
            f"move {stage.name} before {earlier.name}: the operators that it fuses have no form in a program, "
            "and without one nothing can be trained or cut"
        )
    return None


def _needs_program(stage: "Stage") -> bool:
    """Whether a stage trains or cuts a network."""
    if stage.prune is not None:
        return stage.prune.method.value == "StructuredMagnitude" or stage.prune.finetune is not None
    if stage.fuse is not None:
        return stage.fuse.finetune is not None
    return stage.quantize is not None and stage.quantize.method.value == "QuantizationAware"


def _changes_weights(stage: "Stage") -> bool:
    if stage.quantize is not None:
        return stage.quantize.method.value not in _TRAINING_FREE
    return stage.type.value in ("Distill", "Prune", "Fuse")


def _label(stage: "Stage") -> str:
    if stage.quantize is not None:
        return f"{stage.type} {stage.quantize.method}"
    return stage.type.value
