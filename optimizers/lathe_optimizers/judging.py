"""Brings the gates of a document together with what the stages left."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lathe_api.data import Metric, Objective, Task
from lathe_api.gates import Baseline, Gate, OnFail, OnInconclusive
from lathe_api.summary import GateResult, Verdict
from lathe_optimizers import gates, hardware, plan, quality
from lathe_optimizers.context import Array
from lathe_optimizers.outcome import Progress
from lathe_optimizers.quality import Answered
from lathe_optimizers.stages import Done


def due(all_gates: Sequence[Gate], node: plan.Node) -> tuple[Gate, ...]:
    """The gates that speak after a stage: where they say so, else after the last, or each for baseline Previous.

    After an early end by `--until` no stage is the last.
    """

    def speaks(gate: Gate) -> bool:
        if gate.stages:
            return node.name in gate.stages
        return node.last or (gate.baseline is Baseline.PREVIOUS and node.parent is not None)

    return tuple(g for g in all_gates if speaks(g))


def stops(gate: Gate, verdict: Verdict) -> bool:
    """Whether a verdict ends the target's way."""
    match verdict:
        case Verdict.PASSED:
            return False
        case Verdict.FAILED:
            return gate.on_fail is OnFail.STOP
        case Verdict.INCONCLUSIVE:
            return gate.on_inconclusive is OnInconclusive.STOP


def judge_all(
    due_gates: Sequence[Gate],
    progress: Progress,
    answers: Mapping[str, Path],
    truth: Array,
    seed: int,
    slices: tuple[str, ...] = (),
) -> tuple[GateResult, ...]:
    """Judge gates on the last stage of a target.

    Args:
        due_gates: the gates that speak now.
        progress: the target, with its stages so far.
        answers: file of each stage's answers, by stage name.
        truth: targets of the evaluation set.
        seed: of resampling.
        slices: slice of each evaluation sample, where a gate asks for it.
    """
    done = progress.done
    evidence = gates.Evidence(
        result=_side(done[-1], answers, truth),
        original=_side(done[0], answers, truth),
        previous=_side(done[-2] if len(done) > 1 else done[0], answers, truth),
        path=tuple(gates.StageQuality(d.record.name, d.record.type, d.record.metrics.quality.value) for d in done),
        latency_counts=hardware.latency_counts(progress.target.hardware),
        seed=seed,
        metric=done[0].record.metrics.metric,
        slices=slices,
    )
    stage = done[-1].record.name
    return tuple(gates.judge(g, target=progress.target.name, stage=stage, evidence=evidence) for g in due_gates)


def _side(done: Done, answers: Mapping[str, Path], truth: Array) -> gates.Side:
    def answered(metric: Metric) -> Answered:
        return quality.answered(metric, load_answers(answers[done.record.name]), truth)

    return gates.Side(done.record.metrics, answered)


@cache
def load_answers(path: Path) -> Array:
    """Answers of an artifact on the evaluation set, shape (samples, ...)."""
    array: Array = np.load(path, allow_pickle=False)
    return array


def confusion_of(objective: Objective, original: Path, result: Path, truth: Array) -> list[list[int]] | None:
    """What the whole run broke, for a classifier; see `quality.confusion_delta`."""
    if objective.task is not Task.CLASSIFICATION:
        return None
    return quality.confusion_delta(load_answers(original), load_answers(result), truth)
