"""How a range of values becomes the scale and zero point of integers.

Scale and zero point of activations: Jacob et al. 2017, arXiv:1712.05877; weights are symmetric per output channel.
Two cases need care, because ONNX Runtime keeps biases as int32 in units of (input scale x weight scale), and a scale
near zero would overflow them: a range without extent gets scale 1, and no channel of weights gets a scale below 1/256
of the layer's largest.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor
from torchao.quantization.pt2e import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)

from lathe_optimizers.passes.ranges import Histogram, Range

MOVING: Final = 0.05
"""Weight of the newest batch in the moving average of an activation's range, in training."""
_SMALLEST_SHARE: Final = 1 / 256
"""Below this share of the largest scale, a channel cannot be told from zero after requantisation to 8 bits."""

Parameters = tuple[Tensor, Tensor]
"""Scale (float32) and zero point (int64), one for each channel or one for all."""


def _activation_parameters(low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> Parameters:
    if not bool(low <= high):
        raise RuntimeError("an activation range was asked for before any sample was seen")
    low, high = low.clamp(max=0.0).double(), high.clamp(min=0.0).double()
    scale = ((high - low) / (quant_max - quant_min)).float().reshape(1)
    if float(scale) <= torch.finfo(torch.float32).tiny:
        return torch.ones(1), torch.full((1,), quant_min, dtype=torch.int64)
    zero_point = quant_min - torch.round(low / scale)
    return scale, zero_point.clamp(quant_min, quant_max).to(torch.int64)


class ActivationRange(MinMaxObserver):  # type: ignore[misc]  # torchao has no types
    """Smallest and largest value ever seen."""

    def calculate_qparams(self) -> Parameters:
        """Scale and zero point of the range, extended to hold zero."""
        return _activation_parameters(self.min_val, self.max_val, self.quant_min, self.quant_max)


class AnswerRange(ActivationRange):
    """Of what the network answers: it is never cut, as that would make the best scores equal."""


class MovingActivationRange(MovingAverageMinMaxObserver):  # type: ignore[misc]  # torchao has no types
    """Moving average of the extremes of the batches, so that a range follows the weights in training."""

    def calculate_qparams(self) -> Parameters:
        """Scale and zero point of the range, extended to hold zero."""
        return _activation_parameters(self.min_val, self.max_val, self.quant_min, self.quant_max)


class PerChannelWeightRange(PerChannelMinMaxObserver):  # type: ignore[misc]  # torchao has no types
    """Extremes of each output channel of the weights as they are, with no memory of what they were."""

    # torchao hands `ch_axis` to observers by the word PerChannel in their names.

    def forward(self, x_orig: Tensor) -> Tensor:
        """Look at the weights."""
        self.reset_min_max_vals()
        return cast("Tensor", super().forward(x_orig))

    def calculate_qparams(self) -> Parameters:
        """Scales, and zero points of 0."""
        largest = torch.maximum(self.min_val.abs(), self.max_val.abs()).double()
        floor = float(largest.max()) * _SMALLEST_SHARE
        scale = (largest.clamp(min=floor) / self.quant_max if floor > 0 else torch.ones_like(largest)).float()
        return scale, torch.zeros_like(scale, dtype=torch.int64)


class WeightRange(MinMaxObserver):  # type: ignore[misc]  # torchao has no types
    """Extremes of a constant operand as it is; symmetric, one scale for all."""

    def forward(self, x_orig: Tensor) -> Tensor:
        """Look at the weights."""
        self.reset_min_max_vals()
        return cast("Tensor", super().forward(x_orig))

    def calculate_qparams(self) -> Parameters:
        """Scale, and a zero point of 0."""
        largest = torch.maximum(self.min_val.abs(), self.max_val.abs()).double().reshape(1)
        scale = (largest / self.quant_max if float(largest) > 0 else torch.ones(1)).float()
        return scale, torch.zeros(1, dtype=torch.int64)


def fake(observer: Any) -> Any:
    """Constructor of a module that rounds values to the observed range, and passes gradients through.

    Not torch's fused operator: it derives the scale of symmetric weights by another formula than the conversion does.
    """
    return FakeQuantize.with_args(observer=observer)


def moving() -> Any:
    """Constructor of the training-time activation observer."""
    return MovingActivationRange.with_args(averaging_constant=MOVING)


def observe(gm: torch.nn.Module, *, activations: bool, weights: bool, rounding: bool) -> None:
    """Switch what the fake-quantising modules of a prepared graph do.

    Args:
        gm: prepared for quantisation-aware training.
        activations: whether activation ranges follow what flows through.
        weights: whether weight ranges follow the weights.
        rounding: whether values are rounded.
    """
    for module in gm.modules():
        if isinstance(module, FakeQuantize):
            of_weights = isinstance(module.activation_post_process, PerChannelWeightRange | WeightRange)
            module.enable_observer(weights if of_weights else activations)
            module.enable_fake_quant(rounding)


def extremes(gm: torch.nn.Module) -> dict[str, Range]:
    """What each activation observer of a prepared graph has seen, by its name."""
    return {
        name: (float(m.min_val), float(m.max_val))
        for name, m in gm.named_modules()
        if isinstance(m, ActivationRange) and bool(m.min_val <= m.max_val)
    }


@contextmanager
def counting(gm: torch.nn.Module) -> Iterator[dict[str, Histogram]]:
    """Count the values that flow through the activation observers of a prepared graph, between the extremes seen."""
    histograms = {name: Histogram(*found) for name, found in extremes(gm).items()}
    modules = dict(gm.named_modules())

    def counter(histogram: Histogram) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: histogram.add(args[0].detach().numpy())

    hooks = [modules[name].register_forward_pre_hook(counter(h)) for name, h in histograms.items()]
    try:
        yield histograms
    finally:
        for hook in hooks:
            hook.remove()


def narrow(gm: torch.nn.Module, ranges: Mapping[str, Range]) -> None:
    """Set the ranges of activation observers by name; those of answers stay."""
    for name, module in gm.named_modules():
        if name in ranges and not isinstance(module, AnswerRange):
            module.min_val.fill_(ranges[name][0])
            module.max_val.fill_(ranges[name][1])


def unbounded(gm: torch.nn.Module) -> str | None:
    """Name of the first observer in a prepared graph that met NaN or infinity, if any did."""
    for name, module in gm.named_modules():
        found = module.activation_post_process if isinstance(module, FakeQuantize) else module
        if isinstance(found, MinMaxObserver) and not torch.isfinite(torch.stack([found.min_val, found.max_val])).all():
            return str(name)
    return None
