"""Distil, prune and quantise a residual CNN on scikit-learn's digits, by the command that users type."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from networks import Residual
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.export import Dim

from lathe_optimizers.passes.programs import save_program

EPOCHS = 8
SPEED_BAR, DROP_BAR = 10.0, 0.02
DOCUMENT = """\
apiVersion: lathe.dev/v1alpha1
kind: OptimizedModel
metadata: {name: digits}
spec:
  model: {uri: teacher.pt2, format: Pt2}
  data:
    train: {uri: train.npz, inputs: [{name: image, field: image}], target: label}
    calibration: {from: Train, samples: 256}
    evaluation: {uri: test.npz, inputs: [{name: image, field: image}], target: label}
  objective: {task: Classification, metric: accuracy}
  recipe:
    stages:
    - name: student
      type: Distill
      distill: {student: {from: Teacher, width: "0.5"}, losses: [{type: Response}], epochs: 8}
    - {name: slim, type: Prune, prune: {method: StructuredMagnitude, parameters: "0.5", finetune: {epochs: 4}}}
    - {name: int8, type: Quantize, quantize: {method: QuantizationAware, epochs: 2}}
    - {name: onnx, type: Export, export: {}}
  gates:
  - {name: accuracy, metric: accuracy, maxDrop: "0.02", minSamples: 300}
  targets:
  - {name: cpu, hardware: X86Vnni, serving: {runtime: Lathe, mode: SingleSample}}
"""


class Cnn(nn.Module):
    """Four stages of two residual blocks, 64 to 512 channels, on images (batch, 1, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        sizes += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.blocks = nn.Sequential(*(Residual(*size) for size in sizes))
        self.head = nn.Linear(512, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores (batch, 10)."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def prepare(folder: Path) -> None:
    """Train the teacher on 60 % of the digits, scaled to 16x16, and write what the document names."""
    images, labels = load_digits(return_X_y=True)
    enlarged = np.kron(images.reshape(-1, 1, 8, 8), np.ones((1, 1, 2, 2))).astype(np.float32) / 16
    x, test_x, y, test_y = train_test_split(enlarged, labels, test_size=0.4, random_state=0, stratify=labels)
    np.savez(folder / "train.npz", image=x, label=y)
    np.savez(folder / "test.npz", image=test_x, label=test_y)
    torch.manual_seed(0)
    network = Cnn().train()
    steps = EPOCHS * -(-len(x) // 64)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            scores = network(torch.from_numpy(x[chosen]))
            nn.functional.cross_entropy(scores, torch.from_numpy(y[chosen])).backward()
            optimiser.step()
            schedule.step()
    example = torch.from_numpy(x[:2])
    shapes = ({0: Dim("batch", max=4096)},)
    save_program(torch.export.export(network.eval(), (example,), dynamic_shapes=shapes), folder / "teacher.pt2")
    (folder / "model.yaml").write_text(DOCUMENT, encoding="utf-8")


def row(folder: Path) -> dict[str, object]:
    """Original against result, as the run's own summary says."""
    prepare(folder)
    lathe = Path(sys.executable).parent / "lathe"
    subprocess.run(
        [lathe, "run", "model.yaml", "--out", "out", "--store", "store"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    summary = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    overall = summary["targets"][0]["overall"]
    found = {
        "network": "residual CNN on digits",
        "method": "Distill + Prune + QuantizationAware",
        "speedUp": round(overall["latency"]["value"], 2),
        "sizeRatio": round(overall["sizeRatio"], 2),
        "accuracyDrop": round(overall["drop"], 4),
        "bars": {"speedUp": SPEED_BAR, "accuracyDrop": DROP_BAR},
    }
    missed = {"speedUp": found["speedUp"] < SPEED_BAR, "accuracyDrop": found["accuracyDrop"] > DROP_BAR}
    found["missed"] = [name for name, is_missed in missed.items() if is_missed]
    print(
        f"compound recipe on a residual CNN: {found['speedUp']}x faster (>= {SPEED_BAR}), {found['sizeRatio']}x "
        f"smaller, accuracy drop {found['accuracyDrop']} (<= {DROP_BAR})"
    )
    return found
