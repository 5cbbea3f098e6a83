"""Feature distillation: a student imitates intermediate features of its teacher.

The method is that of FitNets (Romero et al. 2014, arXiv:1412.6550, section 2.2), with all pairs trained at once.
Features are read off copies of the graphs that share the weights and have more outputs, so that neither the answer nor
the exported graph changes. Where a student's features are narrower, a linear projection is learned beside it and
dropped afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from typing_extensions import override

from lathe_api.recipe import FeaturePair
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes.losses import Outputs
from lathe_optimizers.passes.programs import module_path

AUTOMATIC_PAIRS: Final = 3
ATEN: Final = torch.ops.aten
BLOCK_ENDS: Final = frozenset(
    {
        ATEN.relu.default, ATEN.relu_.default, ATEN.gelu.default, ATEN.silu.default, ATEN.silu_.default,
        ATEN.hardswish.default, ATEN.hardswish_.default, ATEN.tanh.default, ATEN.leaky_relu.default,
        ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.layer_norm.default,
    }
)  # fmt: skip
"""Operators after which a block of a network usually ends."""
IMAGE_RANK: Final = 4


@dataclass(frozen=True)
class Tap:
    """A compared pair of nodes."""

    teacher: fx.Node
    student: fx.Node

    @property
    def names(self) -> str:
        """For people."""
        return f"{module_path(self.teacher)} -> {module_path(self.student)}"


def choose_taps(
    teacher: fx.GraphModule, student: fx.GraphModule, pairs: Sequence[FeaturePair], field: str
) -> list[Tap]:
    """The pairs that are asked for, or up to three at equal distances through both networks.

    Args:
        teacher: its graph.
        student: its graph.
        pairs: asked for; none for automatic ones.
        field: field path of the loss, for errors.

    Raises:
        InputError: a layer does not exist, a pair cannot be compared, or no pair is found.
    """
    if pairs:
        return [
            _comparable(
                Tap(
                    _find(teacher, pair.teacher, f"{field}.pairs[{i}].teacher"),
                    _find(student, pair.student, f"{field}.pairs[{i}].student"),
                ),
                f"{field}.pairs[{i}]",
            )
            for i, pair in enumerate(pairs)
        ]
    ends, own = _block_ends(teacher), _block_ends(student)
    taps: list[Tap] = []
    for number in range(1, AUTOMATIC_PAIRS + 1):
        position = number / AUTOMATIC_PAIRS
        first = _at(ends, position)
        second = _at([n for n in own if first is not None and _fits(first, n)], position)
        if first is not None and second is not None and first not in {t.teacher for t in taps}:
            taps.append(Tap(first, second))
    if not taps:
        raise InputError(field, "no layers of teacher and student can be compared", "Name some in `pairs`")
    return taps


def tapped(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A graph of the same weights that gives the values of `nodes` after its own outputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(gm.graph, copies)
    flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    graph.output((*flat, *(copies[n] for n in nodes)))
    return fx.GraphModule(gm, graph)


class Projections(nn.Module):
    """Brings the student's features to the widths of the teacher's.

    Args:
        taps: the pairs.
        seed: of the initial weights.
    """

    def __init__(self, taps: Sequence[Tap], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(_projection(tap) for tap in taps)

    @override
    def forward(self, features: Outputs) -> Outputs:
        """The projected features."""
        return tuple(layer(f) for layer, f in zip(self.layers, features, strict=True))


def feature_loss(student: Outputs, teacher: Outputs) -> Tensor:
    """Mean squared difference relative to the teacher's mean square, averaged over pairs; larger maps are pooled."""
    losses = []
    for own, other in zip(student, teacher, strict=True):
        first, second = own, other
        if first.dim() == IMAGE_RANK and first.shape[2:] != second.shape[2:]:
            height, width = (min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
            first, second = (functional.adaptive_avg_pool2d(f, (height, width)) for f in (first, second))
        losses.append(functional.mse_loss(first, second) / second.square().mean().clamp_min(1e-6))
    return torch.stack(losses).mean()


def _find(gm: fx.GraphModule, name: str, field: str) -> fx.Node:
    features = [n for n in gm.graph.nodes if _is_feature(n)]
    found: list[fx.Node] = [n for n in features if name in {n.name, module_path(n)}]
    if not found:
        known = sorted({module_path(n) for n in features})
        raise InputError(field, f"no layer is called {name!r}", f"Write one of {', '.join(known[:40])}")
    return found[-1]


def _block_ends(gm: fx.GraphModule) -> list[fx.Node]:
    nodes = list(gm.graph.nodes)
    return [n for n in nodes if _is_feature(n) and n.target in BLOCK_ENDS]


def _at(nodes: Sequence[fx.Node], position: float) -> fx.Node | None:
    """The node at a share of the list, 0 to 1."""
    return nodes[max(0, math.ceil(position * len(nodes)) - 1)] if nodes else None


def _is_feature(n: fx.Node) -> bool:
    value = n.meta.get("val")
    return n.op == "call_function" and isinstance(value, Tensor) and value.dim() >= 2 and value.is_floating_point()  # noqa: PLR2004


def _channels(n: fx.Node) -> int:
    shape = n.meta["val"].shape
    return int(shape[1] if len(shape) == IMAGE_RANK else shape[-1])


def _fits(teacher: fx.Node, student: fx.Node) -> bool:
    a, b = teacher.meta["val"].shape, student.meta["val"].shape
    if len(a) != len(b):
        return False
    # Images are pooled to one size; positions of a sequence must be the same ones.
    inner = zip(a[1:-1], b[1:-1], strict=True)
    return len(a) == IMAGE_RANK or all(x == y or not isinstance(x, int) for x, y in inner)


def _comparable(tap: Tap, field: str) -> Tap:
    if not _fits(tap.teacher, tap.student):
        a, b = (tuple(n.meta["val"].shape) for n in (tap.teacher, tap.student))
        raise InputError(field, f"features of shapes {a} and {b}", "Pair layers of the same kind")
    return tap


def _projection(tap: Tap) -> nn.Module:
    inputs, outputs = _channels(tap.student), _channels(tap.teacher)
    if inputs == outputs:
        return nn.Identity()
    if len(tap.student.meta["val"].shape) == IMAGE_RANK:
        return nn.Conv2d(inputs, outputs, 1)
    return nn.Linear(inputs, outputs)
