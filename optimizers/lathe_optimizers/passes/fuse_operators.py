"""Fuse by Operators: several operators become one, and the answers stay the same."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from pydantic import JsonValue

from lathe_api.manifest import Role
from lathe_api.recipe import Fuse, FusedOperator
from lathe_optimizers.context import Artifact, PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError, StageError
from lathe_optimizers.passes import onnx_files, onnx_fusions, onnx_import, parity
from lathe_optimizers.passes.latency import latency_ratio

TOLERANCE: Final = 1e-4
"""Largest allowed difference of an answer, relative to the answers' range: float32 sums in another order."""
LATENCY_SECONDS: Final = 4.0
_HARMLESS: Final = (FusedOperator.BATCH_NORM, FusedOperator.LAYER_NORM, FusedOperator.GELU)
"""What ONNX Runtime fuses itself when it loads a file, so that it costs nothing to do it before."""
_CONDITIONS: Final = {
    FusedOperator.BATCH_NORM: "a BatchNorm is folded into the convolution or linear layer right before it",
    FusedOperator.LAYER_NORM: "a LayerNorm that is one operator already needs no fusion",
    FusedOperator.GELU: "a GELU that is one operator already needs no fusion",
    FusedOperator.SKIP_LAYER_NORM: "an addition is fused into the LayerNorm right after it",
    FusedOperator.BIAS_GELU: "a bias is fused into the exact GELU right after it",
    FusedOperator.ATTENTION: "attention is found where it is written out (two products with a softmax between), "
    "with biases on queries, keys and values, between residual additions and LayerNorms",
}


def run(ctx: PassContext, given: Artifact, config: Fuse, where: str) -> PassOutput:
    """Fuse operators of a program (BatchNorm only: it stays a program) or of an ONNX graph.

    Raises:
        InputError: a declared fusion matches nothing, or ONNX Runtime refuses the result.
        StageError: the result answers otherwise than before.
    """
    ctx.report(Progress(0.0, "fuse"))
    if Role.PROGRAM in given.files and not config.leaves_onnx:
        return _program(ctx, given, config, where)
    return _graph(ctx, given, config, where)


def _program(ctx: PassContext, given: Artifact, config: Fuse, where: str) -> PassOutput:
    # Models that were given as ONNX are handled without torch.
    from lathe_optimizers.passes.folding import fold_batch_norm
    from lathe_optimizers.passes.programs import load_program, reexport, save_program, unlift
    from lathe_optimizers.passes.training_mode import set_training

    program = load_program(given.files[Role.PROGRAM])
    gm = unlift(program)
    set_training(gm, on=False)
    done = {FusedOperator.BATCH_NORM.value: fold_batch_norm(gm)}
    _require_matches(config.operators, done, where)
    path = ctx.workdir / "program.pt2"
    save_program(reexport(gm, program), path)
    ctx.report(Progress(0.5, "compare"))
    probe, batch = parity.probe(ctx.data.evaluation), _batch(given)
    found = parity.difference(
        parity.program_answers(program, probe, batch), parity.program_answers(load_program(path), probe, batch)
    )
    _require_parity(ctx, found)
    left = {} if config.operators else _also_matching(given.files[Role.ONNX], ())
    return PassOutput(
        program=path, details=_described(done, left, found, len(probe[0])), warnings=_warnings(done, left)
    )


def _graph(ctx: PassContext, given: Artifact, config: Fuse, where: str) -> PassOutput:
    source, path = given.files[Role.ONNX], ctx.workdir / "fused.onnx"
    wanted = config.operators or _HARMLESS
    model, done = onnx_fusions.fuse(onnx.load(source), wanted)
    if Role.PROGRAM in given.files and FusedOperator.BATCH_NORM in wanted:
        # The exporter has folded it in the ONNX form already.
        done[FusedOperator.BATCH_NORM.value] += _foldable_of(given.files[Role.PROGRAM])
    _require_matches(config.operators, done, where)
    onnx_files.write(model, path)
    onnx_import.require_runnable(path, where)
    ctx.report(Progress(0.4, "compare"))
    probe, batch = parity.probe(ctx.data.evaluation), _batch(given)
    reference = parity.onnx_answers(source, probe, threads=ctx.threads, optimised=False, batch=batch)
    found = max(
        parity.difference(reference, parity.onnx_answers(path, probe, threads=ctx.threads, optimised=o, batch=batch))
        for o in (False, True)
    )
    _require_parity(ctx, found)
    left = {} if config.operators else _also_matching(path, wanted)
    details, warnings = _described(done, left, found, len(probe[0])), list(_warnings(done, left))
    if config.operators:
        ctx.report(Progress(0.5, "time"))
        details["latency"] = _timed(ctx, given, path, warnings)
    return PassOutput(onnx=path, exported=given.manifest.exported, details=details, warnings=tuple(warnings))


