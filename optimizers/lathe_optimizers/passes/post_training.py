"""Quantize without training and without calibration: what is known of the weights alone.

Dynamic measures each activation's range while it runs; WeightOnly8, WeightOnly4 and Float16 leave the activations.
All work on the ONNX form, so that models of every origin take the same road.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from lathe_api.manifest import Role
from lathe_api.recipe import Quantize, QuantizeMethod
from lathe_optimizers.context import Artifact, PassContext, Progress
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import float_model, integer_products, integer_types, onnx_files, weight_bits
from lathe_optimizers.passes.compaction import compact

METHODS: Final = frozenset(
    {QuantizeMethod.DYNAMIC, QuantizeMethod.WEIGHT_ONLY_8, QuantizeMethod.WEIGHT_ONLY_4, QuantizeMethod.FLOAT16}
)
_PRODUCTS: Final = ("MatMul", "Attention", "LSTM")
"""What ONNX Runtime has fast integer kernels for that take ranges as they come. Gemm is written as MatMul first."""
_MOST: Final = 0.5
"""Share of a network's weights in convolutions from which methods for matrix products are refused."""


def run(ctx: PassContext, given: Artifact, config: Quantize, where: str) -> tuple[Path, tuple[str, ...]]:
    """Write the smaller form of `given` into the workdir.

    Returns:
        Its path, and the names of the matrix operators that stay in floating point because of `exclude`.

    Raises:
        InputError: the method would make this model worse, nothing in it can be converted, it is quantised already,
            or a name in `exclude` matches nothing.
    """
    source, path = given.files[Role.ONNX], ctx.workdir / "quantized.onnx"
    ctx.report(Progress(0.0, "prepare"))
    model = float_model.prepare(source, ctx.workdir / "prepared.onnx", _layers(given) if config.exclude else ())
    left = float_model.excluded(model, config.exclude, f"{where}.exclude")
    _require_fit(model, config.method, f"{where}.method")
    ctx.report(Progress(0.3, "convert"))
    match config.method:
        case QuantizeMethod.DYNAMIC:
            model = _dynamic(model, integer_types.types_for(ctx.hardware), left, ctx.workdir)
        case QuantizeMethod.FLOAT16:
            model = _half(model, left)
        case QuantizeMethod.WEIGHT_ONLY_4:
            weight_bits.convert(model, 4, left)
        case _:
            weight_bits.convert(model, 8, left)
    onnx_files.strip(model)
    compact(model)
    onnx_files.write(model, path)
    return path, tuple(sorted(left))


def _layers(given: Artifact) -> tuple[str, ...]:
    """Module paths of the matrix operators, in order, of a model that came as a program."""
    if Role.PROGRAM not in given.files:
        return ()
    # Models that were given as ONNX are handled without torch.
    from lathe_optimizers.passes.annotations import MATRIX
    from lathe_optimizers.passes.programs import load_program, module_path

    nodes = load_program(given.files[Role.PROGRAM]).graph_module.graph.nodes
    paths = []
    for node in nodes:
        if node.target in MATRIX:
            paths.append(module_path(node))
        elif getattr(node.target, "__name__", "").startswith("scaled_dot_product_attention"):
            paths += [module_path(node)] * 2  # two products: of queries with keys, and with values
    return tuple(paths)


def _require_fit(model: onnx.ModelProto, method: QuantizeMethod, field: str) -> None:
    """Refuse what is known to make a model worse, or to change nothing.

    ONNX Runtime's dynamic convolution (ConvInteger) takes six times as long as the float one, and there is no
    convolution with 4-bit weights.
    """
    weights = weight_bits.constants(model)
    sizes = {"Conv": 0, "MatMul": 0, "Gather": 0}
    for node in model.graph.node:
        weight = weight_bits.weight_of(node, weights)
        if weight is not None:
            sizes["MatMul" if node.op_type == "Gemm" else node.op_type] += weight.size
    if not any(sizes.values()):
        raise InputError(field, "a model without constant float32 matrices", "Remove the Quantize stage.")
    multiplied = sizes["Conv"] + sizes["MatMul"]
    if method in (QuantizeMethod.DYNAMIC, QuantizeMethod.WEIGHT_ONLY_4) and sizes["Conv"] > _MOST * multiplied:
        reason = (
            "dynamic int8 convolutions are several times slower than float ones"
            if method is QuantizeMethod.DYNAMIC
            else "convolutions have no kernel for 4-bit weights"
        )
        raise InputError(
            field,
            f"{method} for a network with {sizes['Conv'] / multiplied:.0%} of its weights in convolutions: {reason}",
            f"Write {QuantizeMethod.STATIC} or {QuantizeMethod.QUANTIZATION_AWARE}, or for size alone "
            f"{QuantizeMethod.WEIGHT_ONLY_8}.",
        )


def _dynamic(
    model: onnx.ModelProto, types: integer_types.IntegerTypes, left: Collection[str], folder: Path
) -> onnx.ModelProto:
    """Signed weights by column: unsigned ones take half as long again on x86. The tool does what is left."""
    weight_bits.convert(model, 8, left, operators=frozenset({"Gather"}))
    integer_products.convert(model, types.weight_range[1], left)
    if not any(n.op_type in _PRODUCTS for n in model.graph.node):
        return model
    prepared, written = folder / "prepared.onnx", folder / "dynamic.onnx"
    onnx_files.write(model, prepared)
    with float_model.quiet():
        quantize_dynamic(
            str(prepared),
            str(written),
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            reduce_range=types.weight_range[1] < 127,  # noqa: PLR2004 - the full range of a signed byte
            weight_type=QuantType.QInt8,
            # Of results behind operators of other domains, whose type it cannot derive.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            # The tool writes Gemm as a MatMul of this name.
            nodes_to_exclude=sorted({*left, *(f"{name}_MatMul" for name in left)}),
        )
    return onnx.load(written)


def _half(model: onnx.ModelProto, left: Collection[str]) -> onnx.ModelProto:
    """Float16 inside, float32 for clients; operators that lose too much in it stay (the converter's own list)."""
    with float_model.quiet():
        converted: onnx.ModelProto = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=sorted(left)
        )
        ONNXModel(converted).topological_sort()
    return converted
