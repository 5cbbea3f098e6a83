"""What a stage's process is asked to do: self-contained, so that any machine that reaches the store can do it."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from lathe_api.base import ApiModel, Digest
from lathe_api.data import Data, ModelSource, Objective
from lathe_api.gates import Gate
from lathe_api.manifest import ArtifactManifest
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware

REQUEST_SCHEMA: Final = "lathe.dev/request/v1"
IMPORT: Final = "Import"


class PinnedLocation(ApiModel):
    """A file or folder by place and content."""

    uri: str
    digest: Digest


class Purpose(StrEnum):
    """How much of a stage is wanted."""

    FINISH = "Finish"
    """The result, fully measured."""
    MAKE = "Make"
    """The result, not measured: a stage on the way of a trial."""
    TRY = "Try"
    """As Finish, but given up at the first check that fails."""


class TrialChecks(ApiModel):
    """What a trial is checked by, where gates speak."""

    target: str
    """Name of a target, for the verdicts."""
    gates: tuple[Gate, ...]
    """That speak after this stage."""
    original: Digest
    """Key of the import's record."""
    previous: Digest | None = None
    """Key of the record of the stage before, where it has one."""


class StageRequest(ApiModel):
    """One stage."""

    schema_: Annotated[Literal["lathe.dev/request/v1"], Field(alias="schema")] = REQUEST_SCHEMA
    key: Digest
    """Under which the result is kept."""
    name: str
    type: str
    """Import, or the stage's type."""
    index: int
    """Place in the recipe, for error messages; -1 for the import."""
    stage: Stage | None
    """Absent for the import."""
    model: ModelSource
    objective: Objective
    data: Data
    locations: dict[str, PinnedLocation]
    """Every file of the document, by field path."""
    input: ArtifactManifest | None
    """Result of the stage before; absent for the import."""
    original: ArtifactManifest | None
    """Result of the import: teacher and baseline; absent for the import."""
    seed: int
    hardware: Hardware
    threads: int
    versions: dict[str, str]
    purpose: Purpose = Purpose.FINISH
    checks: TrialChecks | None = None
    """Of purpose Try."""
    key_fields: dict[str, JsonValue] = {}
    """What `key` is the digest of."""
