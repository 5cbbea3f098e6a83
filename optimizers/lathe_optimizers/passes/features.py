"""Feature distillation: a student imitates intermediate features of its teacher.

The method is that of FitNets (Romero et al. 2014, arXiv:1412.6550, section 2.2), with all pairs trained at once.
Features are read off views of the graphs (`views.tapped`), so that neither the answer nor the exported graph changes.
Where a student's features are narrower, a linear projection is learned beside it and dropped afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
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
IMAGE_RANK: Final = 3
"""Dimensions of an image after the batch: channels, height, width."""
Shape = tuple[int | None, ...]


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
    """The pairs that are asked for, or up to three at equal distances through the teacher.

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
    taps = _automatic(teacher, student)
    if not taps:
        raise InputError(field, "no layers of teacher and student can be compared", "Name some in `pairs`")
    return taps


def _automatic(teacher: fx.GraphModule, student: fx.GraphModule) -> list[Tap]:
    """Block ends of the teacher at equal distances, each with the student's that corresponds to it.

    That is the one of the same name and module where the student was cut out of the teacher, else the one at the most
    similar depth, of the same image size if there is one.
    """
    ends, own = _block_ends(teacher), _block_ends(student)
    depths = {n: (i + 1) / len(nodes) for nodes in (ends, own) for i, n in enumerate(nodes)}
    taps: list[Tap] = []
    for number in range(1, min(AUTOMATIC_PAIRS, len(ends)) + 1):
        first = ends[math.ceil(number / AUTOMATIC_PAIRS * len(ends)) - 1]
        fitting = [n for n in own if _fits(first, n) and n not in {t.student for t in taps}]
        if not fitting or first in {t.teacher for t in taps}:
            continue

        def distance(n: fx.Node, first: fx.Node = first) -> tuple[bool, bool, float]:
            named = (n.name, module_path(n)) == (first.name, module_path(first))
            resized = len(_shape(n)) == IMAGE_RANK and _shape(n)[1:] != _shape(first)[1:]
            return not named, resized, abs(depths[n] - depths[first])

        taps.append(Tap(first, min(fitting, key=distance)))
    return taps


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
            self.layers = nn.ModuleList(_Projection(tap) for tap in taps)

    @override
    def forward(self, features: Outputs) -> Outputs:
        """The projected features."""
        return tuple(layer(f) for layer, f in zip(self.layers, features, strict=True))


def feature_loss(student: Outputs, teacher: Outputs) -> Tensor:
    """Mean squared difference relative to the teacher's mean square, averaged over pairs; larger maps are pooled."""
    losses = []
    for own, other in zip(student, teacher, strict=True):
        first, second = own, other
        if first.dim() == IMAGE_RANK + 1 and first.shape[2:] != second.shape[2:]:
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
    answers = {n for out in gm.graph.find_nodes(op="output") for n in out.all_input_nodes}
    return [n for n in gm.graph.nodes if _is_feature(n) and n.target in BLOCK_ENDS and n not in answers]


def _is_feature(n: fx.Node) -> bool:
    """Whether a node holds numbers of every sample: the batch is its first dimension."""
    value = n.meta.get("val")
    if n.op != "call_function" or not isinstance(value, Tensor) or value.dim() < 2 or not value.is_floating_point():  # noqa: PLR2004
        return False
    inputs = (p.meta.get("val") for p in n.graph.find_nodes(op="placeholder"))
    return any(isinstance(x, Tensor) and x.dim() and str(x.shape[0]) == str(value.shape[0]) for x in inputs)


def _shape(n: fx.Node) -> tuple[int | None, ...]:
    """Sizes after the batch; None where a size may vary."""
    return tuple(int(size) if is_concrete_int(size) else None for size in n.meta["val"].shape[1:])


def _channel_dimension(teacher: Shape, student: Shape) -> int | None:
    """Which dimension after the batch holds the channels; None where features cannot be compared.

    Images may differ in size, which pooling evens out; positions of a sequence must be the same ones.
    """
    if len(teacher) != len(student):
        return None
    differing = [d for d, (a, b) in enumerate(zip(teacher, student, strict=True)) if a != b]
    if len(teacher) == IMAGE_RANK and differing != [IMAGE_RANK - 1]:
        pooled = teacher[1:] == student[1:] or None not in teacher[1:] + student[1:]
        dimension = 0 if pooled else None
    else:
        dimension = (differing or [len(teacher) - 1])[0] if len(differing) <= 1 else None
    if dimension is None or dimension not in differing:
        return dimension
    return dimension if None not in (teacher[dimension], student[dimension]) else None


def _fits(teacher: fx.Node, student: fx.Node) -> bool:
    return _channel_dimension(_shape(teacher), _shape(student)) is not None


def _comparable(tap: Tap, field: str) -> Tap:
    if not _fits(tap.teacher, tap.student):
        a, b = (tuple(n.meta["val"].shape) for n in (tap.teacher, tap.student))
        raise InputError(field, f"features of shapes {a} and {b}", "Pair layers of the same kind")
    return tap


class _Projection(nn.Module):
    """A linear map of the channels, where student and teacher have different numbers of them."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        own, other = _shape(tap.student), _shape(tap.teacher)
        dimension = _channel_dimension(other, own)
        if dimension is None:
            raise ValueError("features that cannot be compared")
        self.dimension = dimension + 1
        inputs, outputs = own[dimension], other[dimension]
        same = inputs == outputs or inputs is None or outputs is None
        self.map = nn.Identity() if same else nn.Linear(inputs or 1, outputs or 1)

    @override
    def forward(self, feature: Tensor) -> Tensor:
        moved: Tensor = self.map(feature.movedim(self.dimension, -1))
        return moved.movedim(-1, self.dimension)
