"""Graphs that share the weights of another graph and give other outputs: what training looks at.

Neither the answer of the graph they are made from nor what is exported of it changes.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import fx

from lathe_api.data import Task
from lathe_optimizers.passes.training_mode import ATEN

_SOFTMAX: Final = frozenset({ATEN.softmax.int, ATEN._softmax.default})  # noqa: SLF001 - names
_PASSED_ON: Final = frozenset({ATEN.clone.default, ATEN.contiguous.default, ATEN.alias.default, ATEN.detach.default})
_SCORES_RANK: Final = 2


def tapped(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A graph that gives the values of `nodes` after the outputs of `gm`."""
    return _view(gm, [*_outputs(gm), *nodes])


def scoring(gm: fx.GraphModule, task: Task) -> fx.GraphModule:
    """The part of a classifier that the losses are made for: without a softmax at its end.

    Cross entropy and softened answers take scores. Of probabilities they would learn slowly and softly, as softmax
    would be applied twice.

    Returns:
        `gm` itself where its answer is no softmax over classes, of shape (batch, classes).
    """
    outputs = _outputs(gm)
    last = outputs[0]
    while last.op == "call_module" or last.target in _PASSED_ON:  # modules are the observers of quantisation
        last = last.all_input_nodes[0]
    if task is not Task.CLASSIFICATION or last.target not in _SOFTMAX:
        return gm
    value = last.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() != _SCORES_RANK or last.args[1] not in {1, -1}:
        return gm
    return _view(gm, [last.all_input_nodes[0], *outputs[1:]])


def _outputs(gm: fx.GraphModule) -> list[fx.Node]:
    (output,) = gm.graph.find_nodes(op="output")
    return [n for n in output.all_input_nodes if isinstance(n, fx.Node)]


def _view(gm: fx.GraphModule, outputs: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(gm.graph, copies)
    graph.output(tuple(copies[n] for n in outputs))
    return fx.GraphModule(gm, graph)
