"""What a Job says of its ModelRevision, built from the events of its run. Pure but for the clock it is given."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from lathe_api.conditions import timestamp
from lathe_api.events import (
    Event,
    RunPlanned,
    StageFinished,
    StageProgress,
    StageRef,
    StageStarted,
    StageWaiting,
    TrialFinished,
    TrialStarted,
)
from lathe_api.recipe import StageType
from lathe_api.searchresult import SearchResult, Trial, TrialState, TrialValue
from lathe_api.status import StageState
from lathe_api.summary import GateResult, StageResult, Summary, TargetResult, TargetState
from lathe_optimizers.search.picking import shown_front

Json = dict[str, Any]

DECIMALS: Final = 6
LARGEST: Final = 1e9
LONGEST_TEXT: Final = 1024
LONGEST_STEP: Final = 63
MOST_POINTS: Final = 16
"""Of a Pareto front in a status."""
_TYPES: Final = frozenset(StageType)


class JobStatus:
    """The part of a revision's status that one Job owns: entries of its own stages, and what only it knows.

    Args:
        own: names of the segment's stages.
        job: name of the Job.
        sources: URI of every file that the revision reads, by field path; given to the first segment only, which
            tells their digests and when the work began.
        now: the clock.
    """

    def __init__(
        self, own: Collection[str], job: str, sources: Mapping[str, str] | None, now: Callable[[], datetime]
    ) -> None:
        self._own = frozenset(own)
        self._job = job
        self._sources = sources
        self._now = now
        self._refs: dict[str, StageRef] = {}
        self._stages: dict[str, Json] = {}
        self._rest: Json = {} if sources is None else {"startedAt": timestamp(now())}

    def see(self, event: Event) -> bool:
        """Take an event in; whether it changed what there is to say."""
        match event:
            case RunPlanned():
                return self._planned(event)
            case StageStarted() | StageWaiting():
                return self._begun(event)
            case StageProgress():
                return self._progress(event)
            case StageFinished():
                return self._finished(event.id, event.result)
            case TrialStarted() | TrialFinished():
                return self._searching(event)
            case _:
                return False

    def _searching(self, event: TrialStarted | TrialFinished) -> bool:
        entry: Json = self._rest.setdefault("search", {"trials": 0, "maxTrials": 0, "stopped": 0})
        match event:
            case TrialStarted():
                # Trials of an earlier pod of the Job are done too.
                entry |= {"trials": event.number - 1, "maxTrials": event.most, "trying": _text(_settings(event.values))}
            case TrialFinished():
                entry["trials"] = event.trial.number
                entry["stopped"] += event.trial.state is TrialState.STOPPED
        return True

    def fail(self, message: str) -> None:
        """The run ended without a result: the stages at work have failed."""
        for entry in self._stages.values():
            if entry["state"] == StageState.RUNNING:
                entry |= {"state": StageState.FAILED, "message": _text(message), "finishedAt": timestamp(self._now())}
                entry.pop("etaSeconds", None)

    def finish(self, summary: Summary, repositories: Mapping[str, str], report: str | None) -> None:
        """The whole revision is done.

        Args:
            summary: of the run.
            repositories: URI of the model repository, by target that was built.
            report: URI of the report.
        """
        self._rest |= {
            "gates": [_gate(g) for t in summary.targets for g in t.gates],
            "targets": [_target(t, repositories.get(t.name)) for t in summary.targets],
            "verdict": summary.verdict.value,
            "finishedAt": timestamp(self._now()),
        }
        if report is not None:
            self._rest["report"] = report
        if summary.search is not None:
            most = self._rest.get("search", {}).get("maxTrials", len(summary.search.trials))
            self._rest["search"] = _searched(summary.search, most)

    def value(self) -> Json:
        """The status as applied."""
        stages = [{"name": name, **entry} for node, entry in self._stages.items() for name in _names(self._refs[node])]
        return {**self._rest, "stages": stages} if stages else dict(self._rest)

    def _planned(self, event: RunPlanned) -> bool:
        self._refs = {ref.id: ref for ref in event.stages if ref.name in self._own}
        if self._sources is not None:
            self._rest["inputs"] = [
                {"field": field.removeprefix("spec."), "uri": self._sources[field], "digest": digest}
                for field, digest in event.inputs.items()
            ]
        return True

    def _begun(self, event: StageStarted | StageWaiting) -> bool:
        if isinstance(event, StageStarted):
            return self._set(event.id, state=StageState.RUNNING, percent=0, startedAt=timestamp(self._now()))
        text = "Another Job does this stage; its result will be used"
        return self._set(event.id, state=StageState.RUNNING, message=text, startedAt=timestamp(self._now()))

    def _progress(self, event: StageProgress) -> bool:
        return self._set(
            event.id,
            state=StageState.RUNNING,
            percent=min(100, max(0, int(event.percent))),
            step=event.step[:LONGEST_STEP] or None,
            epoch=event.epoch,
            epochs=event.epochs,
            loss=None if event.loss is None else decimal(event.loss),
            etaSeconds=None if event.eta_seconds is None else round(event.eta_seconds),
            message=None,
        )

    def _finished(self, node: str, result: StageResult) -> bool:
        state = StageState.CACHED if result.cached else StageState.SUCCEEDED
        warnings = _text(" ".join(result.warnings))
        return self._set(
            node,
            state=state,
            percent=100,
            step=None,
            etaSeconds=None,
            key=result.key,
            artifact=result.artifact,
            quality=decimal(result.metrics.quality.value),
            sizeBytes=result.metrics.size_bytes,
            finishedAt=timestamp(self._now()),
            message=warnings or None,
        )

    def _set(self, node: str, **fields: Any) -> bool:
        ref = self._refs.get(node)
        if ref is None:
            return False
        entry = self._stages.setdefault(node, {"job": self._job, **({"type": ref.type} if ref.type in _TYPES else {})})
        before = dict(entry)
        for name, value in fields.items():
            if value is None:
                entry.pop(name, None)
            else:
                entry[name] = value
        return entry != before


def is_final(summary: Summary, *, last: bool) -> bool:
    """Whether nothing is left to do: the recipe's end was reached, or no target goes on."""
    ended = all(t.state in (TargetState.REFUSED, TargetState.SKIPPED) for t in summary.targets)
    return ended or (last and all(t.state is not TargetState.PARTIAL for t in summary.targets))


