"""int8 against fp32 on ONNX Runtime: one thread, interleaved, as ratios with their noise.

The int8 models are made by the project's own Quantize stage, from random weights: speed and size do not depend on what
a network has learnt. Run it by `make bench-optimize`; it ends with status 1 when the bar is missed.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from networks import NETWORKS, program

from lathe_api.data import Data, DataSource, InputField, Metric, ModelFormat, ModelSource, Objective, Task
from lathe_api.manifest import ArtifactManifest, LatencyRatio, Role
from lathe_api.recipe import Stage
from lathe_api.targets import Hardware
from lathe_optimizers import hardware
from lathe_optimizers.context import Artifact, Batch, Datasets, PassContext, PassOutput
from lathe_optimizers.passes import kernels, onnx_files, quantize
from lathe_optimizers.passes.latency import latency_ratio
from lathe_optimizers.passes.programs import save_program

BAR = {("residual CNN", "Static"): 3.5, ("residual CNN", "QuantizationAware"): 3.5}
"""Least speed-up of the median."""
METHODS = ("Static", "QuantizationAware")
SAMPLES = 32
RESULTS = Path(__file__).parent / "results" / "optimize.json"


class Samples:
    """Random samples by seed."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self._name = name
        self._inputs = rng.random((SAMPLES, *shape), dtype=np.float32)
        self._target = rng.integers(0, 10, SAMPLES)

    @property
    def input_names(self) -> tuple[str, ...]:
        """One input."""
        return (self._name,)

    def __len__(self) -> int:
        return SAMPLES

    def take(self, indices: np.ndarray) -> Batch:
        """Samples by index."""
        return (self._inputs[indices],), self._target[indices]


class NoCheckpoints:
    """Every measurement starts afresh."""

    def save(self, name: str, data: bytes) -> None:
        """Nothing is kept."""

    def load(self, name: str) -> None:
        """Nothing was kept."""


def original(network: str, folder: Path) -> Artifact:
    """The float model, as the import leaves it."""
    ep = program(network)
    pt2, onnx_file = folder / "original.pt2", folder / "original.onnx"
    save_program(ep, pt2)
    onnx_files.to_onnx(ep, onnx_file, opset=20, input_names=[ep.graph_signature.user_inputs[0]])
    manifest = ArtifactManifest(files={}, signature=onnx_files.read_signature(onnx_file))
    return Artifact(manifest, {Role.PROGRAM: pt2, Role.ONNX: onnx_file})


def quantised(start: Artifact, data: Samples, method: str, folder: Path) -> PassOutput:
    """The int8 model, by the Quantize stage; one epoch where it trains."""
    settings = {"method": method, "epochs": 1, "batchSize": 8}
    folder.mkdir()
    inputs = tuple(InputField(name=n, field=n) for n in data.input_names)
    return quantize.run(
        PassContext(
            stage=Stage.model_validate({"name": "int8", "type": "Quantize", "quantize": settings}),
            model=ModelSource(uri="original.pt2", format=ModelFormat.PT2),
            objective=Objective(task=Task.CLASSIFICATION, metric=Metric.ACCURACY),
            data_spec=Data(evaluation=DataSource(uri="random.npz", inputs=inputs, target="y")),
            data=Datasets(evaluation=data, train=data, calibration=data),
            source=None,
            input=start,
            original=start,
            extras={},
            seed=0,
            hardware=Hardware.X86_VNNI,
            threads=1,
            workdir=folder,
            checkpoints=NoCheckpoints(),
            report=lambda _: None,
        )
    )


def row(network: str, method: str, start: Artifact, made: PassOutput, ratio: LatencyRatio) -> dict[str, object]:
    """What is kept of one measurement."""
    assert made.onnx is not None  # noqa: S101 - Quantize always leaves one
    counted = kernels.count_kernels(made.onnx)
    return {
        "network": network,
        "method": method,
        "speedUp": {
            "median": round(ratio.value, 3),
            "low": round(ratio.low, 3),
            "high": round(ratio.high, 3),
            "noiseFloor": round(ratio.noise_floor, 3),
            "rounds": ratio.rounds,
            "threads": ratio.threads,
            "batch": ratio.batch,
        },
        "sizeRatio": round(start.files[Role.ONNX].stat().st_size / made.onnx.stat().st_size, 3),
        "kernels": {"int8": counted.int8, "float32": counted.float32},
        "bar": BAR.get((network, method)),
    }


def show(found: dict[str, object]) -> None:
    """One line of the table."""
    ratio, counted = found["speedUp"], found["kernels"]
    bar = f">= {found['bar']}" if found["bar"] else "-"
    speed = f"{ratio['median']:6.2f}x  [{ratio['low']:.2f}, {ratio['high']:.2f}]   +-{ratio['noiseFloor']:.3f}"
    integer = f"{counted['int8']:3} / {counted['float32']:<3}"
    print(
        f"{found['network']:14}{found['method']:19}{speed}   {found['sizeRatio']:5.2f}x   {integer}  {bar}", flush=True
    )


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time spent on timing one pair")
    parser.add_argument("--only", choices=NETWORKS, help="one network; writes no results")
    options = parser.parse_args()
    if hardware.here() is not Hardware.X86_VNNI:
        print("skipped: this CPU has no VNNI instructions (avx512_vnni or avx_vnni), which the int8 kernels need")
        return 0
    print(f"{'network':14}{'method':19}{'speed':>7}   {'95 % interval':13}  noise    size     int8/float  bar")
    rows = []
    for network, (_, shape, batch) in NETWORKS.items():
        if options.only in (None, network):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                start = original(network, folder)
                data = Samples(start.manifest.signature.inputs[0].name, shape)
                feed = {data.input_names[0]: data.take(np.arange(batch))[0][0]}
                for method in METHODS:
                    made = quantised(start, data, method, folder / method)
                    ratio = latency_ratio(start.files[Role.ONNX], made.onnx, feed, budget_seconds=options.seconds)
                    rows.append(row(network, method, start, made, ratio))
                    show(rows[-1])
    if options.only is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report(rows), indent=2) + "\n", encoding="utf-8")
    missed = [r for r in rows if r["bar"] and r["speedUp"]["median"] < r["bar"]]
    return 1 if missed else 0


def report(rows: list[dict[str, object]]) -> dict[str, object]:
    """The results with what is needed to repeat them."""
    return {
        "command": "make bench-optimize",
        "machine": hardware.facts(),
        "versions": {name: version(name) for name in ("numpy", "onnx", "onnxruntime", "torch", "torchao")},
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
