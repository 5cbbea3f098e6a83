"""Import of a `.pt2` file: a program in inference mode whose batch may vary, and a float32 ONNX file beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument

from lathe_optimizers.context import Array, PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes import parity
from lathe_optimizers.passes.inputs import input_names, require_inputs, require_samples
from lathe_optimizers.passes.onnx_files import to_onnx
from lathe_optimizers.passes.programs import (
    ATEN,
    Switched,
    count_parameters,
    dynamic_shapes,
    example_inputs,
    load_program,
    quiet_torch,
    reexport,
    save_program,
    set_training,
    unlift,
)

OPSET: Final = 20
"""Operator set of the baseline; an Export stage chooses its own."""
TOLERANCE: Final = 1e-4
"""Largest difference between program and baseline, relative to the range of the answers (float32 rounding is 1e-6)."""
_MODEL: Final = "spec.model.uri"


def run(ctx: PassContext, source: Path) -> PassOutput:
    """Read a program, normalise it, and write its baseline.

    Raises:
        InputError: the file cannot be used, or the data does not feed its inputs.
        UnsafeFileError: the file was refused before it was loaded.
        StageError: the ONNX form does not answer as the program does.
    """
    ctx.report(Progress(0.0, "check and load"))
    given = load_program(source, ctx.model.uri)
    names = input_names(given)
    require_inputs(ctx, names)
    _check_outputs(given)
    examples = example_inputs(given)
    graph = unlift(given)
    switched = set_training(graph, on=False)
    _drop_counters(graph)
    samples = parity.probe(ctx.data.evaluation)
    require_samples(examples, names, samples, dynamic_shapes(given))

    ctx.report(Progress(0.3, "normalise"))
    fixed = _fixed_batch(given)
    program, warnings = (reexport(graph, given), []) if fixed is None else _with_free_batch(graph, given, samples)
    _check_state(program)
    warnings += _remarks(switched)

    ctx.report(Progress(0.5, "write ONNX"))
    onnx, saved = ctx.workdir / "model.onnx", ctx.workdir / "program.pt2"
    to_onnx(program, onnx, opset=OPSET, input_names=names)
    save_program(program, saved)

    ctx.report(Progress(0.8, "compare"))
    reference = parity.program_answers(graph, samples, fixed or parity.BATCH)
    worst = max(
        parity.difference(reference, parity.program_answers(program, samples)),
        parity.difference(reference, parity.onnx_answers(onnx, samples, threads=ctx.threads)),
    )
    if worst > TOLERANCE:
        raise StageError(
            "import",
            f"the ONNX form differs from the program by {worst:.2g} of the answers' range (allowed: {TOLERANCE:g})",
        )
    return PassOutput(
        program=saved,
        onnx=onnx,
        details={
            "format": ctx.model.format.value,
            "parameters": count_parameters(program),
            "opset": OPSET,
            "parity": worst,
            "paritySamples": len(samples[0]),
            "batchNorm": switched.batch_norm,
            "dropout": switched.dropout,
        },
        warnings=tuple(warnings),
    )


def _check_outputs(program: ExportedProgram) -> None:
    spec = program.call_spec.out_spec
    flat = spec.is_leaf() or (spec.type in (tuple, list) and all(child.is_leaf() for child in spec.children()))
    tensors = [
        isinstance(s.arg, TensorArgument)
        for s in program.graph_signature.output_specs
        if s.kind is OutputKind.USER_OUTPUT
    ]
    if not flat or not tensors or not all(tensors):
        raise InputError(
            _MODEL, "the model does not return tensors", "Return one tensor or a tuple of tensors; export again."
        )


def _check_state(program: ExportedProgram) -> None:
    with quiet_torch():
        functional = program.run_decompositions({})  # only there, changes in place show as further outputs
    for spec in functional.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise InputError(
                _MODEL,
                f"the model changes `{spec.target}` while it answers",
                "Call model.eval() before the export; a served model keeps no state between requests.",
            )


def _drop_counters(graph: fx.GraphModule) -> None:
    """Remove the counters of batches seen, which BatchNorm increments in an export in training mode."""
    for node in list(graph.graph.nodes):
        if node.target == ATEN.add_.Tensor and str(getattr(node.args[0], "target", "")).endswith("num_batches_tracked"):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _fixed_batch(program: ExportedProgram) -> int | None:
    """The number of samples that the program insists on, or None where it may vary."""
    sizes = [len(x) for x, dims in zip(example_inputs(program), dynamic_shapes(program), strict=True) if 0 not in dims]
    return sizes[0] if sizes else None


def _with_free_batch(
    graph: fx.GraphModule, given: ExportedProgram, samples: Sequence[Array]
) -> tuple[ExportedProgram, list[str]]:
    """Export a program of fixed batch again with a batch that may vary, where its graph allows that.

    Raises:
        InputError: the graph computes with the fixed number.
    """
    examples, dims = example_inputs(given), dynamic_shapes(given)
    fixed = len(examples[0])
    wider = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in examples)
    remedy = 'Export with dynamic_shapes=({0: torch.export.Dim("batch")},) and an example of at least two samples.'
    try:
        graph.graph.lint()
        with quiet_torch():
            program = torch.export.export(
                graph, wider, dynamic_shapes=tuple({**d, 0: Dim.AUTO} for d in dims), strict=False
            )
        free = all(0 in d for d in dynamic_shapes(program))
        few = tuple(x[:3] for x in samples)
        same = free and parity.difference(
            parity.program_answers(graph, few, fixed), parity.program_answers(program, few)
        )
    except Exception as e:  # torch raises many kinds where a graph cannot be traced with other sizes
        raise InputError(_MODEL, f"the model takes exactly {fixed} samples at once", remedy) from e
    if not free or same > TOLERANCE:
        raise InputError(_MODEL, f"the model takes exactly {fixed} samples at once", remedy)
    return program, [
        f"The model was exported for exactly {fixed} samples at once; it takes any number after the import."
    ]


def _remarks(switched: Switched) -> list[str]:
    if not switched.frozen_statistics:
        return []
    number = switched.frozen_statistics
    return [f"{number} BatchNorm layers have momentum=None: training keeps their statistics as they are."]
