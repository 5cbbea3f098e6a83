"""The networks that are measured: sizes of real use, random weights by seed."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional


class Residual(nn.Module):
    """Two 3x3 convolutions beside a skip connection (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Identity() if (inputs, stride) == (outputs, 1) else projection

    def forward(self, x: Tensor) -> Tensor:
        """The same spatial size divided by the stride."""
        return functional.relu(self.body(x) + self.skip(x))


class ResidualCnn(nn.Module):
    """11 million parameters, four stages of two blocks, 64 to 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        sizes += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.blocks = nn.Sequential(*(Residual(*size) for size in sizes))
        self.head = nn.Linear(512, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Answers to images (batch, 3, 64, 64) with 10 numbers each."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward part (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        b, t, d = x.shape
        y = self.norm1(x)
        q, k, v = (
            f(y).view(b, t, self.heads, d // self.heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(y)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Six layers of width 384 on sequences of 128 vectors; 10.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(EncoderLayer(384, 6) for _ in range(6)))
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, 10)

    def forward(self, sequence: Tensor) -> Tensor:
        """Answers to sequences (batch, 128, 384) with 10 numbers each."""
        return self.head(self.norm(self.layers(sequence)).mean(1))


class Mlp(nn.Module):
    """Three wide linear layers with BatchNorm, as for tables; 1.6 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((256, 1024), (1024, 1024), (1024, 256)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(256, 10))

    def forward(self, row: Tensor) -> Tensor:
        """Answers to rows (batch, 256) with 10 numbers each."""
        return self.layers(row)


class Linear(nn.Module):
    """One layer of 1024 inputs and 256 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1024, 256)

    def forward(self, row: Tensor) -> Tensor:
        """Answers to rows (batch, 1024) with 256 numbers each."""
        return self.layer(row)


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...], int]] = {
    "residual CNN": (ResidualCnn, (3, 64, 64), 8),
    "encoder": (Encoder, (128, 384), 1),
    "MLP": (Mlp, (256,), 8),
    "linear": (Linear, (1024,), 1),
}
"""Network, shape of one sample, and samples per timed run."""


def program(name: str, seed: int = 0) -> ExportedProgram:
    """A network with random weights, and BatchNorm statistics of random samples."""
    kind, shape, _ = NETWORKS[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(8, *shape, generator=generator))
    example = torch.rand(2, *shape, generator=generator)
    return torch.export.export(network.eval(), (example,), dynamic_shapes=({0: Dim("batch", max=4096)},))
