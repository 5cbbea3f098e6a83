"""Channel rules of operators that move, join, cut and reshape dimensions."""

from typing import Final

import numpy as np
from torch import fx

from lathe_optimizers.passes.atoms import Dims, Labels
from lathe_optimizers.passes.channel_rules_base import VARYING, Args, Flow, Rule, Value, op_name

_SIZED: Final = frozenset({"reshape", "view", "_unsafe_view"})
"""Operators whose second argument lists the sizes of the result."""
_END: Final = 2**31
"""Ends of slices from here on mean: to the end."""


def _cat(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    parts, dim = args
    out = list(flow.dims(parts[0]))
    if any(len(flow.dims(p)) != len(out) for p in parts):
        return None
    for d in range(len(out)):
        labels = [flow.dims(p)[d] for p in parts]
        if d != dim % len(out):
            for other in labels[1:]:
                out[d] = flow.meet(out[d], other, "joined with what is not followed", node)
        elif any(part is not None for part in labels):
            reason = f"joined with what is not followed ({flow.where(node)})"
            sizes = [flow.shape(p)[d] for p in parts]
            if max(sizes) >= VARYING:
                return None
            out[d] = np.concatenate(
                [
                    flow.atoms.new(size, reason) if part is None else part
                    for part, size in zip(labels, sizes, strict=True)
                ]
            )
    return out


def _split(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, _sizes, dim = args
    dims = flow.dims(x)
    dim %= len(dims)
    start = 0
    results = []
    for part in node.meta["val"]:
        size = flow.size(part.shape[dim])
        results.append(
            [
                labels[start : start + size] if d == dim and labels is not None else labels
                for d, labels in enumerate(dims)
            ]
        )
        start += size
    return tuple(results)


def _unbind(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, dim = args
    dims = list(flow.dims(x))
    flow.freeze(dims.pop(dim), "taken apart", node)
    return tuple(list(dims) for _ in node.meta["val"])


def _select(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, dim, _index = args
    dims = list(flow.dims(x))
    flow.freeze(dims.pop(dim), "one of them is selected", node)
    return dims


def _slice(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, dim, start, end, step = args
    dims = list(flow.dims(x))
    whole = start in (0, None) and (end is None or (isinstance(end, int) and end >= _END)) and step == 1
    if not whole:
        flow.freeze(dims[dim], "sliced", node)
        dims[dim] = None
    return dims


def _pad(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, widths = args[:2]
    dims = list(flow.dims(x))
    for i in range(0, len(widths), 2):
        if any(not isinstance(w, int) or w != 0 for w in widths[i : i + 2]):
            d = len(dims) - 1 - i // 2
            flow.freeze(dims[d], "padded", node)
            dims[d] = None
    return dims


def _permute(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    del node
    x, order = args
    return [flow.dims(x)[d] for d in order]


def _transpose(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    del node
    x, i, j = args
    dims = list(flow.dims(x))
    dims[i], dims[j] = dims[j], dims[i]
    return dims


def _t(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    del node
    return list(reversed(flow.dims(args[0])))


def _unsqueeze(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    del node
    x, dim = args
    dims = list(flow.dims(x))
    dims.insert(dim if dim >= 0 else dim + len(dims) + 1, None)
    return dims


def _expand(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x = args[0]
    new = flow.shape(node)
    added = len(new) - len(flow.dims(x))
    old = [1] * added + flow.shape(x)
    before: Dims = [*[None] * added, *flow.dims(x)]
    out: Dims = []
    for labels, size, wanted in zip(before, old, new, strict=True):
        if size != wanted:
            flow.freeze(labels, "expanded", node)
        out.append(labels if size == wanted else None)
    return _computed_sizes(flow, node, args, out)


def _sym_size(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, dim = args
    flow.freeze(flow.dims(x)[dim], "size is read", node)
    return []


def _assert_metadata(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    del flow, node
    _x, size, stride = args[:3]
    return [] if size is None and stride is None else None


def _reshape(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    """Factor the old and the new shape into runs of equal product, and follow each run by itself."""
    x = args[0]
    dims, old, new = flow.dims(x), flow.shape(x), flow.shape(node)
    out: Dims = [None] * len(new)
    i = j = 0
    while i < len(old) or j < len(new):
        first_old, first_new = i, j
        a = old[i] if i < len(old) else 1
        b = new[j] if j < len(new) else 1
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(old):
                a, i = a * old[i], i + 1
            elif b < a and j < len(new):
                b, j = b * new[j], j + 1
            else:
                return None
        run_old = [d for d in range(first_old, min(i, len(old))) if old[d] != 1]
        run_new = [d for d in range(first_new, min(j, len(new))) if new[d] != 1]
        followed = [d for d in run_old if dims[d] is not None]
        if not followed:
            continue
        sizes_old, sizes_new = [old[d] for d in run_old], [new[d] for d in run_new]
        if len(followed) > 1 or max(sizes_old + sizes_new) >= VARYING:
            for d in followed:
                flow.freeze(dims[d], "merged with another dimension", node)
            continue
        at, labels = _follow_run(
            flow, dims[followed[0]], run_old.index(followed[0]), sizes_old, sizes_new, run_new, new
        )
        out[run_new[at]] = labels
    return _computed_sizes(flow, node, args, out) if op_name(node) in _SIZED else out


def _follow_run(
    flow: Flow,
    labels: Labels,
    axis: int,
    sizes_old: list[int],
    sizes_new: list[int],
    run_new: list[int],
    new: list[int],
) -> tuple[int, Labels]:
    """Where the followed dimension of a run goes: its place in the new run, and its labels there.

    A run that becomes one dimension repeats the labels. A run that becomes several keeps one of them as channels, and
    unifies along the others: heads of an attention, groups of a shuffle.
    """
    if labels is None:
        raise ValueError("the dimension is not followed")
    column = labels.reshape([-1 if i == axis else 1 for i in range(len(sizes_old))])
    flat = np.broadcast_to(column, sizes_old).reshape(-1)
    if len(sizes_new) == 1:
        return 0, np.ascontiguousarray(flat)
    grid = flow.atoms.roots(flat).reshape(sizes_new)
    # Channels of a feature map are followed by the map's dimensions, heads by their size.
    preferred = len(sizes_new) - 1 if len(new) - run_new[-1] > 2 else len(sizes_new) - 2  # noqa: PLR2004 - height, width

    def cost(candidate: int) -> tuple[bool, bool]:
        rows = np.moveaxis(grid, candidate, 0).reshape(sizes_new[candidate], -1)
        untied = bool((rows != rows[:, :1]).any())
        return untied, candidate != preferred

    best = min(range(len(sizes_new)), key=cost)
    rows = np.moveaxis(grid, best, 0).reshape(sizes_new[best], -1)
    for row in rows:
        flow.atoms.union(np.full(len(row), row[0]), row)
    return best, np.ascontiguousarray(rows[:, 0])


def _computed_sizes(flow: Flow, node: fx.Node, args: Args, out: Dims) -> Dims:
    """Freeze dimensions whose size is not a number in the graph: it could not be changed."""
    for labels, size in zip(out, args[1], strict=True):
        if not isinstance(size, int):
            flow.freeze(labels, "size is computed", node)
    return out


RULES: Final[dict[str, Rule]] = {
    "cat": _cat,
    "split": _split,
    "chunk": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "select": _select,
    "slice": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "sym_size": _sym_size,
    "_assert_tensor_metadata": _assert_metadata,
    "reshape": _reshape,
    "view": _reshape,
    "_unsafe_view": _reshape,
    "squeeze": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
}
