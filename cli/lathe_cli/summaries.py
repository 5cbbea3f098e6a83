"""Reads what a run left."""

from pathlib import Path

from pydantic import ValidationError

from lathe_api.errors import ApiError
from lathe_api.summary import Summary


class NoRunError(ApiError):
    """The folder is not that of a run."""


def read_summary(folder: Path) -> Summary:
    """The summary of a run folder.

    Raises:
        NoRunError: there is none that this version reads.
    """
    path = folder / "summary.json"
    try:
        return Summary.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise NoRunError(f"{path}: no summary that this version reads. Name a folder of `lathe run`") from error
