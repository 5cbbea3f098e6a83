"""How much memory this process may use, and whether the kernel has ended something for using more."""

import contextlib
import os
from pathlib import Path
from typing import Final

CONTROL_GROUP: Final = Path("/sys/fs/cgroup")
_LIMITS: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Of control groups version 2, and of version 1."""
_KILLS: Final = ("memory.events", "memory/memory.oom_control")


def limit() -> int:
    """Bytes of memory of this machine, or of the container this process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # absent, or `max`
            total = min(total, int((CONTROL_GROUP / name).read_text(encoding="ascii")))
    return total


def kills() -> int:
    """Processes of this container that the kernel has ended because its memory ran out; 0 where it does not tell."""
    for name in _KILLS:
        with contextlib.suppress(OSError, ValueError):
            for line in (CONTROL_GROUP / name).read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0
