"""Failures of one request, with the status of either protocol (Triton's mapping of its error codes)."""

from enum import Enum


class Kind(Enum):
    """Kind of failure: HTTP status and name of the gRPC status."""

    INVALID = (400, "INVALID_ARGUMENT")
    NOT_FOUND = (404, "NOT_FOUND")
    METHOD_NOT_ALLOWED = (405, "UNIMPLEMENTED")
    UNSUPPORTED = (501, "UNIMPLEMENTED")
    UNAVAILABLE = (503, "UNAVAILABLE")
    EXISTS = (409, "ALREADY_EXISTS")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    EXHAUSTED = (507, "RESOURCE_EXHAUSTED")
    INTERNAL = (500, "INTERNAL")

    @property
    def http(self) -> int:
        """Status code of the HTTP answer."""
        return self.value[0]

    @property
    def grpc(self) -> str:
        """Name of the gRPC status code."""
        return self.value[1]


class RequestError(Exception):
    """A request that is answered with an error; the server goes on."""

    def __init__(self, message: str, kind: Kind = Kind.INVALID) -> None:
        super().__init__(message)
        self.kind = kind
