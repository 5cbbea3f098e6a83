"""What kind of CPU this is, as far as files and measurements belong to one kind."""

import platform
from functools import cache
from pathlib import Path
from typing import Final

HOST_KEY: Final = "lathe.hostClass"
"""Metadata property of a host-tuned ONNX file: the kind of CPU that it was written for."""
_TOLD: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets that decide which kernels and memory layouts are chosen."""


@cache
def flags() -> frozenset[str]:
    """Instruction sets, as the kernel calls them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(f for line in lines if line.startswith(("flags", "Features")) for f in line.split(":")[1].split())


def host_class() -> str:
    """CPU architecture and the instruction sets that decide speed: measurements belong to it."""
    return "+".join((platform.machine().lower(), *(f for f in _TOLD if f in flags())))
