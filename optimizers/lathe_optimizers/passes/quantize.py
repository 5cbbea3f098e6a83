"""Quantize: integers instead of floating-point numbers.

Static measures activation ranges on calibration samples; QuantizationAware trains on with rounding in place and lets
the weights adapt (Jacob et al. 2017, arXiv:1712.05877). The other methods look at the weights alone (`post_training`).
All fold BatchNorm first, and all are proven on the graph that ONNX Runtime runs: kernels that stayed in floating point
are counted and named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from pydantic import JsonValue

from lathe_api.manifest import Kernels, Role
from lathe_api.recipe import Quantize, QuantizeMethod
from lathe_optimizers.context import Array, Artifact, Dataset, PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import integer_types, kernels, onnx_files, parity, post_training, quantize_onnx
from lathe_optimizers.passes.compaction import compact
from lathe_optimizers.passes.quantize_onnx import BATCH

CONVERTING: Final = 0.9
"""Progress at which conversion starts."""


def run(ctx: PassContext) -> PassOutput:
    """Quantise `ctx.input` for `ctx.hardware`.

    By Static and QuantizationAware, a program stays a program (with quantise and dequantise steps); a model given as
    ONNX is quantised by ONNX Runtime's tool. The other methods leave ONNX only. What was exported before stays
    exported. The same input gives the same bytes.

    Raises:
        InputError: the hardware is not available, there are no calibration samples, a name in `exclude`
            matches nothing, the model is quantised already, or the method would make it worse.
    """
    if ctx.stage is None or not isinstance(ctx.stage.config, Quantize) or ctx.input is None:
        raise TypeError("Quantize needs a Quantize stage and the result of a stage before it")
    config = ctx.stage.config
    where = f"stage {ctx.stage.name}: quantize"
    if config.method in post_training.METHODS:
        return _without_samples(ctx, ctx.input, config, where)
    types = integer_types.types_for(ctx.hardware)
    if config.method is QuantizeMethod.QUANTIZATION_AWARE:
        from lathe_optimizers.passes.programs import require_program

        require_program(ctx.input, f"{where}.method")
    if Role.PROGRAM not in ctx.input.files:
        return _quantise_file(ctx, ctx.input, config, types, where)
    # Models that were given as ONNX are handled without torch.
    from lathe_optimizers.passes import quantize_program

    return quantize_program.run(ctx, ctx.input, config, types, where)


@dataclass(frozen=True)
class Result:
    """A quantised model, before it is inspected."""

    program: Path | None
    onnx: Path
    excluded: tuple[str, ...]
    """Matrix operators that stay in floating point because the document says so."""
    layers: Mapping[str, str]
    """Module paths by the names of values."""
    details: Mapping[str, JsonValue]
    batch: int
    """Samples that it takes at once."""


def _quantise_file(
    ctx: PassContext, given: Artifact, config: Quantize, types: integer_types.IntegerTypes, where: str
) -> PassOutput:
    source, path = given.files[Role.ONNX], ctx.workdir / "quantized.onnx"
    samples = calibration_set(ctx)
    ctx.report(Progress(0.0, "calibrate"))
    excluded = quantize_onnx.quantize_file(
        source,
        path,
        types,
        lambda size: arrays(samples, size),
        calibration=config.calibration,
        exclude=config.exclude,
        field=f"{where}.exclude",
    )
    ctx.report(Progress(CONVERTING, "compare"))
    probe = parity.probe(samples)
    result = Result(None, path, excluded, {}, {"calibrationSamples": len(samples)}, BATCH)
    return inspected(ctx, given, result, parity.onnx_answers(source, probe, threads=ctx.threads, batch=BATCH), probe)


def _without_samples(ctx: PassContext, given: Artifact, config: Quantize, where: str) -> PassOutput:
    probe = parity.probe(ctx.data.evaluation)
    fixed = given.manifest.signature.inputs[0].shape[0]
    batch = fixed if fixed > 0 else BATCH
    reference = parity.onnx_answers(given.files[Role.ONNX], probe, threads=ctx.threads, batch=batch)
    path, excluded = post_training.run(ctx, given, config, where)
    ctx.report(Progress(CONVERTING, "compare"))
    return inspected(ctx, given, Result(None, path, excluded, {}, {}, batch), reference, probe)


def inspected(
    ctx: PassContext, given: Artifact, result: Result, reference: parity.Answers, probe: Sequence[Array]
) -> PassOutput:
    """Count what ONNX Runtime runs in integers, and say what it does not."""
    counted, floats = kernels.inspect(result.onnx)
    model = onnx.load(result.onnx)
    compact(model)
    onnx_files.write(model, result.onnx)
    answers = parity.onnx_answers(result.onnx, probe, threads=ctx.threads, batch=result.batch)
    left = tuple(f"{f.operator} {_layer(f, result.layers)}" for f in floats)
    config = ctx.stage.config if ctx.stage is not None else None
    return PassOutput(
        program=result.program,
        onnx=result.onnx,
        exported=given.manifest.exported,
        details={
            **result.details,
            "method": config.method.value if isinstance(config, Quantize) else "",
            "hardware": ctx.hardware.value,
            "operators": dict(sorted(counted.items())),
            "floatKernels": list(left),
            "excluded": list(result.excluded),
            "typicalDifference": parity.typical_difference(reference, answers),
        },
        warnings=_warnings(config, kernels.kernels_of(counted), left, len(result.excluded)),
    )


def _layer(kernel: kernels.FloatKernel, layers: Mapping[str, str]) -> str:
    """The name that people know a kernel by; the exporter decomposes some layers, but keeps the names of weights."""
    if kernel.result in layers:
        return layers[kernel.result]
    return kernel.weight.removesuffix(".weight") if kernel.weight.endswith(".weight") else kernel.name


def _warnings(config: object, counted: Kernels, left: Sequence[str], excluded: int) -> tuple[str, ...]:
    if isinstance(config, Quantize) and config.method is QuantizeMethod.FLOAT16:
        return ("CPUs compute in float32: on them float16 halves the file, and nothing gets faster.",)
    convolutions = sum(name.partition(" ")[0].endswith("Conv") for name in left)
    if isinstance(config, Quantize) and config.method is QuantizeMethod.WEIGHT_ONLY_8 and convolutions:
        told = f"{convolutions} convolutions compute in floating point, and expand 8-bit weights at every request"
        return (f"{told}: the file is smaller, and they are slower. For speed, write {QuantizeMethod.STATIC}.",)
    total = counted.int8 + counted.float32
    if not counted.int8:
        return (f"None of {total} matrix kernels runs in integers, so that nothing got faster.",)
    if len(left) <= excluded:
        return ()
    told = f"{len(left)} of {total} matrix kernels still run in floating point ({excluded} excluded by the document)"
    return (f"{told}: {', '.join(left)}.",)


def calibration_set(ctx: PassContext) -> Dataset:
    """The samples that activation ranges are measured on.

    Raises:
        InputError: there are none.
    """
    samples = ctx.data.calibration if ctx.data.calibration is not None else ctx.data.train
    if samples is None or not len(samples):
        raise InputError(
            "spec.data.calibration",
            "no samples",
            "Give samples like those that the model will meet (100 to 500 are enough), or a training set.",
        )
    return samples


def arrays(samples: Dataset, size: int, first: int = 0, last: int | None = None) -> Iterator[tuple[Array, ...]]:
    """Samples from `first` up to `last`, `size` at a time; the last batch is filled up, which moves no extreme."""
    end = len(samples) if last is None else last
    for start in range(first, end, size):
        yield samples.take(np.arange(start, start + size, dtype=np.int64).clip(max=end - 1))[0]
