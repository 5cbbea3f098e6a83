"""Train the example's teacher and write what `model.yaml` names: `teacher.pt2`, `train.npz`, `test.npz` in `build/`.

The data are scikit-learn's bundled handwritten digits (1797 images of 8x8), enlarged to 16x16.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

SIZE = 16
TRAIN_SAMPLES = 1078
AUGMENTED_COPIES = 1


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        project = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


class Teacher(nn.Module):
    """A small residual network."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 1, 16, 16) pixels from 0 to 1, to (batch, 10) scores."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and classes, test images and classes; the split is made by `seed`."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=SIZE, mode="bilinear")
    classes = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN_SAMPLES], order[TRAIN_SAMPLES:]
    return images[train], classes[train], images[test], classes[test]


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The images, each moved by up to one pixel in both directions."""
    padded = functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + SIZE, x : x + SIZE] for p, (y, x) in zip(padded, moves, strict=True)])


def train(model: nn.Module, images: torch.Tensor, classes: torch.Tensor, epochs: int, seed: int) -> None:
    """AdamW with a cosine schedule, in place."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    batches = -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(64):
            loss = functional.cross_entropy(model(images[index]), classes[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(options.seed)
    images, classes, test_images, test_classes = data(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    images = torch.cat([images, *(shifted(images, generator) for _ in range(AUGMENTED_COPIES))])
    classes = classes.repeat(1 + AUGMENTED_COPIES)
    model = Teacher(options.width)
    train(model, images, classes, options.epochs, options.seed)
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_classes).float().mean().item()

    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (images[:2].clone(),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, options.out / "teacher.pt2")
    np.savez(options.out / "train.npz", x=images.numpy(), y=classes.numpy())
    np.savez(options.out / "test.npz", x=test_images.numpy(), y=test_classes.numpy())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"teacher: {parameters} parameters, accuracy {accuracy:.2%} on {len(test_images)} images it has not seen")


if __name__ == "__main__":
    main()
