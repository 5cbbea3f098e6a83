"""What a run tells while it goes on: one JSON object per line for machines, a table for people."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from lathe_api.base import ApiModel, Digest
from lathe_api.searchresult import Trial, TrialValue
from lathe_api.summary import GateResult, StageResult


class StageRef(ApiModel):
    """One stage of the plan. A stage that several targets share is listed once."""

    id: str
    """Unique within the run."""
    name: str
    type: str
    targets: tuple[str, ...]


class RunPlanned(ApiModel):
    """The run starts: these stages will be looked up or done."""

    event: Literal["RunPlanned"] = "RunPlanned"
    name: str
    revision: str
    stages: tuple[StageRef, ...]
    inputs: dict[str, Digest] = {}
    """Digest of every file that goes in, by field path."""


class StageStarted(ApiModel):
    """A stage's process has started."""

    event: Literal["StageStarted"] = "StageStarted"
    id: str
    resumed: bool = False
    """Whether an earlier, unfinished try left checkpoints to go on from."""


class StageWaiting(ApiModel):
    """Another run on the same store is doing this stage; its result will be used."""

    event: Literal["StageWaiting"] = "StageWaiting"
    id: str


class StageProgress(ApiModel):
    """How far a stage is."""

    event: Literal["StageProgress"] = "StageProgress"
    id: str
    percent: float
    """0 to 100."""
    step: str
    """What is being done, such as `train`, `control`, `calibrate`, `measure`."""
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None


class StageFinished(ApiModel):
    """A stage is done."""

    event: Literal["StageFinished"] = "StageFinished"
    id: str
    result: StageResult


class GateJudged(ApiModel):
    """A gate has spoken."""

    event: Literal["GateJudged"] = "GateJudged"
    result: GateResult


class Notice(ApiModel):
    """Something a person should know."""

    event: Literal["Notice"] = "Notice"
    message: str


class TrialStarted(ApiModel):
    """A search tries a combination."""

    event: Literal["TrialStarted"] = "TrialStarted"
    number: int
    """From 1."""
    most: int
    """Trials that the budget allows."""
    values: tuple[TrialValue, ...]


class TrialProgress(ApiModel):
    """How far a stage of a trial is."""

    event: Literal["TrialProgress"] = "TrialProgress"
    number: int
    stage: StageProgress


class TrialFinished(ApiModel):
    """A trial is done, or was stopped early."""

    event: Literal["TrialFinished"] = "TrialFinished"
    trial: Trial


Event = (
    RunPlanned
    | StageStarted
    | StageWaiting
    | StageProgress
    | StageFinished
    | GateJudged
    | Notice
    | TrialStarted
    | TrialProgress
    | TrialFinished
)
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
