"""Turns what was done and judged into the result that people and machines read. Pure."""

from dataclasses import dataclass, field

from lathe_api.manifest import Role
from lathe_api.searchresult import SearchResult
from lathe_api.summary import (
    GateResult,
    Overall,
    StageResult,
    Summary,
    TargetResult,
    TargetState,
    Verdict,
)
from lathe_api.targets import Target
from lathe_optimizers import runfolder
from lathe_optimizers.stages import Done
from lathe_optimizers.statistics import Interval


@dataclass
class Progress:
    """How far one target is."""

    target: Target
    done: list[Done] = field(default_factory=list)
    results: list[StageResult] = field(default_factory=list)
    gates: list[GateResult] = field(default_factory=list)
    stopped: GateResult | None = None
    """The gate that ended the target's way."""

    def add(self, done: Done, result: StageResult) -> None:
        """A stage is done."""
        self.done.append(done)
        self.results.append(result)

    def judge(self, result: GateResult, *, stops: bool) -> None:
        """A gate has spoken; the first one that stops decides."""
        self.gates.append(result)
        if stops and self.stopped is None:
            self.stopped = result


def stage_result(done: Done, target: str) -> StageResult:
    """A stage as the summary shows it."""
    record = done.record
    return StageResult(
        name=record.name,
        type=record.type,
        key=record.key,
        cached=done.cached,
        artifact=record.artifact.files[Role.ONNX].digest,
        metrics=record.metrics,
        warnings=record.warnings,
        seconds=done.seconds,
        peak_memory_bytes=record.peak_memory_bytes,
        record=runfolder.record_path(target, record.name),
    )


def overall(progress: Progress, drop: Interval) -> Overall:
    """Original against the last stage that was done."""
    original, final = progress.done[0].record.metrics, progress.done[-1].record.metrics
    return Overall(
        metric=original.metric,
        original=original.quality.value,
        final=final.quality.value,
        drop=drop.value,
        drop_low=drop.low,
        drop_high=drop.high,
        size_ratio=original.size_bytes / final.size_bytes,
        parameter_ratio=original.parameters / max(final.parameters, 1),
        latency=final.latency,
        int8_coverage=final.kernels.coverage,
    )


def target_result(progress: Progress, drop: Interval, *, complete: bool) -> TargetResult:
    """What became of a target. `complete` tells whether its recipe was done to the end."""
    stopped = progress.stopped
    last = progress.done[-1].record
    if stopped is not None:
        state = TargetState.REFUSED
        reason = f"gate {stopped.gate} after stage {stopped.stage}: {stopped.verdict}"
    elif not complete:
        state, reason = TargetState.PARTIAL, f"the run was asked to end after stage {last.name}"
    else:
        state, reason = TargetState.BUILT, "every stage is done and no gate stands in the way"
    built = state is TargetState.BUILT
    return TargetResult(
        name=progress.target.name,
        hardware=progress.target.hardware,
        state=state,
        reason=reason,
        stages=tuple(progress.results),
        gates=tuple(progress.gates),
        overall=overall(progress, drop),
        artifact=last.artifact.files[Role.ONNX].digest if built else None,
        model_file=runfolder.model_path(progress.target.name) if built else None,
        serving=progress.target.serving,
    )


def skipped(target: Target, why: str) -> TargetResult:
    """A target that this machine cannot build."""
    return TargetResult(
        name=target.name, hardware=target.hardware, state=TargetState.SKIPPED, reason=why, serving=target.serving
    )


def summary(
    name: str,
    revision: str,
    targets: tuple[TargetResult, ...],
    *,
    seed: int,
    store: str,
    out: str,
    seconds: float,
    search: SearchResult | None = None,
) -> Summary:
    """The result of a run."""
    stages = {s.key: s for t in targets for s in t.stages}
    verdicts = {t_gate.verdict for t in targets for t_gate in _stopping(t)}
    order = (Verdict.FAILED, Verdict.INCONCLUSIVE)
    return Summary(
        name=name,
        revision=revision,
        verdict=next((v for v in order if v in verdicts), Verdict.PASSED),
        seed=seed,
        store=store,
        out=out,
        cache_hits=sum(s.cached for s in stages.values()),
        stages_run=sum(not s.cached for s in stages.values()),
        seconds=seconds,
        targets=targets,
        search=search,
    )


def _stopping(target: TargetResult) -> tuple[GateResult, ...]:
    return target.gates if target.state is TargetState.REFUSED else ()
