"""Peak memory of static calibration: each number of samples in a process of its own."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COUNTS = (256, 8192)
METHODS = ("MinMax", "Percentile", "Entropy")
BAR = 1.05
"""Most that 32 times the samples may add."""


def rows() -> list[dict[str, object]]:
    """Peak resident memory by calibration method, of the most samples over the fewest."""
    found = []
    for method in METHODS:
        peaks = [_measured(method, count) for count in COUNTS]
        ratio = round(peaks[1] / peaks[0], 3)
        missed = ["peakMemoryRatio"] if ratio > BAR else []
        row = {"calibration": method, "samples": list(COUNTS), "peakMemoryRatio": ratio, "bar": BAR, "missed": missed}
        found.append(row)
        print(f"calibration {method:11} {COUNTS[0]} -> {COUNTS[1]} samples: {ratio:.3f}x the memory  <= {BAR}")
    return found


def _measured(method: str, count: int) -> int:
    command = [sys.executable, __file__, method, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _calibrate(method: str, count: int) -> None:
    from stages import Samples, original, quantised

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = original("MLP", folder)
        data = Samples(start.manifest.signature.inputs[0].name, (256,), count)
        quantised(start, data, folder / "small", method="Static", calibration=method)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    _calibrate(sys.argv[1], int(sys.argv[2]))
