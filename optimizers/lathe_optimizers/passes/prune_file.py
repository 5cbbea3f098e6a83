"""Prune of single weights in a model that was given as ONNX, without training."""

import onnx
from onnx import numpy_helper

from lathe_api.manifest import Role
from lathe_api.recipe import Prune
from lathe_optimizers.context import Artifact, PassContext, PassOutput
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import float_model, onnx_files, sparsity, weight_bits


def run(ctx: PassContext, given: Artifact, config: Prune) -> PassOutput:
    """Set weights of convolutions and matrix products to zero.

    Raises:
        InputError: the model has no such weights.
    """
    model = onnx.load(given.files[Role.ONNX])
    weights = weight_bits.constants(model)
    found = {}
    for node in model.graph.node:
        weight = weight_bits.weight_of(node, weights) if node.op_type in float_model.MATRIX else None
        if weight is not None:
            # Of a product, the second operand has the inputs first, unless Gemm transposes it.
            outputs_first = node.op_type == "Conv" or weight_bits.attribute(node, "transB", 0)
            found[node.input[1]] = (weight, bool(outputs_first))
    if not found:
        raise InputError(
            "spec.model.uri", "a model without constant float32 matrices", "Remove the Prune stage: nothing can go."
        )
    turned = {name: w if first else w.swapaxes(-1, -2) for name, (w, first) in found.items()}
    masks = sparsity.kept(turned, config, sparsity.target(config), ctx.seed)
    for tensor in model.graph.initializer:
        if tensor.name in found:
            weight, first = found[tensor.name]
            mask = masks[tensor.name] if first else masks[tensor.name].swapaxes(-1, -2)
            tensor.CopyFrom(numpy_helper.from_array(weight * mask, tensor.name))
    path = ctx.workdir / "pruned.onnx"
    onnx_files.write(model, path)
    return PassOutput(
        onnx=path,
        exported=given.manifest.exported,
        details=sparsity.described(masks),
        warnings=(sparsity.NO_SPEED, "Nothing of what pruning cost was recovered: that needs a `.pt2` model."),
    )