def _foldable_of(program: Path) -> int:
    from lathe_optimizers.passes.folding import fold_batch_norm
    from lathe_optimizers.passes.programs import load_program, unlift
    from lathe_optimizers.passes.training_mode import set_training

    gm = unlift(load_program(program))
    set_training(gm, on=False)
    return fold_batch_norm(gm)


def _batch(given: Artifact) -> int:
    fixed = given.manifest.signature.inputs[0].shape[0]
    return fixed if fixed > 0 else parity.BATCH


def _require_matches(declared: Collection[FusedOperator], done: Mapping[str, int], where: str) -> None:
    """Refuse a document that counts on a fusion which this model gives no place for."""
    for index, kind in enumerate(declared):
        if not done[kind.value]:
            found = ", ".join(f"{name} {count} times" for name, count in done.items() if count) or "nothing"
            raise InputError(
                f"{where}.operators[{index}]",
                f"{kind} matches nothing in this model ({found} was fused): {_CONDITIONS[kind]}",
                "Remove it from the list, or export the model in that form.",
            )


def _require_parity(ctx: PassContext, found: float) -> None:
    if not found <= TOLERANCE:
        raise StageError(
            ctx.stage.name if ctx.stage else "fuse",
            f"the fused model differs from the one before by {found:.2g} of the answers' range (allowed: "
            f"{TOLERANCE:g}). Leave operators out of fuse.operators until it does not",
        )


def _also_matching(source: Path, wanted: Collection[FusedOperator]) -> dict[str, int]:
    """What a document could declare besides: it matches, but does not always pay."""
    others = [kind for kind in onnx_fusions.ORDER if kind not in {*wanted, *_HARMLESS}]
    _, found = onnx_fusions.fuse(onnx.load(source), others)
    return {name: count for name, count in found.items() if count}


def _described(done: Mapping[str, int], left: Mapping[str, int], found: float, samples: int) -> dict[str, JsonValue]:
    return {"fused": dict(done), "notFused": dict(left), "parity": found, "paritySamples": samples}


def _warnings(done: Mapping[str, int], left: Mapping[str, int]) -> tuple[str, ...]:
    told = []
    if not any(done.values()):
        told.append(f"Nothing was fused: no {', '.join(done)} is left to fuse. The stage can be removed.")
    if left:
        others = ", ".join(f"{name} ({count})" for name, count in left.items())
        told.append(
            f"These match too, and were left, as encoders often take longer with them on CPUs: {others}. "
            "Name them in fuse.operators to try: the stage then times both."
        )
    return tuple(told)


def _timed(ctx: PassContext, given: Artifact, path: Path, warnings: list[str]) -> dict[str, JsonValue]:
    """Before / after, in pairs; a result that is slower for certain is told."""
    fixed = given.manifest.signature.inputs[0].shape[0]
    inputs, _ = ctx.data.evaluation.take(np.arange(max(fixed, 1), dtype=np.int64) % len(ctx.data.evaluation))
    feed = dict(zip(ctx.data.evaluation.input_names, inputs, strict=True))
    ratio = latency_ratio(given.files[Role.ONNX], path, feed, threads=1, budget_seconds=LATENCY_SECONDS)
    if ratio.high < 1 - ratio.noise_floor:
        warnings.append(
            f"On this machine the fused model takes {1 / ratio.value:.2f} times as long as before. "
            "For a target of this kind, leave operators out of fuse.operators."
        )
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high, "rounds": ratio.rounds}
