"""What can go wrong before a server answers, by who can mend it."""


class LatheRuntimeError(Exception):
    """A failure that is explained to the user in one message, without a traceback."""


class InputError(LatheRuntimeError):
    """What the user gave cannot be used.

    Args:
        where: field path (`spec.targets[].serving.mode`), flag or file.
        found: what is there.
        remedy: what to write or do instead.
    """

    def __init__(self, where: str, found: str, remedy: str) -> None:
        super().__init__(f"{where}: {found}. {remedy}")
        self.where = where
        self.found = found
        self.remedy = remedy


class PortTakenError(InputError):
    """Another program listens on the port."""


class RepositoryError(LatheRuntimeError):
    """A model repository cannot be written."""


class ModelLoadError(LatheRuntimeError):
    """A model of the repository cannot be served."""


class StartError(LatheRuntimeError):
    """A server process did not become ready."""


class EnvironmentUnavailableError(LatheRuntimeError):
    """The environment of an external server cannot be made on this machine."""
