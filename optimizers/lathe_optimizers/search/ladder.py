"""The checks of a trial, cheapest first, within the process of its stage: it ends at the first one that fails.

Structure (the file alone) → parity (a few answers) → sample (part of the evaluation set) → quality (all of it) →
latency (paired, the dearest). What the latency says is judged by the parent, as it is of any stage.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from lathe_api.data import Metric
from lathe_api.gates import Gate, GateMetric
from lathe_api.manifest import Estimate, Role, StageMetrics, StageRecord
from lathe_api.searchresult import TrialCheck
from lathe_api.summary import Verdict
from lathe_optimizers import gates, judging, quality
from lathe_optimizers.context import Array, Dataset, PassContext
from lathe_optimizers.datasets.sources import Subset, targets
from lathe_optimizers.errors import InputError, StoreError
from lathe_optimizers.passes import measure
from lathe_optimizers.quality import Answered
from lathe_optimizers.request import TrialChecks
from lathe_optimizers.search.picking import missed_by
from lathe_optimizers.store import Store
from lathe_optimizers.wire import Stopped

PARITY_SAMPLES: Final = 8
SAMPLES: Final = 256
"""Of the evaluation set, spread evenly; skipped where the set has fewer than twice as many."""
SAMPLE_CONFIDENCE: Final = "0.999"
"""A small sample must be this sure before it ends a trial, so that it ends none that the whole set would pass."""
OF_THE_FILE: Final = frozenset({GateMetric.SIZE_RATIO, GateMetric.PARAMETER_RATIO, GateMetric.INT8_COVERAGE})


class Ladder:
    """Climbs the checks once.

    Args:
        checks: the gates that speak, and what they compare with.
        onnx: file of the trial.
        context: of its stage.
        store: holds the records that are compared with.
    """

    def __init__(self, checks: TrialChecks, onnx: Path, context: PassContext, store: Store) -> None:
        self.stopped: Stopped | None = None
        self.spent: dict[TrialCheck, float] = {}
        self._checks = checks
        self._onnx = onnx
        self._context = context
        self._store = store
        self._original = self._record(checks.original)
        self._previous = self._record(checks.previous) if checks.previous is not None else self._original

    def climb(self, *, latency_batch: int, latency_seconds: float) -> measure.Measurement | None:
        """All that is measured of the trial; None where `stopped` says why it ended.

        Args:
            latency_batch: samples per timed run.
            latency_seconds: longest time spent on timing.
        """
        data = self._context.data.evaluation
        with self._timing(TrialCheck.STRUCTURE):
            structure = measure.metrics_of(self._onnx, self._context.objective, _UNKNOWN)
            self._judge(TrialCheck.STRUCTURE, self._of_the_file(), structure, None, np.arange(0))
        if self.stopped is None:
            with self._timing(TrialCheck.PARITY):
                self._parity(data)
        if self.stopped is None and len(data) >= 2 * SAMPLES:
            with self._timing(TrialCheck.SAMPLE):
                rows = np.linspace(0, len(data) - 1, SAMPLES).round().astype(np.int64)
                answers = self._answers(Subset(data, rows))
                self._judge(TrialCheck.SAMPLE, self._of_the_sample(), structure, answers, rows)
        if self.stopped is not None:
            return None
        with self._timing(TrialCheck.QUALITY):
            answers = self._answers(data)
            objective = self._context.objective
            found = quality.estimate(quality.answered(objective.metric, answers, targets(data)), self._context.seed)
            metrics = structure.model_copy(update={"quality": found})
            self._judge(TrialCheck.QUALITY, self._of_the_quality(), metrics, answers, None)
        if self.stopped is not None or self._context.original is None:
            return None
        with self._timing(TrialCheck.LATENCY):
            metrics = measure.with_runs(
                metrics,
                self._onnx,
                answers=answers,
                baseline=self._context.original.files[Role.ONNX],
                data=data,
                latency_batch=latency_batch,
                latency_seconds=latency_seconds,
                seed=self._context.seed,
            )
        return measure.Measurement(metrics, answers)

    def _of_the_file(self) -> tuple[Gate, ...]:
        return tuple(g for g in self._checks.gates if g.metric in OF_THE_FILE)

    def _of_the_quality(self) -> tuple[Gate, ...]:
        return tuple(g for g in self._checks.gates if g.metric.value in gates.QUALITY)

    def _of_the_sample(self) -> tuple[Gate, ...]:
        """Only sure failures count here: the whole set decides the rest."""
        surer = {"confidence": SAMPLE_CONFIDENCE, "min_samples": 1}
        return tuple(g.model_copy(update=surer) for g in self._of_the_quality())

    def _parity(self, data: Dataset) -> None:
        rows = np.arange(min(PARITY_SAMPLES, len(data)), dtype=np.int64)
        expected = self._known_answers(self._original)
        try:
            answers = self._answers(Subset(data, rows))
        except InputError as error:
            self.stopped = Stopped(check=TrialCheck.PARITY, reason=error.found)
            return
        if answers.shape[1:] != expected.shape[1:]:
            reason = f"answers have shape {answers.shape[1:]}, those of the original {expected.shape[1:]}"
            self.stopped = Stopped(check=TrialCheck.PARITY, reason=reason)

    def _judge(
        self,
        check: TrialCheck,
        speaking: Sequence[Gate],
        metrics: StageMetrics,
        answers: Array | None,
        rows: Array | None,
    ) -> None:
        if not speaking:
            return
        truth = targets(self._context.data.evaluation)

        def side(known: StageMetrics, given: Array | None) -> gates.Side:
            def answered(metric: Metric) -> Answered:
                if given is None:
                    raise ValueError(f"{metric} is judged by answers")
                return quality.answered(metric, given, truth if rows is None else truth[rows])

            return gates.Side(known, answered)

        def of(record: StageRecord) -> gates.Side:
            if answers is None:
                return side(record.metrics, None)
            known = self._known_answers(record)
            return side(record.metrics, known if rows is None else known[rows])

        evidence = gates.Evidence(
            result=side(metrics, answers),
            original=of(self._original),
            previous=of(self._previous),
            path=(),
            latency_counts=(False, "it is not measured yet"),
            seed=self._context.seed,
        )
        stage = self._context.stage.name if self._context.stage is not None else "import"
        for gate in speaking:
            result = gates.judge(gate, target=self._checks.target, stage=stage, evidence=evidence)
            only_sure = check is TrialCheck.SAMPLE and result.verdict is not Verdict.FAILED
            if judging.stops(gate, result.verdict) and not only_sure:
                self.stopped = Stopped(
                    check=check, reason=f"gate {gate.name}: {result.reason}", missed_by=missed_by(gate, result)
                )
                return

    def _answers(self, data: Dataset) -> Array:
        return measure.checked(measure.predict(self._onnx, data, threads=self._context.threads))

    def _known_answers(self, record: StageRecord) -> Array:
        return judging.load_answers(self._store.get(record.artifact.files[Role.PREDICTIONS]))

    def _record(self, key: str) -> StageRecord:
        record = self._store.record(key)
        if record is None:
            raise StoreError(f"store {self._store.uri}: the record {key} is missing or damaged. Run again")
        return record

    @contextmanager
    def _timing(self, check: TrialCheck) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.spent[check] = time.monotonic() - started


_UNKNOWN: Final = Estimate(value=math.nan, low=math.nan, high=math.nan, samples=0)
