"""Small networks for tests. Each takes `image`, float32 (batch, 1, 16, 16), and answers with 10 numbers per sample."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

CLASSES = 10


class ImageNetwork(nn.Sequential):
    """Layers in a row. The parameter of `forward` is the name of the network's input."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two convolutions beside a skip connection (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs))
        same = (inputs, stride) == (outputs, 1)
        self.skip = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


def residual_cnn(width: int = 16, stages: int = 2, blocks: int = 2) -> nn.Module:
    """Convolutions, BatchNorm and skip connections; the width doubles at each stage."""
    layers: list[nn.Module] = []
    inputs = width
    for stage in range(stages):
        outputs = width << stage
        for block in range(blocks):
            layers.append(Residual(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return ImageNetwork(
        *conv_bn(1, width), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)
    )


def plain_cnn(width: int = 16) -> nn.Module:
    """Convolutions, one without BatchNorm, flattened into a linear layer without global pooling; Dropout."""
    return ImageNetwork(
        *conv_bn(1, width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *conv_bn(width, 2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(2 * width * 16, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, CLASSES),
    )


class Separable(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection."""

    def __init__(self, inputs: int, outputs: int, expansion: int = 4) -> None:
        super().__init__()
        wide = inputs * expansion
        self.depthwise = nn.Sequential(
            *conv_bn(inputs, wide, 1), nn.SiLU(), *conv_bn(wide, wide, 3, 1, wide), nn.SiLU()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, inputs, 1), nn.ReLU(), nn.Conv2d(inputs, wide, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(*conv_bn(wide, outputs, 1))
        self.same = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        y = self.project(y * self.gate(y))
        return x + y if self.same else y


def separable_cnn(width: int = 16) -> nn.Module:
    """Depthwise convolutions with squeeze-and-excitation."""
    return ImageNetwork(
        *conv_bn(1, width, 3, 2),
        nn.Hardswish(),
        Separable(width, 24),
        Separable(24, 24),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


class Shuffled(nn.Module):
    """Grouped convolutions, chunk, cat, channel shuffle, mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(*conv_bn(1, width, 3, 2), nn.ReLU())
        self.left = nn.Sequential(*conv_bn(half, half, 3, 1, 4), nn.ReLU())
        self.right = nn.Conv2d(half, width, 1)
        self.mix = nn.Sequential(*conv_bn(half + width, 2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        left, right = self.stem(image).chunk(2, 1)
        y = torch.cat([self.left(left), self.right(right)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.mix(y).mean((2, 3)))


def shuffled(width: int = 32) -> nn.Module:
    """Grouped convolutions whose channels are split, joined and shuffled."""
    return Shuffled(width)


def mlp(width: int = 64) -> nn.Module:
    """Linear layers, BatchNorm, Dropout, GELU."""
    return ImageNetwork(
        nn.Flatten(),
        nn.Linear(256, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, CLASSES),
    )


class EncoderLayer(nn.Module):
    """Attention and a feed-forward part, each after LayerNorm and with a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        y = self.norm1(x)
        q, k, v = (
            f(y).view(b, t, self.heads, d // self.heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(y)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """The 16 rows of the image are the tokens."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image.squeeze(1)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def encoder(width: int = 32, heads: int = 8, layers: int = 2) -> nn.Module:
    """Attention (`scaled_dot_product_attention`) and LayerNorm."""
    return Encoder(width, heads, layers)


def export_program(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    input_name: str | tuple[str, ...] = "image",
    *,
    dynamic: bool = True,
    training: bool = False,
) -> ExportedProgram:
    """Export as a user would: in eval mode, with a dynamic batch.

    Args:
        module: the network; its `forward` takes the inputs by the names in `input_name`.
        example: example inputs, with at least two samples if `dynamic`.
        input_name: expected names of the inputs, which are those of the parameters of `forward`.
        dynamic: whether the batch may vary.
        training: export in training mode instead.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    names = input_name if isinstance(input_name, tuple) else (input_name,)
    module.train(training)
    batch: dict[int, Any] = {0: Dim("batch", max=4096)} if dynamic else {}
    ep = torch.export.export(module, inputs, dynamic_shapes=tuple(batch for _ in inputs))
    if tuple(ep.graph_signature.user_inputs) != names:
        raise ValueError(
            f"inputs are called {ep.graph_signature.user_inputs}, not {names}: rename forward's parameters"
        )
    return ep
