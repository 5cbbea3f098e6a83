"""ModelRevision: the immutable record of one run. To an OptimizedModel it is what a ReplicaSet is to a Deployment."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lathe_api.base import API_VERSION, ApiModel, Digest, FieldName, Text, Timestamp, Uri
from lathe_api.data import Data, ModelSource, Objective
from lathe_api.findings import duplicates, refuse
from lathe_api.gates import Gate
from lathe_api.objects import ObjectMeta, ObjectRef
from lathe_api.recipe import Stage
from lathe_api.search import Search
from lathe_api.stageorder import stage_findings
from lathe_api.status import Conditions, GateStatus, Generation, SearchStatus, StageStatus, TargetStatus
from lathe_api.store import Store
from lathe_api.summary import Verdict
from lathe_api.targets import Target

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class RevisionCause(StrEnum):
    """Why a revision was made."""

    SPEC = "Spec"
    DRIFT = "Drift"
    SCHEDULE = "Schedule"
    LEARNING = "Learning"
    FEDERATION = "Federation"
    MANUAL = "Manual"


class ResolvedInput(ApiModel):
    """A file or folder that went in, by digest."""

    field: FieldName
    """Where it is named: `model`, `data.train`, `recipe.stages[0].distill.student`."""
    uri: Uri
    """Where it was."""
    digest: Digest
    """sha256 of its bytes, or of the sorted list of file digests of a folder."""


class ModelRevisionSpec(ApiModel):
    """Everything that decides the result; never changed."""

    model_ref: ObjectRef
    """The OptimizedModel that this is a revision of."""
    generation: Generation
    """Its generation at that time."""
    cause: RevisionCause = RevisionCause.SPEC
    """Why the revision was made."""
    model: ModelSource
    """The given model."""
    data: Data
    """The data sets."""
    objective: Objective
    """What the model is for."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=32)]
    """The recipe, with references resolved."""
    search: Search | None = None
    """Settings of the stages that were tried."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=32)] = ()
    """What the result had to prove."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=16)]
    """What it was made for."""
    seed: Seed = 0
    """Of all that is random."""
    store: Store = Store()
    """Where artifacts are."""
    hash: Digest
    """sha256 over everything here that decides the result; the name of the revision ends in its beginning."""

    @model_validator(mode="after")
    def _possible(self) -> "ModelRevisionSpec":
        findings = stage_findings(self.stages)
        findings += duplicates((g.name for g in self.gates), "gates")
        findings += duplicates((t.name for t in self.targets), "targets")
        refuse("revision", findings)
        return self


class ModelRevisionStatus(ApiModel):
    """What came of it."""

    summary: Text = ""
    """One line for people."""
    observed_generation: Generation | None = None
    """Generation of `spec` that all of this is about."""
    conditions: Conditions = ()
    """For machines."""
    inputs: Annotated[tuple[ResolvedInput, ...], Field(max_length=64)] = ()
    """All that went in, by digest; written by the first Job, which reads the files."""
    verdict: Verdict | None = None
    """The worst verdict of all gates."""
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=256)] = ()
    """How far each stage is, and what it left."""
    gates: Annotated[tuple[GateStatus, ...], Field(max_length=512)] = ()
    """What each gate said."""
    targets: Annotated[tuple[TargetStatus, ...], Field(max_length=16)] = ()
    """What was made for each target."""
    search: SearchStatus | None = None
    """How far the search is, and what it found."""
    report: Uri | None = None
    """Where the report is."""
    started_at: Timestamp | None = None
    """When the first stage began."""
    finished_at: Timestamp | None = None
    """When the last one ended."""


class ModelRevision(ApiModel):
    """Immutable record of one run, written by the operator."""

    api_version: Literal["lathe.dev/v1alpha1"] = API_VERSION
    """Group and version."""
    kind: Literal["ModelRevision"] = "ModelRevision"
    """Kind of the document."""
    metadata: ObjectMeta
    """Name and namespace; owned by the OptimizedModel."""
    spec: ModelRevisionSpec
    """Everything that decides the result."""
    status: ModelRevisionStatus | None = None
    """What came of it."""
