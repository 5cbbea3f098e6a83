"""A user's folder: a trained model, its data and a document; and the `lathe` command run on it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SIZE = 16
CLASSES = 10

PRUNE = {
    "name": "slim",
    "type": "Prune",
    "prune": {"method": "StructuredMagnitude", "parameters": "0.3", "roundTo": 4, "finetune": {"epochs": 2}},
}
STATIC = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
EXPORT = {"name": "onnx", "type": "Export", "export": {"opset": 20}}


def images(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of ten fixed patterns, float32 (samples, 1, 16, 16), and which one each shows, int64."""
    patterns = np.random.default_rng(1234).standard_normal((CLASSES, 1, SIZE, SIZE))
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, samples)
    noisy = patterns[classes] + 0.8 * rng.standard_normal((samples, 1, SIZE, SIZE))
    return noisy.astype(np.float32), classes.astype(np.int64)


@dataclass
class Project:
    """A folder with everything that a run needs."""

    folder: Path
    store: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """The document as it is on the disk."""
        return yaml.safe_load((self.folder / "model.yaml").read_text())

    @document.setter
    def document(self, value: dict[str, Any]) -> None:
        plain = json.loads(json.dumps(value))  # no shared parts, which YAML would write as anchors
        (self.folder / "model.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))

    def change(self, **spec: Any) -> None:
        """Replace parts of the spec."""
        value = self.document
        value["spec"] |= spec
        self.document = value

    def data(self, name: str, **arrays: np.ndarray) -> None:
        """Write a data file."""
        np.savez(self.folder / f"{name}.npz", **arrays)

    def command(self, *arguments: str) -> list[str]:
        """`lathe run` on the document."""
        return [
            sys.executable, "-m", "lathe_cli.main", "run", str(self.folder / "model.yaml"),
            "--store", str(self.store), "--out", str(self.folder / "out"), *arguments,
        ]  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def summary(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """Run with `--json`, and read the summary off standard output."""
        done = self.run("--json", *arguments)
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    @property
    def left(self) -> set[str]:
        """Names of what lies in the folder."""
        return {p.name for p in self.folder.iterdir()}


def make_project(folder: Path, store: Path, model: Path, stages: list[dict[str, Any]]) -> Project:
    """A project around a `.pt2` of one input `image` and ten classes."""
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder, store)
    (folder / "model.pt2").write_bytes(model.read_bytes())
    for name, samples, seed in (("train", 400, 1), ("test", 300, 2)):
        x, y = images(samples, seed)
        project.data(name, x=x, y=y)
    source = {"inputs": [{"name": "image", "field": "x"}], "target": "y"}
    project.document = {
        "apiVersion": "lathe.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "patterns"},
        "spec": {
            "model": {"uri": "file:model.pt2", "format": "Pt2"},
            "data": {
                "train": {"uri": "file:train.npz", **source},
                "calibration": {"from": "Train", "samples": 128},
                "evaluation": {"uri": "test.npz", **source},
            },
            "objective": {"task": "Classification", "metric": "accuracy"},
            "recipe": {"stages": stages},
            "targets": [{"name": "cpu", "hardware": "X86Vnni"}],
        },
    }
    return project


def train(network: Any, epochs: int = 4) -> Any:
    """Fit a network to the patterns, so that its accuracy can be lost."""
    import torch
    from torch.nn import functional

    x, y = (torch.from_numpy(a) for a in images(600, 7))
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(50):
            loss = functional.cross_entropy(network(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()
