"""What a stage's process tells its parent, one JSON object per line on a pipe of its own."""

from enum import StrEnum

from lathe_api.base import ApiModel
from lathe_api.searchresult import TrialCheck
from lathe_optimizers import errors


class FailureKind(StrEnum):
    """Who can mend a failure."""

    INPUT = "Input"
    UNSAFE = "Unsafe"
    STORE = "Store"
    STAGE = "Stage"


class Failure(ApiModel):
    """Why a stage ended without a result."""

    kind: FailureKind
    message: str
    where: str = ""
    found: str = ""
    remedy: str = ""


class Stopped(ApiModel):
    """The check that ended a trial."""

    check: TrialCheck
    reason: str
    missed_by: float | None = None
    """How far the bound was missed, as a share of it."""


class Message(ApiModel):
    """One line: progress, a failure, or how far a trial came."""

    fraction: float | None = None
    step: str = ""
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    failure: Failure | None = None
    stopped: Stopped | None = None
    spent: dict[TrialCheck, float] | None = None
    """Seconds that a trial spent on each check."""


def failure_of(error: errors.LatheError) -> Failure:
    """The wire form of an error."""
    match error:
        case errors.InputError():
            kind = FailureKind.UNSAFE if isinstance(error, errors.UnsafeFileError) else FailureKind.INPUT
            return Failure(kind=kind, message=str(error), where=error.where, found=error.found, remedy=error.remedy)
        case errors.StoreError():
            return Failure(kind=FailureKind.STORE, message=str(error))
        case _:
            return Failure(kind=FailureKind.STAGE, message=str(error))


def error_of(failure: Failure, stage: str) -> errors.LatheError:
    """The error that a wire form stands for."""
    match failure.kind:
        case FailureKind.INPUT:
            return errors.InputError(failure.where, failure.found, failure.remedy)
        case FailureKind.UNSAFE:
            return errors.UnsafeFileError(failure.where, failure.found, failure.remedy)
        case FailureKind.STORE:
            return errors.StoreError(failure.message)
        case FailureKind.STAGE:
            return errors.StageError(stage, failure.message.removeprefix(f"stage {stage}: "))
