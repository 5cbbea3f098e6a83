"""Quantize for programs: calibrated or trained on as graphs, and written as ONNX with quantise and dequantise steps."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
import torch
from pydantic import JsonValue
from torch import Tensor
from torch.export import ExportedProgram

from lathe_api.manifest import Role
from lathe_api.recipe import CalibrationMethod, Quantize, QuantizeMethod, Schedule
from lathe_optimizers.context import Artifact, Dataset, PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import observers, onnx_files, onnx_import, parity, ranges, training
from lathe_optimizers.passes import ort_quantizer as quantizer
from lathe_optimizers.passes.export import is_quantised
from lathe_optimizers.passes.integer_types import IntegerTypes
from lathe_optimizers.passes.programs import (
    dynamic_shapes,
    example_inputs,
    load_program,
    module_path,
    save_program,
)
from lathe_optimizers.passes.quantize import CONVERTING, Result, arrays, calibration_set, inspected
from lathe_optimizers.passes.quantize_onnx import BATCH

OPSET: Final = 20
"""Of the ONNX form of an unfinished program."""
WEIGHT_DECAY: Final = 0.0
"""Training with rounding is short and starts from trained weights: nothing is gained by pulling them to zero."""
TRAINING: Final = 0.1
"""Progress at which training starts."""


def run(ctx: PassContext, given: Artifact, config: Quantize, types: IntegerTypes, where: str) -> PassOutput:
    """Quantise a program; see `quantize.run`."""
    float_program = load_program(given.files[Role.PROGRAM])
    if is_quantised(float_program):
        raise InputError(where, "a program that is quantised already", "Remove the stage.")
    aware = config.method is QuantizeMethod.QUANTIZATION_AWARE
    samples, size = calibration_set(ctx), _batch_size(float_program)
    ctx.report(Progress(0.0, "calibrate"))
    prepared = quantizer.prepare_program(
        float_program, types, training=aware, exclude=config.exclude, field=f"{where}.exclude"
    )
    details: dict[str, JsonValue] = {"batchNormFolded": prepared.folded, **_calibrate(prepared, config, samples, size)}
    probe = parity.probe(samples)
    rounded = None
    if aware:
        details |= _train(ctx, config, prepared)
        rounded = parity.program_answers(prepared.gm, probe, size)
    ctx.report(Progress(CONVERTING, "convert"))
    program = quantizer.convert(prepared)
    if rounded is not None:
        details["trainedAgainstConverted"] = parity.difference(rounded, parity.program_answers(program, probe, size))
    program_path, onnx_path = ctx.workdir / "quantized.pt2", ctx.workdir / "quantized.onnx"
    save_program(program, program_path)
    onnx_files.to_onnx(
        program,
        onnx_path,
        opset=_opset(given),
        input_names=[t.name for t in given.manifest.signature.inputs],
        output_names=[t.name for t in given.manifest.signature.outputs],
    )
    layers = {n.name: module_path(n) for n in program.graph_module.graph.nodes if n.op == "call_function"}
    result = Result(program_path, onnx_path, prepared.excluded, layers, details, size)
    return inspected(ctx, given, result, parity.program_answers(float_program, probe, size), probe)


def _calibrate(prepared: quantizer.Prepared, config: Quantize, samples: Dataset, size: int) -> dict[str, JsonValue]:
    """Find the ranges, and how much they depend on how many samples there are."""
    field, middle = "spec.data.calibration", len(samples) // 2
    if middle:
        quantizer.observe_samples(prepared, _tensors(samples, size, 0, middle), field=field)
    half = observers.extremes(prepared.gm)
    quantizer.observe_samples(prepared, _tensors(samples, size, middle), field=field)
    layer, moved = ranges.stability(half, observers.extremes(prepared.gm))
    if config.method is QuantizeMethod.STATIC and config.calibration is not CalibrationMethod.MIN_MAX:
        quantizer.narrow_ranges(prepared, _tensors(samples, size), config.calibration)
    return {
        "calibrationSamples": len(samples),
        "calibration": config.calibration.value,
        "calibrationStability": {"range": layer, "movedInSecondHalf": moved},
    }


def _train(ctx: PassContext, config: Quantize, prepared: quantizer.Prepared) -> dict[str, JsonValue]:
    quantizer.start_training(prepared)
    fitted = training.finetune(
        prepared.gm,
        ctx,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=float(config.learning_rate),
        weight_decay=WEIGHT_DECAY,
        schedule=Schedule.COSINE,
        teacher_weight=float(config.teacher_weight),
        slot="quantize",
        span=training.Span(TRAINING, CONVERTING),
    )
    quantizer.freeze_ranges(prepared, example_inputs(prepared.like))
    return {"epochs": config.epochs, "losses": list(fitted.losses)}


def _batch_size(program: ExportedProgram) -> int:
    """Samples at once: `BATCH`, or what a program takes whose batch does not vary."""
    varying = all(0 in dims for dims in dynamic_shapes(program))
    return BATCH if varying else len(example_inputs(program)[0])


def _tensors(samples: Dataset, size: int, first: int = 0, last: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    for inputs in arrays(samples, size, first, last):
        yield tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)


def _opset(given: Artifact) -> int:
    """Of the exported file that is replaced; for an unfinished program the exporter's."""
    return onnx_import.opset(onnx.load(given.files[Role.ONNX])) if given.manifest.exported else OPSET
