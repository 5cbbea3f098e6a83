"""Energy per run, where the kernel counts it: the RAPL counters below /sys/class/powercap (Linux, x86).

The counters are of whole processor packages. What else runs on the machine counts too, and so does idling: runs of both
models alternate, and only their ratio is kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")
BLOCK_SECONDS: Final = 0.2
"""Of one model at a time: the counters advance about every millisecond."""


@dataclass(frozen=True)
class Counter:
    """One processor package."""

    folder: Path
    wraps_at: int
    """Microjoules at which it starts again from 0."""

    def read(self) -> int:
        """Microjoules."""
        return int((self.folder / "energy_uj").read_text(encoding="ascii"))


def counters(root: Path = POWERCAP) -> tuple[Counter, ...]:
    """The readable counters of whole packages (`intel-rapl:N`); none where the kernel has none or tells nobody."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") > 1:
            continue  # a part of a package, which its package counts too
        try:
            counter = Counter(folder, int((folder / "max_energy_range_uj").read_text(encoding="ascii")))
            counter.read()
        except (OSError, ValueError):
            continue
        found.append(counter)
    return tuple(found)


def spent(before: Sequence[int], after: Sequence[int], packages: Sequence[Counter]) -> int:
    """Microjoules between two readings, each of which may have wrapped once."""
    return sum(b - a if b >= a else b - a + p.wraps_at for a, b, p in zip(before, after, packages, strict=True))


def energy_ratio(
    baseline: Callable[[], object], candidate: Callable[[], object], budget_seconds: float
) -> float | None:
    """Energy of a run of `baseline` / energy of a run of `candidate`; None where nothing counts it.

    Args:
        baseline: does one run.
        candidate: does one run.
        budget_seconds: of measuring.
    """
    packages = counters()
    if not packages:
        return None
    totals = [[0, 0], [0, 0]]
    end = time.perf_counter() + budget_seconds
    turn = 0
    while time.perf_counter() < end or turn < 2:  # noqa: PLR2004 - each at least once
        which = turn % 2
        run = (baseline, candidate)[which]
        before = [p.read() for p in packages]
        stop = time.perf_counter() + BLOCK_SECONDS
        while time.perf_counter() < stop:
            run()
            totals[which][1] += 1
        totals[which][0] += spent(before, [p.read() for p in packages], packages)
        turn += 1
    (joules, runs), (own_joules, own_runs) = totals
    return (joules / runs) / (own_joules / own_runs) if joules and own_joules else None
