"""Which stages a document asks for, and the key under which each result is kept. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lathe_api.canonical import digest_of
from lathe_api.manifest import ArtifactManifest, Role
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.recipe import Export, Stage, StageType
from lathe_api.stageorder import EXPORT_STAGE
from lathe_api.targets import Hardware, Target
from lathe_optimizers.errors import InputError
from lathe_optimizers.request import IMPORT

HARDWARE_STAGES: Final = frozenset({StageType.QUANTIZE, StageType.EXPORT})
"""Stages whose result depends on the hardware of the target."""

NOT_THE_RESULT: Final = {"name", "resources", "timeout"}
"""Fields of a stage that do not decide its result."""


@dataclass(frozen=True)
class Node:
    """One stage for one or more targets; targets share it until a stage depends on their hardware."""

    id: str
    name: str
    type: str
    index: int
    """Place in the recipe; -1 for the import."""
    stage: Stage | None
    targets: tuple[Target, ...]
    hardware: Hardware
    parent: str | None
    """Id of the node before."""
    last: bool
    """Whether the recipe ends here."""


def stage_list(document: OptimizedModel) -> tuple[Stage, ...]:
    """The recipe's stages, with an Export of defaults at the end where the recipe has none."""
    stages = document.spec.recipe.stages
    if any(s.type is StageType.EXPORT for s in stages):
        return stages
    return (*stages, Stage(name=EXPORT_STAGE, type=StageType.EXPORT, export=Export()))


def until_list(stages: tuple[Stage, ...], until: str | None) -> tuple[Stage, ...]:
    """The stages up to and with `until`; `import` for none.

    Raises:
        InputError: there is no such stage.
    """
    if until is None:
        return stages
    names = ["import", *(s.name for s in stages)]
    if until not in names:
        raise InputError("--until", f"no stage is called {until!r}", f"Write one of {', '.join(names)}")
    return stages[: names.index(until)]


def select(document: OptimizedModel, names: Sequence[str]) -> tuple[Target, ...]:
    """The targets of a document, or those of `names`.

    Raises:
        InputError: there is no such target.
    """
    targets = document.spec.targets
    known = [t.name for t in targets]
    for name in names:
        if name not in known:
            raise InputError("--target", f"no target is called {name!r}", f"Write one of {', '.join(known)}")
    return tuple(t for t in targets if not names or t.name in names)


def nodes(stages: tuple[Stage, ...], targets: tuple[Target, ...], *, until: str | None = None) -> tuple[Node, ...]:
    """The stages to do, parents first, of a recipe. One node serves all targets that it is the same for.

    Raises:
        InputError: there is no stage `until`.
    """
    found = [Node("import", "import", IMPORT, -1, None, targets, targets[0].hardware, None, last=not stages)]
    groups = {"": targets}
    parents = {"": "import"}
    for index, stage in enumerate(until_list(stages, until)):
        if stage.type in HARDWARE_STAGES and "" in groups:
            kinds = dict.fromkeys(t.hardware for t in targets)
            groups = {k.value: tuple(t for t in targets if t.hardware is k) for k in kinds}
            parents = {k.value: parents[""] for k in kinds}
        for kind, members in groups.items():
            node = Node(
                id=f"{stage.name}@{kind}" if len(groups) > 1 else stage.name,
                name=stage.name,
                type=stage.type.value,
                index=index,
                stage=stage,
                targets=members,
                hardware=members[0].hardware,
                parent=parents[kind],
                last=index == len(stages) - 1,
            )
            found.append(node)
            parents[kind] = node.id
    return tuple(found)


def key_fields(
    node: Node,
    document: OptimizedModel,
    *,
    digests: Mapping[str, str],
    parent: ArtifactManifest | None,
    original: ArtifactManifest | None,
    seed: int,
    versions: Mapping[str, str],
    host: str,
) -> dict[str, Any]:
    """Everything that decides a stage's result and its measurement; its key is the `digest_of` it.

    That is: digests of every file of the document, the artifact that goes in, the original, the canonical
    configuration, the seed, the library versions with the digest of the passes' source, the hardware of the target
    where the stage depends on it, and the class of this machine (the measured latency belongs to it).
    """
    stage = None
    if node.stage is not None:
        stage = node.stage.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=NOT_THE_RESULT)
    spec = document.spec
    return {
        "type": node.type,
        "stage": stage,
        "format": spec.model.format,
        "objective": spec.objective.model_dump(mode="json", by_alias=True),
        "data": spec.data.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_PLACES),
        "files": dict(digests),
        "input": _files(parent),
        "original": _files(original),
        "seed": seed,
        "versions": dict(versions),
        "hardware": node.hardware if node.stage is not None and node.stage.type in HARDWARE_STAGES else None,
        "host": host,
    }


def revision_of(document: OptimizedModel, digests: Mapping[str, str], seed: int) -> str:
    """`<name>-<hash of inputs and recipe>`: the same inputs give the same revision."""
    spec = document.spec
    value = {
        "recipe": spec.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
        "objective": spec.objective.model_dump(mode="json", by_alias=True),
        "targets": sorted({t.hardware.value for t in spec.targets}),
        "files": dict(digests),
        "seed": seed,
    }
    return f"{document.metadata.name}-{digest_of(value).removeprefix('sha256:')[:10]}"


_SOURCE: Final = {"uri", "digest"}
_PLACES: Final[Any] = {
    "train": _SOURCE,
    "evaluation": _SOURCE,
    "calibration": {"source": _SOURCE},
    "slices": True,  # for gates, which are judged anew in every run
}


def _files(artifact: ArtifactManifest | None) -> dict[str, str] | None:
    if artifact is None:
        return None
    return {role.value: blob.digest for role, blob in sorted(artifact.files.items()) if role is not Role.PREDICTIONS}
