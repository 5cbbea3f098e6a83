"""Static int8 quantisation of models that came as ONNX, by ONNX Runtime's own tool.

The tool's defaults are not used: signed activations make it three times slower on x86, and it would round the running
sums of normalised networks.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, get_qdq_config, quantize

from lathe_api.recipe import CalibrationMethod
from lathe_optimizers.context import Array
from lathe_optimizers.passes import file_ranges, float_model, onnx_files
from lathe_optimizers.passes.float_model import MATRIX
from lathe_optimizers.passes.integer_types import IntegerTypes

BATCH: Final = 32
"""Calibration samples at once; keeps memory constant."""
_AROUND: Final = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Relu",
        "Reshape", "Sigmoid", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators with an integer kernel, or that move integers as they are."""
_NORMS: Final = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization", "SkipLayerNormalization"}
)
_SIGNED: Final = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def quantize_file(
    source: Path,
    path: Path,
    types: IntegerTypes,
    feed: file_ranges.Feed,
    *,
    calibration: CalibrationMethod = CalibrationMethod.MIN_MAX,
    exclude: Sequence[str] = (),
    field: str = "exclude",
) -> tuple[str, ...]:
    """Write the int8 form of an ONNX file: integers around every matrix operator, weights in int8 per channel.

    Memory does not grow with the number of samples. The same input gives the same
    bytes. In networks with LayerNorm or the like, only matrix operators are quantised, and their outputs are floats.

    Args:
        source: a float model with a batch size that may vary.
        path: written whole or not at all; intermediate files are left in its folder.
        types: number types.
        feed: gives calibration inputs in the model's order, batch by batch; called once for each pass over them.
        calibration: how activation ranges are found.
        exclude: names of nodes, or their leading parts (up to a `/` or `.`), that stay in floating point.
        field: where `exclude` was written, for messages.

    Returns:
        Names of the matrix operators that stay in floating point because of `exclude`.

    Raises:
        InputError: a name in `exclude` matches no node, the file is quantised already, or an activation is NaN or
            infinite.
    """
    prepared = path.with_suffix(".prepared.onnx")
    model = float_model.prepare(source, prepared)
    excluded = float_model.excluded(model, exclude, field, MATRIX | _AROUND)
    layers = tuple(n.name for n in model.graph.node if n.name in excluded and n.op_type in MATRIX)
    excluded |= _set_apart(model, excluded)
    model = float_model.with_types(model)
    onnx_files.write(model, prepared)
    reader = _Reader([i.name for i in onnx_files.read_signature(prepared).inputs], feed(BATCH))
    written = path.with_suffix(".raw.onnx")
    normed = any(n.op_type in _NORMS for n in model.graph.node)
    # A list made from a set: sorted, so that it is the same in every process.
    operators = sorted((MATRIX if normed else MATRIX | _AROUND) & {n.op_type for n in model.graph.node})
    overrides = {}
    if calibration is not CalibrationMethod.MIN_MAX:
        found = file_ranges.activation_ranges(model, path.parent, feed, calibration, operators)
        overrides = {name: [{"rmin": np.float32(r[0]), "rmax": np.float32(r[1])}] for name, r in found.items()}
    with float_model.quiet():
        config = get_qdq_config(
            str(prepared),
            reader,
            tensor_quant_overrides=overrides or None,
            activation_type=_SIGNED[types.activation],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=types.weight_range[1] < 127,  # noqa: PLR2004 - the full range of a signed byte
            nodes_to_exclude=sorted(excluded),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                **({"OpTypesToExcludeOutputQuantization": ["MatMul"]} if normed else {}),
            },
        )
        config.op_types_to_quantize = operators
        quantize(str(prepared), str(written), config)
    result = onnx.load(written)
    onnx_files.strip(result)
    onnx_files.write(result, path)
    return layers


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Gives the tool one batch at a time."""

    def __init__(self, names: Sequence[str], feed: Iterable[Sequence[Array]]) -> None:
        self._names = names
        self._feed = iter(feed)

    def get_next(self) -> Mapping[str, Array] | None:
        inputs = next(self._feed, None)
        if inputs is None:
            return None
        return dict(zip(self._names, (np.ascontiguousarray(x) for x in inputs), strict=True))


def _set_apart(model: onnx.ModelProto, excluded: set[str]) -> set[str]:
    """Follow each excluded layer by a LeakyReLU of slope 1, as `ort_quantizer` does; returns the names of these."""
    made = set()
    results = {v.name for v in model.graph.output}
    for index in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[index]
        if node.name in excluded and node.op_type in ("Conv", "Gemm") and node.output[0] not in results:
            result, inner = node.output[0], f"{node.output[0]}_float"
            node.output[0] = inner
            apart = helper.make_node("LeakyRelu", [inner], [result], name=f"{node.name}_float", alpha=1.0)
            model.graph.node.insert(index + 1, apart)
            made.add(apart.name)
    return made