def decimal(value: float) -> str | None:
    """A number as the API writes it; None for one that it cannot express."""
    if not math.isfinite(value) or abs(round(value, DECIMALS)) >= LARGEST:
        return None
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _names(ref: StageRef) -> tuple[str, ...]:
    """A stage that is done anew for each kind of hardware is told by target; all others serve every target."""
    return tuple(f"{target}.{ref.name}" for target in ref.targets) if "@" in ref.id else (ref.name,)


def _searched(search: SearchResult, most: int) -> Json:
    found: Json = {
        "trials": len(search.trials),
        "maxTrials": max(most, len(search.trials)),
        "stopped": sum(t.state is TrialState.STOPPED for t in search.trials),
        "message": _text(search.reason),
        "best": [_point(search.trials[place]) for place in shown_front(search, MOST_POINTS)],
    }
    if search.chosen is not None:
        found["chosen"] = f"trial-{search.chosen}"
    return found


def _point(trial: Trial) -> Json:
    found: Json = {"name": f"trial-{trial.number}", "values": _text(_settings(trial.values))}
    slowest = min(trial.measures, key=lambda m: m.latency_ratio or 0.0, default=None)
    if slowest is not None:
        found |= _decimals(
            {
                "quality": slowest.quality,
                "sizeRatio": slowest.size_ratio,
                "latencyRatio": slowest.latency_ratio,
            }
        )
    return found


def _settings(values: Iterable[TrialValue]) -> str:
    return ", ".join(f"{v.stage}.{v.field} {v.value}" for v in values)


def _gate(result: GateResult) -> Json:
    numbers = {"value": result.value, "low": result.low, "high": result.high}
    return {
        "name": f"{result.target}.{result.stage}.{result.gate}",
        "metric": result.metric.value,
        "verdict": result.verdict.value,
        "bound": _text(result.bound),
        "reason": _text(result.reason),
        **_decimals(numbers),
    }


def _target(result: TargetResult, repository: str | None) -> Json:
    found: Json = {"name": result.name, "hardware": result.hardware.value, "state": result.state.value}
    found["message"] = _text(result.reason + _remedy(result))
    if result.artifact is not None:
        found["artifact"] = result.artifact
    if repository is not None:
        found["repository"] = repository
    overall = result.overall
    if overall is not None:
        found |= _decimals(
            {
                "sizeRatio": overall.size_ratio,
                "latencyRatio": None if overall.latency is None else overall.latency.value,
                "quality": overall.final,
                "originalQuality": overall.original,
                "qualityDrop": overall.drop,
            }
        )
    return found


def _remedy(result: TargetResult) -> str:
    remedies = [g.remedy for g in result.gates if g.remedy] if result.state is TargetState.REFUSED else []
    return f". Try: {'; '.join(dict.fromkeys(remedies))}" if remedies else ""


def _decimals(numbers: Mapping[str, float | None]) -> Json:
    told = {name: decimal(value) for name, value in numbers.items() if value is not None}
    return {name: text for name, text in told.items() if text is not None}


def _text(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
