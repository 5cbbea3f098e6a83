"""What a channel rule works with: the labels of all values so far, and accessors for nodes of an ATen graph."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import fx

from lathe_optimizers.passes.atoms import Atoms, Dims, Labels
from lathe_optimizers.passes.programs import module_path

Args = list[Any]
"""Arguments of a node in the order of the operator's schema, defaults filled in."""
Value = Dims | tuple[Dims, ...]
"""Labels of an operator's result; a tuple for several results."""

# Stand-ins for symbolic sizes. Distinct large primes, so that a reshape is factored in only one way.
_PRIMES: Final = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121)
VARYING: Final = _PRIMES[0]
"""Sizes from here on hold a symbolic factor."""


def tensor_at(root: torch.nn.Module, path: str) -> Any:
    """The attribute at a dotted path."""
    owner, _, leaf = path.rpartition(".")
    return getattr(root.get_submodule(owner), leaf)


def op_name(node: fx.Node) -> str:
    """Name of the operator without namespace and overload (`conv2d`)."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def full_args(node: fx.Node) -> Args:
    """The node's arguments in schema order, with keywords and defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(node.args)
    return [
        node.args[i] if i < len(node.args) else node.kwargs.get(p.name, p.default_value)
        for i, p in enumerate(schema.arguments)
    ]


class Flow:
    """Labels of the values of one graph, filled in node by node in the graph's order."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.atoms = Atoms()
        self.values: dict[fx.Node, Value] = {}
        self.blocked: dict[str, str] = {}
        """Where something could not be followed: module path and operator -> reason."""
        self.normalized: list[Labels] = []
        """Dimensions over which LayerNorm takes its statistics."""
        self._primes: dict[str, int] = {}

    def size(self, size: int | torch.SymInt) -> int:
        """A size; a symbolic one with a large prime in place of each symbol."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        symbols = sorted(expression.free_symbols, key=str)
        for symbol in symbols:
            self._primes.setdefault(str(symbol), _PRIMES[len(self._primes) % len(_PRIMES)])
        return int(expression.subs({symbol: self._primes[str(symbol)] for symbol in symbols}))

    def shape(self, node: fx.Node) -> list[int]:
        """Shape of a node's (first) result; empty for what is no tensor."""
        value = tensor_at(self.gm, str(node.target)) if node.op == "get_attr" else node.meta.get("val")
        return [self.size(s) for s in value.shape] if isinstance(value, torch.Tensor) else []

    def dims(self, node: fx.Node) -> Dims:
        """Labels of a node with one result."""
        value = self.values[node]
        return [None] * len(self.shape(node)) if isinstance(value, tuple) else value

    def where(self, node: fx.Node) -> str:
        """How people know this node: the path of its module, or else its own name."""
        path = module_path(node)
        return node.name if path.startswith("_") else path

    def freeze(self, labels: Labels, why: str, node: fx.Node) -> None:
        """Keep these channels, because of what happens at `node`."""
        self.atoms.freeze(labels, f"{why} ({self.where(node)})")

    def block(self, source: fx.Node, why: str, at: fx.Node) -> None:
        """Freeze all that flows from `source` into the node `at`."""
        value = self.values.get(source, [])
        for dims in value if isinstance(value, tuple) else (value,):
            for labels in dims:
                if labels is not None:
                    self.blocked.setdefault(f"{self.where(at)} [{op_name(at)}]", why)
                    self.freeze(labels, why, at)

    def meet(self, a: Labels, b: Labels, why: str, node: fx.Node) -> Labels:
        """The same dimension seen from two sides; frozen if only one side is followed."""
        if a is not None and b is not None and len(a) == len(b):
            self.atoms.union(a, b)
            return a
        self.freeze(a, why, node)
        self.freeze(b, why, node)
        return None

    def broadcast(self, nodes: Sequence[fx.Node], node: fx.Node) -> Dims:
        """Labels of an elementwise result; dimensions are aligned from the last one."""
        out: Dims = []
        for d in range(-len(self.shape(node)), 0):
            parts = [(self.dims(n)[d], self.shape(n)[d]) for n in nodes if len(self.shape(n)) >= -d]
            wide = [labels for labels, size in parts if size != 1]
            for labels, size in parts:
                if size == 1 and wide:
                    self.freeze(labels, "broadcast over channels", node)
            wide = wide or [labels for labels, _ in parts]
            current = wide[0]
            for labels in wide[1:]:
                current = self.meet(current, labels, "meets channels that are not followed", node)
            out.append(current)
        return out


Rule = Callable[[Flow, fx.Node, Args], Value | None]
"""Labels of a node's result from those of its arguments; None where the rule does not follow this form."""
