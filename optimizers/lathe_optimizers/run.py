"""Takes a document from its inputs to a run folder: plan, do the stages, judge the gates, write the result."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lathe_api.events import Event, GateJudged, Notice, RunPlanned, StageFinished, StageRef
from lathe_api.gates import Gate, GateMetric, OnFail
from lathe_api.manifest import Role, StageRecord
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.recipe import Stage
from lathe_api.searchresult import SearchResult
from lathe_api.summary import Summary, TargetResult
from lathe_api.targets import Target
from lathe_optimizers import hardware, judging, locations, outcome, plan, quality, runfolder, versions
from lathe_optimizers.context import Array, Datasets
from lathe_optimizers.datasets import check_data, open_datasets
from lathe_optimizers.datasets.images import ImageFolder
from lathe_optimizers.datasets.opening import open_source
from lathe_optimizers.datasets.sources import targets
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import registry
from lathe_optimizers.report import render
from lathe_optimizers.search.driver import Found, checked, key_of, run_search
from lathe_optimizers.search.space import Candidate, Census, Space
from lathe_optimizers.search.trials import Ground
from lathe_optimizers.stages import Done, Inputs, Stages
from lathe_optimizers.store import Store

Publish = Callable[[Path, Target, TargetResult, StageRecord], TargetResult]
"""Writes what serves a built target below the given run folder, before that is put in place, and says where."""


@dataclass(frozen=True)
class RunOptions:
    """How a document is run."""

    base: Path
    """Folder that relative paths of the document start from."""
    store: str
    """URI of the store."""
    out: Path
    """Run folder; an earlier run in it is replaced."""
    seed: int | None = None
    """By default the document's."""
    until: str | None = None
    """Last stage to do."""
    targets: tuple[str, ...] = ()
    """Targets to build; by default all that this machine can run."""
    revision: str | None = None
    """Name of the revision; by default made of the document and its files."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage that a run would look up or do."""

    id: str
    name: str
    type: str
    targets: tuple[str, ...]
    key: str | None
    """None where it depends on a stage that is not done yet."""
    cached: bool | None
    """Whether the store has its result; None where the key is not known yet."""


def execute(
    document: OptimizedModel,
    options: RunOptions,
    observe: Callable[[Event], None],
    publish: Publish | None = None,
) -> Summary:
    """Run a document and write its run folder. A gate that does not pass is a result, not an error.

    Raises:
        LatheError: the document or its files cannot be used, a stage failed, or the disk is full. The run folder is
            then as it was before; finished stages stay in the store.
    """
    if document.spec.search is None:
        return _Run(document, options, observe).execute(publish)
    started = time.monotonic()
    found = _Searching(document, options, observe).found()
    run = _Run(found.candidate.document, options, observe)
    run.started, run.search = started, found.result
    return run.execute(publish)


def preview(document: OptimizedModel, options: RunOptions) -> tuple[PlannedStage, ...]:
    """What `execute` would do.

    Raises:
        LatheError: the document or its files cannot be used.
    """
    if document.spec.search is not None:
        document = _Searching(document, options, lambda _: None).first()
    return _Run(document, options, lambda _: None).preview()


def census(document: OptimizedModel, options: RunOptions) -> Census | None:
    """How many combinations a document's search has; None where it searches nothing.

    Raises:
        LatheError: the document or its files cannot be used, or no combination is possible.
    """
    if document.spec.search is None:
        return None
    return checked(_Searching(document, options, lambda _: None).space)


