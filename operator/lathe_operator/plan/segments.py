"""Segments: consecutive stages with the same resources, which one Job does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lathe_api.base import number, seconds
from lathe_api.data import ModelFormat
from lathe_api.recipe import PruneMethod, QuantizeMethod, Stage, StageResources, StageType
from lathe_api.search import Search
from lathe_api.stageorder import EXPORT_STAGE, IMPORT_STAGE
from lathe_operator.plan.observed import Json, dig

IMPORT_SECONDS: Final = 3600.0
_DONE: Final = frozenset({"Succeeded", "Cached", "Reverted"})


@dataclass(frozen=True)
class Segment:
    """The stages of one Job."""

    index: int
    stages: tuple[str, ...]
    """Names, in order; the first segment begins with the import."""
    resources: StageResources
    seconds: float
    """Sum of the stages' time budgets."""
    last: bool
    needs_torch: bool
    """Whether the image without torch cannot do it."""


def segments(stages: Sequence[Stage], model_format: ModelFormat, search: Search | None = None) -> tuple[Segment, ...]:
    """The segments of a recipe. The import goes with the first stage, an appended export with the last.

    A search is one segment: its trials go through all stages, with as much as the largest stage needs.
    """
    if search is not None:
        return (_searching(stages, search),)
    groups: list[list[Stage]] = []
    for stage in stages:
        if groups and groups[-1][0].resources == stage.resources:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    found = []
    for index, group in enumerate(groups):
        first, last = index == 0, index == len(groups) - 1
        names = [s.name for s in group]
        if first:
            names.insert(0, IMPORT_STAGE)
        if last and not any(s.type is StageType.EXPORT for s in stages):
            names.append(EXPORT_STAGE)
        found.append(
            Segment(
                index=index,
                stages=tuple(names),
                resources=group[0].resources,
                seconds=sum(seconds(s.timeout) for s in group) + (IMPORT_SECONDS if first else 0.0),
                last=last,
                needs_torch=model_format is not ModelFormat.ONNX or any(_needs_torch(s) for s in group),
            )
        )
    return tuple(found)


def _searching(stages: Sequence[Stage], search: Search) -> Segment:
    """A trial may begin just before the time is up; afterwards the chosen recipe is done as any other."""
    names = [IMPORT_STAGE, *(s.name for s in stages)]
    if not any(s.type is StageType.EXPORT for s in stages):
        names.append(EXPORT_STAGE)
    once = sum(seconds(s.timeout) for s in stages)
    return Segment(
        index=0,
        stages=tuple(names),
        resources=StageResources(
            cpu=_largest([s.resources.cpu for s in stages]), memory=_largest([s.resources.memory for s in stages])
        ),
        seconds=IMPORT_SECONDS + seconds(search.timeout) + 2 * once,
        last=True,
        needs_torch=True,
    )


def _largest(quantities: Sequence[str | None]) -> str | None:
    """None where a stage has no limit."""
    known = [q for q in quantities if q is not None]
    return max(known, key=number) if len(known) == len(quantities) else None


def is_done(segment: Segment, revision: Json) -> bool:
    """Whether every stage of a segment has a result, by the status that its pod wrote."""
    if dig(revision, "status", "finishedAt") is not None:
        return True
    if segment.last:
        return False
    states: dict[str, list[str]] = {}
    for stage in dig(revision, "status", "stages", default=[]):
        states.setdefault(str(stage["name"]).rpartition(".")[2], []).append(str(stage.get("state")))
    return all(name in states and set(states[name]) <= _DONE for name in segment.stages)


def _needs_torch(stage: Stage) -> bool:
    if stage.quantize is not None:
        return stage.quantize.method is QuantizeMethod.QUANTIZATION_AWARE
    if stage.prune is not None:
        return stage.trains or stage.prune.method is PruneMethod.STRUCTURED_MAGNITUDE
    if stage.fuse is not None:
        return stage.trains
    return stage.type is StageType.DISTILL
