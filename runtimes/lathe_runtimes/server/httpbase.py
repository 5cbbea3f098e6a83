"""What every HTTP endpoint needs."""

import json

from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.http import Request


def error_body(message: str) -> bytes:
    """Error document of the protocol."""
    return json.dumps({"error": message}).encode()


def only(method: str, request: Request) -> None:
    """Refuse other methods; HEAD counts as GET.

    Raises:
        RequestError: as said.
    """
    asked = "GET" if request.head.method == "HEAD" else request.head.method
    if asked != method:
        found = request.head
        raise RequestError(f"{found.path[:200]} takes {method}; found {found.method}", Kind.METHOD_NOT_ALLOWED)
