"""Channel rules of operators that work element by element, pool, reduce or normalise."""

from typing import Final

from torch import fx

from lathe_optimizers.passes.channel_rules_base import Args, Flow, Rule, Value, op_name

_ELEMENTWISE: Final = (
    *("abs", "add", "add_", "alias", "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "cos", "detach", "div"),
    *("div_", "dropout", "dropout_", "elu", "eq", "erf", "exp", "expm1", "feature_dropout", "ge", "gelu", "gt"),
    *("hardsigmoid", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "le", "leaky_relu", "leaky_relu_", "log"),
    *("log1p", "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "maximum", "minimum", "mish", "mul"),
    *("mul_", "ne", "neg", "pow", "reciprocal", "relu", "relu6", "relu_", "rsqrt", "rsub", "sigmoid", "sign", "silu"),
    *("silu_", "sin", "softplus", "sqrt", "square", "sub", "sub_", "tanh", "to", "_to_copy", "where"),
)
_POOLS: Final = (
    *("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
    *("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"),
)
_POOLS_WITH_INDICES: Final = ("max_pool2d_with_indices", "adaptive_max_pool2d")


def _elementwise(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    del args
    nodes = [n for n in node.all_input_nodes if flow.dims(n)]
    return flow.broadcast(nodes, node) if nodes else []


def _pool(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    dims = flow.dims(args[0])
    name = op_name(node)
    pooled = next(rank for rank in (1, 2, 3) if f"{rank}d" in name)
    for labels in dims[-pooled:]:
        flow.freeze(labels, "pooled", node)
    return [*dims[:-pooled], *[None] * pooled]


def _pool_with_indices(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    out = _pool(flow, node, args)
    return None if out is None or isinstance(out, tuple) else (out, list(out))


def _reduce(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, wanted, *options = args
    if not isinstance(wanted, (list, tuple)) or not wanted:  # over everything
        return None
    keep = bool(options[0])
    dims = flow.dims(x)
    reduced = {d % len(dims) for d in wanted}
    for d in reduced:
        flow.freeze(dims[d], "reduced", node)
    return [None if d in reduced else labels for d, labels in enumerate(dims) if keep or d not in reduced]


def _softmax(flow: Flow, node: fx.Node, args: Args) -> Value | None:
    x, dim = args[:2]
    dims = list(flow.dims(x))
    flow.freeze(dims[dim], "softmax over channels", node)
    return dims


RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_POOLS_WITH_INDICES, _pool_with_indices),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
}