class _Run:
    """One run. Raises on construction what is wrong with the document and its files."""

    def __init__(self, document: OptimizedModel, options: RunOptions, observe: Callable[[Event], None]) -> None:
        self.started = time.monotonic()
        self.document = document
        self.options = options
        self.seed = document.spec.seed if options.seed is None else options.seed
        self.observe = observe
        self.recipe = _available(document)
        self.targets = plan.select(document, options.targets)
        self.skipped = {t.name: why for t in self.targets for can, why in [hardware.can_run(t.hardware)] if not can}
        self.able = tuple(t for t in self.targets if t.name not in self.skipped)
        if not self.able:
            raise InputError(
                "spec.targets",
                "; ".join(f"{name}: {why}" for name, why in self.skipped.items()),
                "Add a target that this machine can run, or run on a machine of that kind",
            )
        runfolder.check_out(options.out)
        self.store = Store(_absolute(options.store))
        self.places = locations.locate(document, self.recipe, options.base, self.store)
        self.nodes = plan.nodes(self.recipe, self.able, until=options.until)
        self.inputs = Inputs(document, self.places, self.seed, versions.lock(), hardware.host_class())
        self.digests = locations.digests(self.places)
        self.revision = options.revision or plan.revision_of(document, self.digests, self.seed)
        self.search: SearchResult | None = None
        self._known_truth: Array | None = None

    def preview(self) -> tuple[PlannedStage, ...]:
        stages = self._stages()
        found = []
        for node in self.nodes:
            key = stages.key(node)
            cached = None if key is None else stages.look_up(node) is not None
            found.append(PlannedStage(node.id, node.name, node.type, _names(node.targets), key, cached))
        return tuple(found)

    def execute(self, publish: Publish | None) -> Summary:
        refs = tuple(StageRef(id=n.id, name=n.name, type=n.type, targets=_names(n.targets)) for n in self.nodes)
        name = self.document.metadata.name
        self.observe(RunPlanned(name=name, revision=self.revision, stages=refs, inputs=self.digests))
        for name, why in self.skipped.items():
            self.observe(Notice(message=f"target {name} is skipped: {why}"))
        with runfolder.prepared(self.options.out) as folder:
            stages = self._stages()
            progress = {t.name: outcome.Progress(t) for t in self.able}
            for node in self.nodes:
                going = [progress[t.name] for t in node.targets if not progress[t.name].stopped]
                if going:
                    self._node(node, stages.do(node), going)
            return self._finish(folder, progress, publish)

    def _node(self, node: plan.Node, done: Done, going: list[outcome.Progress]) -> None:
        self.observe(StageFinished(id=node.id, result=outcome.stage_result(done, going[0].target.name)))
        due = judging.due(self.document.spec.gates, node)
        for progress in going:
            progress.add(done, outcome.stage_result(done, progress.target.name))
            answers = {d.record.name: self._answers(d) for d in progress.done} if due else {}
            truth = self.truth() if due else np.empty(0)
            verdicts = judging.judge_all(due, progress, answers, truth, self.seed, self.slices(due))
            for gate, verdict in zip(due, verdicts, strict=True):
                progress.judge(verdict, stops=judging.stops(gate, verdict.verdict))
                self.observe(GateJudged(result=verdict))

    def check_before_work(self) -> None:
        """Find out what would end every stage: a store that cannot be written, data that cannot be used."""
        self.store.check()
        self.slices(self.document.spec.gates)  # what is wrong with the field is told before the work
        data = self._open()
        for warning in check_data(data, self.document.spec.objective):
            self.observe(Notice(message=warning))
        # A copy, as a view would keep all of the data.
        self._known_truth = targets(data.evaluation).copy()

    def truth(self) -> Array:
        """Targets of the evaluation set."""
        if self._known_truth is None:
            self._known_truth = targets(self._open().evaluation).copy()
        return self._known_truth

    def _answers(self, done: Done) -> Path:
        return self.store.get(done.record.artifact.files[Role.PREDICTIONS])

    def slices(self, due: Sequence[Gate]) -> tuple[str, ...]:
        """Slice of each evaluation sample, its class or what the declared field says; none if no gate asks for it."""
        if all(g.metric is not GateMetric.WORST_SLICE_DROP for g in due):
            return ()
        data = self.document.spec.data
        if data.slices is None:
            return tuple(f"class {c}" for c in self.truth().reshape(-1).tolist())
        # Read as a target is: whatever format the set has.
        source = data.evaluation.model_copy(update={"target": data.slices})
        path = locations.fetch(self.places[locations.EVALUATION], locations.EVALUATION, self.store)
        opened = open_source("spec.data.slices", source, path)
        if isinstance(opened, ImageFolder):
            remedy = "Leave the field out, and every class is a slice"
            raise InputError("spec.data.slices", f"{data.slices}: a folder of images has no fields", remedy)
        found = targets(opened)
        if found.ndim != 1:
            raise InputError(
                "spec.data.slices", f"{data.slices} has shape {found.shape}", "Name a field with one entry per sample"
            )
        return tuple(f"{data.slices} {v}" for v in found.tolist())

    def _finish(self, folder: Path, progress: dict[str, outcome.Progress], publish: Publish | None) -> Summary:
        results, records, confusion = [], {}, {}
        for target in self.targets:
            if target.name in self.skipped:
                results.append(outcome.skipped(target, self.skipped[target.name]))
                continue
            state = progress[target.name]
            result = self._target_result(state)
            for done in state.done:
                runfolder.write_record(folder, target.name, done.record)
                records[runfolder.record_path(target.name, done.record.name)] = done.record
            if result.artifact is not None:
                last = state.done[-1].record
                runfolder.copy_model(folder, target.name, self.store.get(last.artifact.files[Role.ONNX]))
                if publish is not None:
                    result = publish(folder, target, result, last)
            objective = self.document.spec.objective
            first, final = self._answers(state.done[0]), self._answers(state.done[-1])
            confusion[target.name] = judging.confusion_of(objective, first, final, self.truth())
            results.append(result)
        summary = outcome.summary(
            self.document.metadata.name,
            self.revision,
            tuple(results),
            seed=self.seed,
            store=self.store.uri,
            out=str(self.options.out),
            seconds=time.monotonic() - self.started,
            search=self.search,
        )
        text = summary.model_dump_json(by_alias=True, indent=2) + "\n"
        (folder / "report.html").write_text(render(summary, records, confusion=confusion), encoding="utf-8")
        (folder / "summary.json").write_text(text, encoding="utf-8")
        return summary

    def _target_result(self, state: outcome.Progress) -> TargetResult:
        metric = self.document.spec.objective.metric
        first, last = (
            quality.answered(metric, judging.load_answers(self._answers(d)), self.truth())
            for d in (state.done[0], state.done[-1])
        )
        drop = quality.drop(first, last, seed=self.seed)
        return outcome.target_result(state, drop, complete=self.options.until is None)

    def _stages(self) -> Stages:
        return Stages(self.inputs, self.store, self.check_before_work, self.observe)

    def _open(self) -> Datasets:
        """The data sets; not kept, as a stage's process needs the memory that they take."""
        return open_datasets(
            self.document.spec.data,
            lambda field, _: locations.fetch(self.places[field], field, self.store),
            self.seed,
        )


