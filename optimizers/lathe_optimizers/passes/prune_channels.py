"""Prune by StructuredMagnitude: cut channels, redo BatchNorm statistics, train what is left."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import JsonValue
from torch import Tensor, fx
from torch.export import ExportedProgram

from lathe_api.recipe import Finetune, Prune
from lathe_optimizers.context import Dataset, PassContext, PassOutput, Progress
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import teacher, training
from lathe_optimizers.passes.batch_norm import recompute_statistics
from lathe_optimizers.passes.masking import Constraint
from lathe_optimizers.passes.programs import (
    dynamic_shapes,
    example_inputs,
    load_program,
    reexport,
    require_program,
    save_program,
    unlift,
)
from lathe_optimizers.passes.pruner import Cost, PruneReport, prune_program
from lathe_optimizers.passes.training_mode import set_training

_PROOF_SAMPLES: Final = 16
_TOP_REASONS: Final = 3
_CUT: Final = 0.1
"""Share of the stage's progress that is done when training starts."""


def run(ctx: PassContext, config: Prune, field: str) -> PassOutput:
    """Prune the program that the stage before left; `field` is the stage's, for messages.

    Raises:
        InputError: the target is not available or cannot be reached, or there is no program.
        CutError: the cut network answers wrongly.
    """
    share, cost = _share(config, f"{field}.prune")
    program = load_program(require_program(ctx.input, field))
    ctx.report(Progress(0.0, "choosing channels"))
    smaller, report = prune_program(
        program,
        share,
        of=cost,
        scope=config.scope,
        round_to=config.round_to,
        max_cut=float(config.max_cut),
        samples=_samples(program, ctx.data.evaluation),
    )
    if not report.reached:
        raise _missed(report, config, f"{field}.prune.{cost}", cost)
    quality = quality_after("before", unlift(program), program, ctx)
    gm = unlift(smaller)
    quality |= quality_after("pruned", gm, smaller, ctx)
    details: dict[str, JsonValue] = {"report": report.details()}
    warnings: list[str] = []
    if ctx.data.train is None:
        warnings.append("there is no data.train, so that nothing of what pruning cost was recovered")
    else:
        ctx.report(Progress(_CUT / 2, "recomputing BatchNorm statistics"))
        layers = recompute_statistics(gm, smaller, ctx.data.train)
        details["batchNormRecomputed"] = layers
        quality |= quality_after("statistics", gm, smaller, ctx) if layers else {}
    if config.finetune is not None and config.finetune.epochs:
        tune(gm, smaller, ctx, config.finetune)
        quality |= quality_after("tuned", gm, smaller, ctx)
    details["quality"] = dict(quality)
    path = ctx.workdir / "program.pt2"
    save_program(reexport(gm, smaller), path)
    return PassOutput(program=path, details=details, warnings=tuple(warnings))


def _share(config: Prune, field: str) -> tuple[float, Cost]:
    if config.macs is not None:
        return float(config.macs), Cost.MACS
    if config.parameters is None:
        raise InputError(f"{field}.latency", "this target is not available", 'Write macs: "0.5" instead.')
    return float(config.parameters), Cost.PARAMETERS


def batch_varies(program: ExportedProgram) -> bool:
    """Whether a program takes batches of any size."""
    return all(0 in dims for dims in dynamic_shapes(program))


def _samples(program: ExportedProgram, data: Dataset) -> tuple[Tensor, ...]:
    """Real inputs for the proof, repeated up to the batch of a program whose batch does not vary."""
    size = min(_PROOF_SAMPLES, len(data)) if batch_varies(program) else len(example_inputs(program)[0])
    return teacher.tensors(data, np.arange(size, dtype=np.int64) % len(data))[0]


def quality_after(step: str, gm: fx.GraphModule, program: ExportedProgram, ctx: PassContext) -> dict[str, float]:
    """The objective's metric after a step, for information; nothing if the batch does not vary.

    It is taken on held-out training samples where there are any. The graph is left in inference mode.
    """
    set_training(gm, on=False)
    data = ctx.data.validation if ctx.data.validation is not None else ctx.data.evaluation
    return {step: training.evaluate(gm, data, ctx.objective)} if batch_varies(program) else {}


def tune(
    gm: fx.GraphModule,
    program: ExportedProgram,
    ctx: PassContext,
    finetune: Finetune,
    constraint: Constraint | None = None,
) -> None:
    """Train what pruning left, as the document says.

    Raises:
        InputError: the program takes one batch size only, or there is no training set.
    """
    if not batch_varies(program):
        raise InputError(
            "spec.model.uri",
            f"a program whose batch is always {len(example_inputs(program)[0])} cannot be fine-tuned",
            'Export it with dynamic_shapes=({0: torch.export.Dim("batch")},), or leave out `finetune`.',
        )
    training.finetune(
        gm,
        ctx,
        epochs=finetune.epochs,
        batch_size=finetune.batch_size,
        learning_rate=float(finetune.learning_rate),
        weight_decay=float(finetune.weight_decay),
        schedule=finetune.schedule,
        teacher_weight=float(finetune.teacher_weight),
        slot="finetune",
        span=training.Span(_CUT, 1.0),
        constraint=constraint,
    )


def _missed(report: PruneReport, config: Prune, field: str, cost: Cost) -> InputError:
    """Says how far pruning got, what is in the way, and what to write."""
    removed = report.removed_share if cost is Cost.PARAMETERS else report.removed_macs
    noun = "parameters" if cost is Cost.PARAMETERS else "multiply-accumulates"
    possible = int(removed * 100) / 100
    found = f"{float(config.parameters or config.macs or 0):.0%} of the {noun} cannot be removed, {removed:.1%} can"
    blocking = _blocking(report)
    if blocking:
        found += f". In the way: {'; '.join(blocking)}"
    if not report.groups:
        return InputError(field, found, "No channel of this model can be removed: leave the stage out.")
    ways = [f'{cost}: "{possible:.2f}" at most'] if possible > 0 else []
    max_cut = float(config.max_cut)
    if max_cut < float(Prune.model_fields["max_cut"].default):
        ways.append(f'a maxCut above "{config.max_cut}"')
    if config.round_to > 1 and any(g.kept - 1 >= g.total * (1 - max_cut) for g in report.groups):
        ways.append(f"a roundTo below {config.round_to}")
    return InputError(field, found, f"Write {', or '.join(ways)}." if ways else "Leave the stage out.")


def _blocking(report: PruneReport) -> Sequence[str]:
    """The reasons that keep most channels, without those that hold for every network."""
    telling = {
        why: count for why, count in report.refused.items() if not why.startswith(("network output", "its input"))
    }
    top = sorted(telling.items(), key=lambda item: (-item[1], item[0]))[:_TOP_REASONS]
    return [f"{why}: {count} channels" for why, count in top]
