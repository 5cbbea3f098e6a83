"""What this machine is, as far as artifacts care. Reads what the kernel tells; loads no library."""

import os
import platform
from pathlib import Path
from typing import Final

from lathe_api.hostclass import flags, host_class
from lathe_api.targets import Hardware

__all__ = ["can_run", "facts", "has_gpu", "here", "host_class", "latency_counts"]

_VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})
_X86: Final = frozenset({"x86_64", "amd64"})
_ARM: Final = frozenset({"aarch64", "arm64"})


def here() -> Hardware:
    """The most capable CPU class of this machine."""
    machine = platform.machine().lower()
    if machine in _X86:
        if flags() & _VNNI:
            return Hardware.X86_VNNI
        return Hardware.X86_AVX2 if "avx2" in flags() else Hardware.EDGE
    return Hardware.ARM64 if machine in _ARM else Hardware.EDGE


def has_gpu() -> bool:
    """Whether an NVIDIA device is there."""
    return Path("/dev/nvidiactl").exists()


def can_run(hardware: Hardware) -> tuple[bool, str]:
    """Whether this machine can run an artifact for `hardware`, and why not."""
    arm = platform.machine().lower() in _ARM
    match hardware:
        case Hardware.EDGE:
            return True, ""
        case Hardware.CUDA:
            missing = "" if has_gpu() else ", and this machine has no NVIDIA GPU"
            return False, f"artifacts for Cuda are not built in this version{missing}"
        case Hardware.ARM64:
            return arm, "" if arm else f"Arm64 artifacts do not run on {platform.machine()}"
        case Hardware.X86_VNNI | Hardware.X86_AVX2:
            return not arm, f"{hardware} artifacts do not run on {platform.machine()}" if arm else ""


def latency_counts(hardware: Hardware) -> tuple[bool, str]:
    """Whether a latency measured here says something about `hardware`, and why not."""
    if hardware is Hardware.X86_VNNI and here() is not Hardware.X86_VNNI:
        return False, "this machine lacks the VNNI instructions that X86Vnni artifacts are made for"
    if hardware is Hardware.CUDA:
        return False, "the latency was measured on the CPU"
    return True, ""


def facts() -> dict[str, str | int]:
    """What a record tells of the machine: no name and no address."""
    return {"class": host_class(), "cores": os.cpu_count() or 1, "system": platform.system()}
