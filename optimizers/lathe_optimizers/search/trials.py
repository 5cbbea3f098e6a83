"""Does one trial: the stages of a combination, as far as its checks let it come."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lathe_api.data import Metric
from lathe_api.events import Event, StageProgress, TrialProgress
from lathe_api.gates import Gate, GateMetric
from lathe_api.manifest import Role
from lathe_api.search import Direction, Search
from lathe_api.searchresult import Trial, TrialCheck, TrialMeasures, TrialState, TrialValue
from lathe_api.targets import Target
from lathe_optimizers import gates, judging, plan, quality
from lathe_optimizers.context import Array
from lathe_optimizers.errors import LatheError, StoreError
from lathe_optimizers.outcome import Progress
from lathe_optimizers.search import picking
from lathe_optimizers.search.space import Candidate
from lathe_optimizers.stages import Attempt, Done, Inputs, Stages
from lathe_optimizers.store import Store
from lathe_optimizers.wire import Stopped


@dataclass(frozen=True)
class Ground:
    """What all trials of a search stand on."""

    search: Search
    targets: tuple[Target, ...]
    """That this machine can build."""
    store: Store
    inputs: Callable[[Candidate], Inputs]
    before_work: Callable[[], None]
    truth: Callable[[], Array]
    slices: Callable[[Sequence[Gate]], tuple[str, ...]]
    observe: Callable[[Event], None]


def values_of(search: Search, values: tuple[str, ...]) -> tuple[TrialValue, ...]:
    """The values of a combination beside what they are values of."""
    return tuple(TrialValue(stage=c.stage, field=c.field, value=v) for c, v in zip(search.choices, values, strict=True))


def do_trial(ground: Ground, candidate: Candidate, number: int) -> Trial:
    """Try one combination.

    Raises:
        StoreError: the store cannot be used; every other failure of a stage is a result of the trial.
    """
    return _Attempted(ground, candidate, number).run()


class _Attempted:
    def __init__(self, ground: Ground, candidate: Candidate, number: int) -> None:
        self.ground = ground
        self.candidate = candidate
        self.number = number
        self.spent: dict[TrialCheck, float] = {}
        self.progress = {t.name: Progress(t) for t in ground.targets}
        self.ended: set[str] = set()
        self.seed = 0
        self.started = time.monotonic()

    def run(self) -> Trial:
        # What is wrong with data, model or store is wrong with every trial, and no result of this one.
        self.ground.before_work()
        inputs = self.ground.inputs(self.candidate)
        self.seed = inputs.seed
        stages = Stages(inputs, self.ground.store, lambda: None, self._tell)
        first, *others = plan.nodes(plan.stage_list(self.candidate.document), self.ground.targets)
        self._add(first, stages.do(first))
        self.started = time.monotonic()
        stopped: Stopped | None
        try:
            stopped = self._stages(stages, others)
        except StoreError:
            raise
        except LatheError as error:
            stopped = Stopped(check=TrialCheck.STAGES, reason=str(error))
        complete = self.ended == set(self.progress)
        goals = self._goals() if complete else ()
        if stopped is None and not all(map(math.isfinite, goals)):
            stopped = Stopped(check=TrialCheck.QUALITY, reason="a goal has no finite value")
        told = TrialState.PASSED if stopped is None else TrialState.STOPPED
        measures = tuple(self._measures(p) for p in self.progress.values()) if complete else ()
        return Trial(
            number=self.number,
            values=values_of(self.ground.search, self.candidate.values),
            state=told,
            check=None if stopped is None else stopped.check,
            reason="no gate stands in its way" if stopped is None else stopped.reason,
            missed_by=None if stopped is None else stopped.missed_by,
            seconds=time.monotonic() - self.started,
            spent=self.spent,
            measures=measures,
            goals=goals if told is TrialState.PASSED else (),
        )

    def _stages(self, stages: Stages, nodes: Sequence[plan.Node]) -> Stopped | None:
        for node in nodes:
            due = judging.due(self.candidate.document.spec.gates, node)
            attempt = stages.attempt(node, due, measured=bool(due) or node.last)
            self._count(attempt)
            if attempt.stopped is not None:
                return attempt.stopped
            if attempt.done is not None:
                self._add(node, attempt.done)
                if stopped := self._judge(node):
                    return stopped
        return None

    def _tell(self, event: Event) -> None:
        if isinstance(event, StageProgress):
            self.ground.observe(TrialProgress(number=self.number, stage=event))

    def _count(self, attempt: Attempt) -> None:
        checks = sum(attempt.spent.values())
        for check, seconds in {TrialCheck.STAGES: attempt.seconds - checks, **attempt.spent}.items():
            self.spent[check] = self.spent.get(check, 0.0) + max(0.0, seconds)

    def _add(self, node: plan.Node, done: Done) -> None:
        for target in node.targets:
            self.progress[target.name].done.append(done)
            if node.last:
                self.ended.add(target.name)

    def _judge(self, node: plan.Node) -> Stopped | None:
        """All gates that speak, on the full record; what the ladder let pass is only the latency, in general."""
        due = judging.due(self.candidate.document.spec.gates, node)
        for target in node.targets if due else ():
            progress = self.progress[target.name]
            answers = {
                d.record.name: self.ground.store.get(d.record.artifact.files[Role.PREDICTIONS]) for d in progress.done
            }
            parts = self.ground.slices(due)
            verdicts = judging.judge_all(due, progress, answers, self.ground.truth(), self.seed, parts)
            for gate, verdict in zip(due, verdicts, strict=True):
                if judging.stops(gate, verdict.verdict):
                    reason = f"gate {gate.name}, target {target.name}: {verdict.reason}"
                    return Stopped(
                        check=_check_of(gate.metric), reason=reason, missed_by=picking.missed_by(gate, verdict)
                    )
        return None

    def _measures(self, progress: Progress) -> TrialMeasures:
        first, last = progress.done[0].record.metrics, progress.done[-1].record.metrics
        return TrialMeasures(
            target=progress.target.name,
            metric=last.metric.value,
            quality=last.quality.value,
            size_ratio=first.size_bytes / last.size_bytes,
            parameter_ratio=first.parameters / max(last.parameters, 1),
            int8_coverage=last.kernels.coverage,
            latency_ratio=last.latency.value if last.latency is not None else None,
            noise_floor=last.latency.noise_floor if last.latency is not None else None,
        )

    def _goals(self) -> tuple[float, ...]:
        found = []
        for goal in self.ground.search.goals:
            values = [self._value(goal.metric, progress) for progress in self.progress.values()]
            found.append(min(values) if picking.direction(goal) is Direction.MAXIMIZE else max(values))
        return tuple(found)

    def _value(self, metric: GateMetric, progress: Progress) -> float:
        measures = self._measures(progress)
        match metric:
            case GateMetric.SIZE_RATIO:
                return measures.size_ratio
            case GateMetric.PARAMETER_RATIO:
                return measures.parameter_ratio
            case GateMetric.INT8_COVERAGE:
                return measures.int8_coverage
            case GateMetric.LATENCY_RATIO:
                return measures.latency_ratio or float("nan")
            case _:
                answers = judging.load_answers(
                    self.ground.store.get(progress.done[-1].record.artifact.files[Role.PREDICTIONS])
                )
                return quality.answered(Metric(metric.value), answers, self.ground.truth()).value


def _check_of(metric: GateMetric) -> TrialCheck:
    if metric is GateMetric.LATENCY_RATIO:
        return TrialCheck.LATENCY
    return TrialCheck.QUALITY if metric.value in gates.QUALITY else TrialCheck.STRUCTURE


__all__ = ["Ground", "do_trial", "values_of"]