class _Searching:
    """The search of a document. Raises on construction what is wrong with the document and its files."""

    def __init__(self, document: OptimizedModel, options: RunOptions, observe: Callable[[Event], None]) -> None:
        if options.until is not None:
            raise InputError("--until", "a search compares whole recipes", "Leave it out, or leave spec.search out")
        self.document = document
        # The recipe as it is written stands for what all trials share: data, targets, the import.
        self.base = _Run(document, options, observe)
        self.space = Space(document, _available)
        self._checked = False

    def first(self) -> OptimizedModel:
        """The first combination that is possible."""
        checked(self.space)
        return next(c.document for c in self.space if isinstance(c, Candidate))

    def found(self) -> Found:
        """Search.

        Raises:
            LatheError: nothing can be tried, or the store cannot be used.
        """
        base = self.base
        ground = Ground(
            search=self.space.search,
            targets=base.able,
            store=base.store,
            inputs=self._inputs,
            before_work=self._check_once,
            truth=base.truth,
            slices=base.slices,
            observe=base.observe,
        )
        decided: dict[str, object] = {
            "seed": base.seed,
            "versions": dict(base.inputs.versions),
            "host": base.inputs.host,
            "targets": _names(base.able),
        }
        name = self.document.metadata.name
        base.observe(RunPlanned(name=name, revision=base.revision, stages=(), inputs=base.digests))
        key = key_of(self.document, base.digests, decided)
        return run_search(ground, self.space, key, base.seed)

    def _inputs(self, candidate: Candidate) -> Inputs:
        """What decides the results of a combination; all read the same files."""
        return replace(self.base.inputs, document=candidate.document)

    def _check_once(self) -> None:
        if not self._checked:
            self.base.check_before_work()
            self._checked = True


def _available(document: OptimizedModel) -> tuple[Stage, ...]:
    """The stages of a document, if this version can do all of them.

    Raises:
        InputError: it cannot.
    """
    if document.spec.recipe.ref is not None:
        raise InputError(
            "spec.recipe.ref",
            f"the recipe {document.spec.recipe.ref.name!r} is not resolved",
            "Give the file with the recipe too, or write the stages inline",
        )
    if document.spec.data.preprocessing:
        raise InputError(
            "spec.data.preprocessing",
            "preprocessing is not available in this version",
            "Store the samples as the network takes them, and leave the field out",
        )
    stages = plan.stage_list(document)
    for index, stage in enumerate(stages):
        registry.check_available(stage, index)
    for index, gate in enumerate(document.spec.gates):
        if gate.on_fail is not OnFail.STOP:
            raise InputError(
                f"spec.gates[{index}].onFail", f"{gate.on_fail} is not available in this version", "Write Stop"
            )
    return stages


def _absolute(store: str) -> str:
    return locations.absolute(store, Path.cwd())


def _names(targets: tuple[Target, ...]) -> tuple[str, ...]:
    return tuple(t.name for t in targets)


__all__ = ["Census", "PlannedStage", "Publish", "RunOptions", "census", "execute", "preview"]
