"""The optimiser's figures: one thread, interleaved, as ratios with their noise, beside what other tools make.

The models are made by the project's own stages from random weights, since speed and size do not depend on what a
network has learnt; the compound recipe runs on real digits. Run it by `make bench-optimize`; it ends with status 1 when
a bar is missed.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import compound
import memory
import numpy as np
import peers
from networks import NETWORKS
from stages import Samples, original, quantised

from lathe_api.manifest import LatencyRatio, Role
from lathe_api.targets import Hardware
from lathe_optimizers import hardware
from lathe_optimizers.context import Artifact
from lathe_optimizers.passes import kernels, parity
from lathe_optimizers.passes.latency import latency_ratio

METHODS = {
    "residual CNN": ("Static", "QuantizationAware"),
    "encoder": ("Dynamic", "Static", "WeightOnly4"),
    "MLP": ("Static", "QuantizationAware"),
    "linear": ("Dynamic",),
}
SPEED_BARS = {("residual CNN", "Static"): 3.8, ("residual CNN", "QuantizationAware"): 3.8, ("encoder", "Dynamic"): 2.2}
"""Least speed-up of the median; the upper end of its interval has to reach it."""
SIZE_BARS = {("residual CNN", "Static"): 3.9, ("encoder", "WeightOnly4"): 6.0, ("linear", "Dynamic"): 3.97}
"""Least size of the original / size of the result."""
OURS = {"residual CNN": "Static", "encoder": "Dynamic", "linear": "Dynamic"}
"""What the built-in recipes choose, for the comparison with other tools' defaults."""
SAME = 0.02
"""Differences of speed, size and accuracy up to this share are none."""
SAMPLES = 32
RESULTS = Path(__file__).parent / "results" / "optimize.json"


def speed(ratio: LatencyRatio) -> dict[str, object]:
    """A timing with what tells how sure it is."""
    return {
        "median": round(ratio.value, 3),
        "low": round(ratio.low, 3),
        "high": round(ratio.high, 3),
        "noiseFloor": round(ratio.noise_floor, 3),
        "rounds": ratio.rounds,
        "threads": ratio.threads,
        "batch": ratio.batch,
    }


def own_row(network: str, method: str, start: Artifact, made: Path, ratio: LatencyRatio) -> dict[str, object]:
    """One of our models against its original."""
    counted = kernels.count_kernels(made)
    size = start.files[Role.ONNX].stat().st_size / made.stat().st_size
    bars = {"speedUp": SPEED_BARS.get((network, method)), "sizeRatio": SIZE_BARS.get((network, method))}
    row = {
        "network": network,
        "method": method,
        "speedUp": speed(ratio),
        "sizeRatio": round(size, 3),
        "kernels": {"int8": counted.int8, "float32": counted.float32},
        "bars": {name: bar for name, bar in bars.items() if bar},
    }
    row["missed"] = [n for n, bar in bars.items() if bar and {"speedUp": ratio.high, "sizeRatio": size}[n] < bar]
    shown = " ".join(f"{n} >= {b}" for n, b in row["bars"].items()) + (" MISSED" if row["missed"] else "")
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
    print(
        f"{network:14}{method:19}{ratio.value:6.2f}x  {interval:15} +-{ratio.noise_floor:.3f}   {size:5.2f}x   "
        f"{counted.int8:3} / {counted.float32:<3}  {shown}",
        flush=True,
    )
    return row


def peer_rows(network: str, start: Artifact, ours: Path, folder: Path, seconds: float) -> list[dict[str, object]]:
    """Our model against what other tools make of the same file with their defaults, both ways of quantising."""
    shape, batch = NETWORKS[network][1:]
    name = start.manifest.signature.inputs[0].name
    calibration = Samples(name, shape, SAMPLES)
    probe = Samples(name, shape, SAMPLES, first=10_000).take(np.arange(SAMPLES))[0]
    reference = parity.onnx_answers(start.files[Role.ONNX], probe)
    own_error = parity.typical_difference(reference, parity.onnx_answers(ours, probe))
    rows = []
    for title, peer in peers.PEERS.items():
        for mode in peers.MODES:
            theirs = peers.quantised(peer, mode, start.files[Role.ONNX], calibration, folder)
            ratio = latency_ratio(theirs, ours, {name: probe[0][:batch]}, budget_seconds=seconds)
            error = parity.typical_difference(reference, parity.onnx_answers(theirs, probe))
            size = theirs.stat().st_size / ours.stat().st_size
            compared = {"speedUp": ratio.high, "sizeRatio": size, "errorRatio": error / own_error}
            row = {
                "network": network,
                "ours": OURS[network],
                "peer": title,
                "peerMode": mode,
                "speedUp": speed(ratio),
                "sizeRatio": round(size, 3),
                "errorRatio": round(error / own_error, 3),
                "missed": [n for n, value in compared.items() if value < 1 - SAME],
            }
            rows.append(row)
            print(
                f"{network:14}{OURS[network]:9} vs {title:20}{mode:9}{ratio.value:6.2f}x faster  {size:5.3f}x smaller"
                f"  {error / own_error:6.2f}x less error  {' '.join(row['missed'])}",
                flush=True,
            )
    return rows


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time spent on timing one pair")
    parser.add_argument("--only", choices=NETWORKS, help="one network; writes no results")
    options = parser.parse_args()
    if hardware.here() is not Hardware.X86_VNNI:
        print("skipped: this CPU has no VNNI instructions (avx512_vnni or avx_vnni), which the int8 kernels need")
        return 0
    print(f"{'network':14}{'method':19}{'speed':>7}  {'95 % interval':15} noise     size    int8/float  bars")
    rows: list[dict[str, object]] = []
    compared: list[dict[str, object]] = []
    for network, (_, shape, batch) in NETWORKS.items():
        if options.only in (None, network):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                start = original(network, folder)
                data = Samples(start.manifest.signature.inputs[0].name, shape, SAMPLES)
                feed = {data.input_names[0]: data.take(np.arange(batch))[0][0]}
                for method in METHODS[network]:
                    made = quantised(start, data, folder / method, method=method)
                    ratio = latency_ratio(start.files[Role.ONNX], made, feed, budget_seconds=options.seconds)
                    rows.append(own_row(network, method, start, made, ratio))
                    if OURS.get(network) == method:
                        compared += peer_rows(network, start, made, folder, options.seconds)
    if options.only is not None:
        return 1 if any(r["missed"] for r in rows + compared) else 0
    used = memory.rows()
    with tempfile.TemporaryDirectory() as name:
        whole = compound.row(Path(name))
    found = {"rows": rows, "peers": compared, "calibrationMemory": used, "compound": whole}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(facts() | found, indent=2) + "\n", encoding="utf-8")
    missed = [r for r in (*rows, *compared, *used, whole) if r["missed"]]
    return 1 if missed else 0


def facts() -> dict[str, object]:
    """What is needed to repeat the results."""
    return {
        "command": "make bench-optimize",
        "machine": hardware.facts(),
        "versions": {name: version(name) for name in ("numpy", "onnx", "onnxruntime", "torch", "torchao")},
    }


if __name__ == "__main__":
    sys.exit(main())
