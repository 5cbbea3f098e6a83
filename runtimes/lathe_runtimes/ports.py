"""TCP ports: found taken before a long run, not after it."""

import socket

from lathe_runtimes.errors import PortTakenError


def bind(host: str, port: int, flag: str = "--http-port") -> socket.socket:
    """A socket bound to the port (0 for a free one), not yet listening.

    Raises:
        PortTakenError: the port or address cannot be used; names both and the flag.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    # Connections of a server that has just ended must not keep the next from starting.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise PortTakenError(
            flag,
            f"port {port} on {host} cannot be used: {error.strerror}",
            f"Choose another with {flag}, or 0 for a free one.",
        ) from error
    return found


def check_port(port: int, host: str = "127.0.0.1", flag: str = "--http-port") -> None:
    """Fail early when a server could not listen on the port; 0 always can.

    Raises:
        PortTakenError: as said.
    """
    if port:
        bind(host, port, flag).close()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free at this moment."""
    with bind(host, 0) as found:
        return int(found.getsockname()[1])
