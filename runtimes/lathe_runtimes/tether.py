"""Ties a program to its parent: `python tether.py PARENT_PID program arguments…` becomes the program.

The kernel sends it SIGTERM when the parent ends, however that ends. For programs that cannot watch a pipe themselves.
Imports nothing of Lathe, so that it may be run by path.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Replace this process; returns only when the parent is gone already."""
    parent, command = int(arguments[0]), arguments[1:]
    # A parent that waits for these signals has them blocked, and its children inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the call above
        return 1
    return os.execvp(command[0], command)  # noqa: S606 a list, no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
