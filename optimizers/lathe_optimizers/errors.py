"""Everything that can go wrong in a run, by who can mend it.

LatheError
├── InputError        the user's document, file or data: names the field or file, what was found, what to write
│   └── UnsafeFileError   a file that was refused before it was loaded
├── StoreError        the store cannot be read or written (disk full, no permission)
└── StageError        a stage's process failed
    ├── StageTimeoutError
    └── StageMemoryError
"""


class LatheError(Exception):
    """A failure that is explained to the user in one message, without a traceback."""


class InputError(LatheError):
    """The user's input cannot be used.

    Args:
        where: field path (`spec.data.train.target`) or file.
        found: what is there.
        remedy: what to write or do instead.
    """

    def __init__(self, where: str, found: str, remedy: str) -> None:
        super().__init__(f"{where}: {found}. {remedy}")
        self.where = where
        self.found = found
        self.remedy = remedy


class UnsafeFileError(InputError):
    """A file could run code or exhaust the machine, and was not loaded."""


class StoreError(LatheError):
    """The store cannot be read or written."""


class StageError(LatheError):
    """A stage's process failed."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"stage {stage}: {message}")
        self.stage = stage


class StageTimeoutError(StageError):
    """A stage took longer than its `timeout`."""


class StageMemoryError(StageError):
    """A stage used more than its `resources.memory`."""
