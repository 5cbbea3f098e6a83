"""Export: write the file that is served, and prove that it answers as the program does.

Float programs: ONNX Runtime must agree with torch within the stage's tolerance, with the graph as it is written and
with the graph as the runtime optimises it.

Quantised programs: torch computes the quantise-dequantise steps in float32, and so does ONNX Runtime with optimisation
disabled. But a value on the border of two of the 256 levels falls to either side by the order of a sum, and that moves
everything after it. So the typical difference is bounded (root mean square), not the largest. With optimisation the
runtime computes in integers and requantises at other places; that is held to `INTEGER_TOLERANCE` here, and to the
task's metric by the gates, which measure the file as it is served.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnx
import onnxruntime as ort
from pydantic import JsonValue

from lathe_api.hostclass import HOST_KEY, host_class
from lathe_api.manifest import Role, TensorSpec
from lathe_api.recipe import Export, Portability
from lathe_optimizers.context import Array, PassContext, PassOutput, Progress
from lathe_optimizers.errors import StageError
from lathe_optimizers.passes import onnx_files, onnx_import, parity
from lathe_optimizers.passes.compaction import compact

if TYPE_CHECKING:
    from torch.export import ExportedProgram

QUANTISED_TOLERANCE: Final = 5e-3
"""Quantised, as written: root mean square of the difference, relative to the range; one level is 1/255 of a range."""
INTEGER_TOLERANCE: Final = 2e-2
"""Quantised, in integer arithmetic: likewise. Beyond, the runtime computes something else than was trained."""


def run(ctx: PassContext) -> PassOutput:
    """Write `ctx.input` as one ONNX file without metadata, notes and source paths.

    A host-tuned file holds the graph as ONNX Runtime has optimised it for this kind of CPU, memory layouts included:
    it loads faster, and servers on other kinds refuse it (the metadata property `HOST_KEY`).

    The same input gives the same bytes. A model without a program (given as ONNX) is converted to the operator set
    that is asked for if its own is older, and else keeps its own.

    Raises:
        InputError: ONNX Runtime refuses the written file.
        StageError: the written file does not answer as the program does.
    """
    if ctx.stage is None or not isinstance(ctx.stage.config, Export) or ctx.input is None:
        raise TypeError("Export needs an Export stage and the result of a stage before it")
    config = ctx.stage.config
    path = ctx.workdir / "exported.onnx"
    inputs = parity.probe(ctx.data.evaluation)
    ctx.report(Progress(0.0, "write ONNX"))
    if Role.PROGRAM in ctx.input.files:
        # Models that were given as ONNX are handled without torch.
        from lathe_optimizers.passes.programs import load_program

        program = load_program(ctx.input.files[Role.PROGRAM])
        signature = ctx.input.manifest.signature
        onnx_files.to_onnx(
            program,
            path,
            opset=config.opset,
            input_names=[t.name for t in signature.inputs],
            output_names=[t.name for t in signature.outputs],
        )
        reference, quantised = parity.program_answers(program, inputs), is_quantised(program)
    else:
        given = ctx.input.files[Role.ONNX]
        _rewrite(given, path, config.opset)
        reference, quantised = parity.onnx_answers(given, inputs, threads=ctx.threads, optimised=False), None
    onnx_import.require_runnable(path, f"stage {ctx.stage.name}")
    ctx.report(Progress(0.6, "compare"))
    found = _compare(ctx, path, inputs, reference, _limits(float(config.tolerance), quantised))
    warnings: tuple[str, ...] = ()
    if config.portability is Portability.HOST_TUNED:
        ctx.report(Progress(0.8, "tune"))
        path = _tuned(path, ctx.workdir / "tuned.onnx")
        limit = {"tuned": _limits(float(config.tolerance), quantised).get("optimised", (False, INTEGER_TOLERANCE))}
        found |= _compare(ctx, path, inputs, reference, limit)
        warnings = (f"The file runs on CPUs of the kind {host_class()} only; others refuse it.",)
    written = onnx_files.read_signature(path)
    return PassOutput(
        program=ctx.input.files.get(Role.PROGRAM),
        onnx=path,
        exported=True,
        details={
            "opset": onnx_import.opset(onnx.load(path)),
            "parity": found,
            "portability": config.portability.value,
            "paritySamples": len(inputs[0]),
            "inputs": [_described(t) for t in written.inputs],
            "outputs": [_described(t) for t in written.outputs],
        },
        warnings=warnings,
    )


def is_quantised(program: "ExportedProgram") -> bool:
    """Whether a program contains quantise and dequantise steps."""
    return any(
        getattr(node.target, "namespace", None) == "quantized_decomposed" for node in program.graph_module.graph.nodes
    )


def _tuned(path: Path, out: Path) -> Path:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(out)
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = onnx.load(out)
    onnx_files.strip(model)
    model.metadata_props.add(key=HOST_KEY, value=host_class())
    onnx_files.write(model, out)
    return out


def _rewrite(given: Path, path: Path, opset: int) -> None:
    model = onnx_import.read(given, str(given))
    if onnx_import.opset(model) < opset:
        model = onnx_import.converted(model, str(given), opset)
    onnx_files.strip(model)
    compact(model)
    onnx_files.write(model, path)


def _limits(tolerance: float, quantised: bool | None) -> dict[str, tuple[bool, float]]:  # noqa: FBT001 - three states
    """For the graph as written and as optimised: whether the largest difference counts (else the typical), its bound.

    Args:
        tolerance: of the stage.
        quantised: None where that is unknown, in a file that was given as ONNX: written and given form must agree
            closely, and the optimised form is the same as before.
    """
    if quantised is None:
        return {"asWritten": (True, tolerance)}
    if quantised:
        return {"asWritten": (False, max(tolerance, QUANTISED_TOLERANCE)), "optimised": (False, INTEGER_TOLERANCE)}
    return {"asWritten": (True, tolerance), "optimised": (True, tolerance)}


def _compare(
    ctx: PassContext,
    path: Path,
    inputs: Sequence[Array],
    reference: parity.Answers,
    limits: dict[str, tuple[bool, float]],
) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for form, (largest, bound) in limits.items():
        answers = parity.onnx_answers(path, inputs, threads=ctx.threads, optimised=form == "optimised")
        worst, typical = parity.difference(reference, answers), parity.typical_difference(reference, answers)
        found |= {f"{form}Largest": worst, f"{form}Typical": typical}
        measured = worst if largest else typical
        if not measured <= bound:
            raise StageError(
                ctx.stage.name if ctx.stage else "export",
                f"the exported file differs from the program by {measured:.2g} of the answers' range "
                f"({'largest' if largest else 'typical'} difference; allowed: {bound:g}). "
                "Raise export.tolerance if that is acceptable, or try another opset",
            )
    return found


def _described(tensor: TensorSpec) -> dict[str, JsonValue]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
