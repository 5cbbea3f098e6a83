"""Channels of an exported program: which can be removed, and how they are cut out of its weights and graph.

The graph is walked once; a rule per operator (`channel_rules`) says which channel indices are the same. Nothing of the
network's Python class is needed. An operator without a rule freezes what flows into it, so the worst outcome is that
nothing can be removed.
"""

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from lathe_optimizers.passes.atoms import Dims, Group, Indices, Labels, Slot
from lathe_optimizers.passes.channel_rules import RULES
from lathe_optimizers.passes.channel_rules_base import Flow, Value, full_args, op_name, tensor_at
from lathe_optimizers.passes.channel_rules_sizes import mend_sizes


@dataclass(frozen=True)
class Weight:
    """A tensor of the network; weights that are tied are one."""

    path: str
    """Where it is first used."""
    tensor: Tensor
    roots: tuple[Indices, ...]
    """Per dimension, the class of each index."""
    trainable: bool


class ChannelGraph:
    """The channels of one unlifted graph (`programs.unlift`).

    Args:
        gm: the graph. It is read only, until `remove`.

    Attributes:
        groups: channels that sit in the same weights, also those that cannot be removed, in the order of the weights.
        weights: all tensors that the graph uses.
        blocked: operators through which channels could not be followed -> why.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self._flow = Flow(gm)
        self._tensors: dict[int, tuple[str, Tensor, Dims]] = {}
        for node in gm.graph.nodes:
            self._visit(node)
        atoms = self._flow.atoms
        self._root = atoms.roots(np.arange(len(atoms), dtype=np.int64))
        trainable = {id(p) for p in gm.parameters()}
        self.weights = tuple(
            Weight(path, tensor, tuple(self._root[labels] for labels in dims if labels is not None), key in trainable)
            for key, (path, tensor, dims) in self._tensors.items()
        )
        self.groups = self._collect()
        self.blocked = dict(self._flow.blocked)

    def __len__(self) -> int:
        return len(self._root)

    def _visit(self, node: fx.Node) -> None:
        flow = self._flow
        if node.op == "get_attr":
            tensor = tensor_at(self.gm, str(node.target))
            if isinstance(tensor, Tensor):
                # Keyed by the object: tied weights are found under several paths.
                if id(tensor) not in self._tensors:
                    dims: Dims = [flow.atoms.new(size) for size in tensor.shape]
                    self._tensors[id(tensor)] = (str(node.target), tensor, dims)
                flow.values[node] = list(self._tensors[id(tensor)][2])
        elif node.op == "placeholder":
            flow.values[node] = [None] * len(flow.shape(node))
        elif node.op == "call_function" and node.target is operator.getitem:
            flow.values[node] = self._item(node)
        elif node.op == "call_function":
            flow.values[node] = self._apply_rule(node)
        else:
            why = "network output" if node.op == "output" else f"{node.op} is not followed"
            for source in node.all_input_nodes:
                flow.block(source, why, node)

    def _item(self, node: fx.Node) -> Dims:
        """One of several results."""
        source, index = node.args
        results = self._flow.values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(results, tuple) and isinstance(index, int):
            return list(results[index])
        return [None] * len(self._flow.shape(node))

    def _apply_rule(self, node: fx.Node) -> Value:
        flow, name = self._flow, op_name(node)
        rule = RULES.get(name)
        value = rule(flow, node, full_args(node)) if rule is not None else None
        if value is None:
            for source in node.all_input_nodes:
                flow.block(source, f"operator {name} is not followed", node)
            return [None] * len(flow.shape(node))
        if isinstance(value, tuple):
            return value
        shape = flow.shape(node)
        if len(value) != len(shape):
            for labels in value:
                flow.freeze(labels, "shape is not understood", node)
            return [None] * len(shape)
        return [self._checked(labels, size, node) for labels, size in zip(value, shape, strict=True)]

    def _checked(self, labels: Labels, size: int, node: fx.Node) -> Labels:
        """Labels that number as many as the dimension has indices; safety net behind the rules."""
        if labels is None or len(labels) == size:
            return labels
        self._flow.freeze(labels, "size is not understood", node)
        return None

    def _collect(self) -> tuple[Group, ...]:
        slots_of: dict[int, Counter[Slot]] = {}
        trainable: set[int] = set()
        for weight in self.weights:
            for d, roots in enumerate(weight.roots):
                for root in roots.tolist():
                    slots_of.setdefault(root, Counter())[Slot(weight.path, d)] += 1
                if weight.trainable:
                    trainable.update(roots.tolist())
        normalized = {r for labels in self._flow.normalized if labels is not None for r in self._root[labels].tolist()}
        alike: dict[tuple[tuple[Slot, ...], str | None, bool], list[int]] = {}
        for root, slots in slots_of.items():
            why = self._flow.atoms.frozen(root)
            if why is None and root not in trainable:
                why = "no parameters"
            alike.setdefault((tuple(slots), why, root in normalized), []).append(root)
        return tuple(
            Group(
                slots,
                np.array(channels, dtype=np.int64),
                "one channel only" if why is None and len(channels) == 1 else why,
                is_normalized,
                min(sum(slots_of[root][slot] for root in channels) for slot in slots) // len(channels),
            )
            for (slots, why, is_normalized), channels in alike.items()
        )

    def kept(self, roots: Indices, gone: NDArray[np.bool_]) -> Indices:
        """Positions of the indices whose class is not gone."""
        return np.flatnonzero(~gone[roots]).astype(np.int64)

    def mask(self, removed: Iterable[int]) -> NDArray[np.bool_]:
        """For every class whether it is among `removed`."""
        gone = np.zeros(len(self), dtype=np.bool_)
        gone[np.fromiter(removed, dtype=np.int64)] = True
        return gone

    def remove(self, removed: Iterable[int]) -> None:
        """Cut these channels out of the weights, and mend the sizes that are constants of the graph. Use once."""
        gone = self.mask(removed)

        def resize(labels: Labels, size: Any) -> Any:
            return size if labels is None or size == -1 else len(self.kept(self._root[labels], gone))

        for node in self.gm.graph.nodes:
            if node.op == "call_function":
                mend_sizes(self._flow, node, resize)
        smaller: dict[int, Tensor] = {}
        for weight in self.weights:
            tensor = weight.tensor.detach()
            for d, roots in enumerate(weight.roots):
                tensor = tensor.index_select(d, torch.from_numpy(self.kept(roots, gone)).to(tensor.device))
            parameter = isinstance(weight.tensor, torch.nn.Parameter)
            smaller[id(weight.tensor)] = (
                torch.nn.Parameter(tensor.clone(), weight.tensor.requires_grad) if parameter else tensor.clone()
            )
        for path in dict.fromkeys(str(n.target) for n in self.gm.graph.nodes if n.op == "get_attr"):
            tensor = tensor_at(self.gm, path)
            if id(tensor) in smaller:
                owner, _, leaf = path.rpartition(".")
                setattr(self.gm.get_submodule(owner), leaf, smaller[id(tensor)])
