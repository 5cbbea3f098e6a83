"""Training and inference mode of an exported graph: constant arguments of its operators, not a state of a module."""

import operator
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from lathe_optimizers.errors import InputError

ATEN: Final = torch.ops.aten
_NORM_OF_DECOMPOSED: Final = ATEN._native_batch_norm_legit_no_training.default  # noqa: SLF001 - an operator's name
_UNSUPPORTED_TRAINING: Final = (ATEN._native_batch_norm_legit_functional.default, ATEN.native_dropout.default)  # noqa: SLF001
_DROPOUT: Final = (ATEN.dropout.default, ATEN.dropout_.default, ATEN.feature_dropout.default)
_PROBABILITY: Final = 4
"""Position of `dropout_p` among the arguments of `scaled_dot_product_attention`."""


@dataclass(frozen=True)
class Switched:
    """What `set_training` found in a graph."""

    batch_norm: int = 0
    """BatchNorm layers that were switched."""
    frozen_statistics: int = 0
    """Of those, how many never update their statistics (exported in eval mode with `momentum=None`)."""
    dropout: int = 0
    """Dropout layers that were switched."""


def set_training(gm: fx.GraphModule, on: bool) -> Switched:  # noqa: FBT001 - reads as torch's train(mode)
    """Switch BatchNorm and Dropout between training and inference, and say how many were found.

    The mode of an exported graph is a constant argument of its operators. A program that went through
    `run_decompositions` carries the inference-only BatchNorm, which is turned back into `aten.batch_norm`. BatchNorm
    without running statistics always normalises by its batch, as in the module it came from, and is left alone. The
    dropout within attention has no mode but a probability, which inference sets to 0 for good.

    Raises:
        InputError: the program is a decomposed export in training mode.
    """
    batch_norm = frozen = dropout = 0
    for found in list(gm.graph.nodes):
        node = _plain_batch_norm(gm, found) if found.target == _NORM_OF_DECOMPOSED else found
        if node.target in _UNSUPPORTED_TRAINING:
            raise InputError(
                "spec.model.uri",
                f"operator {node.target} comes from a decomposed export in training mode",
                "Call model.eval() before torch.export.export, and do not call run_decompositions.",
            )
        if node.target == ATEN.batch_norm.default and node.args[3] is not None:
            node.args = (*node.args[:5], on, *node.args[6:])
            batch_norm += 1
            frozen += int(node.args[6] == 0.0)
        elif node.target in _DROPOUT:
            node.args = (*node.args[:2], on)
            dropout += 1
        elif node.target == ATEN.scaled_dot_product_attention.default and not on and len(node.args) > _PROBABILITY:
            node.update_arg(_PROBABILITY, 0.0)
    gm.recompile()
    return Switched(batch_norm=batch_norm, frozen_statistics=frozen, dropout=dropout)


def _plain_batch_norm(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Replace the inference-only BatchNorm by `aten.batch_norm`; the mode is set by the caller."""
    if any(u.target is not operator.getitem or (u.args[1] != 0 and u.users) for u in node.users):
        raise InputError(
            "spec.model.uri", f"the saved statistics of {node.name} are used", "Export without run_decompositions."
        )
    x, weight, bias, mean, var, momentum, eps = node.args
    with gm.graph.inserting_before(node):
        plain = gm.graph.call_function(
            ATEN.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
        )
    plain.meta = dict(node.meta, val=node.meta["val"][0])
    for user in list(node.users):
        user.replace_all_uses_with(plain)
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)
    return plain
