"""What is wrong with a document, in words that say what to write.

ApiError
├── DocumentError      a file or text: all its problems, each with its place
└── UnknownKindError   a kind that Lathe does not have
"""

from collections.abc import Iterable
from dataclasses import dataclass

from typing_extensions import override


class ApiError(Exception):
    """A mistake in the use of the API, explained in one message."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a document."""

    file: str
    """Path or name of the document's file."""
    line: int
    """From 1; 0 where there is no place in a text."""
    column: int
    """From 1; 0 where there is no place in a text."""
    path: str
    """Field path, such as `spec.recipe.stages[2].prune.parameters`; empty for the file as a whole."""
    found: str
    """What is there."""
    remedy: str
    """What to write instead."""

    @override
    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        path = f" {self.path}:" if self.path else ""
        return f"{place}:{path} found {self.found}; {self.remedy}"


class DocumentError(ApiError):
    """A document cannot be used. The message has one line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(p) for p in self.problems))


class UnknownKindError(ApiError):
    """A kind that Lathe does not have."""

    def __init__(self, kind: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown kind {kind!r}; write one of {', '.join(known)}")
        self.kind = kind
