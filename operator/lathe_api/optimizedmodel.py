"""OptimizedModel: a trained model, how to optimise it, what it must prove, and how it is served and kept good."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lathe_api import choices
from lathe_api.base import API_VERSION, ApiModel
from lathe_api.data import GATE_METRICS, Data, DataOrigin, ModelSource, Objective, Task
from lathe_api.datapolicy import DataPolicy
from lathe_api.findings import Finding, duplicates, refuse
from lathe_api.gates import QUALITY_METRICS, Gate, GateMetric
from lathe_api.learning import Learning
from lathe_api.modelrevision import Seed
from lathe_api.monitoring import Monitoring
from lathe_api.objects import ObjectMeta
from lathe_api.recipe import QuantizeMethod, Recipe, Stage
from lathe_api.rollout import Rollout
from lathe_api.search import Search
from lathe_api.stageorder import known_stage_names
from lathe_api.status import OptimizedModelStatus
from lathe_api.store import Jobs, Store
from lathe_api.targets import Target


class OptimizedModelSpec(ApiModel):
    """What is asked for."""

    model: ModelSource
    """The trained model."""
    data: Data
    """What it is trained, calibrated and judged on."""
    objective: Objective
    """What it is for."""
    recipe: Recipe
    """How it is optimised."""
    search: Search | None = None
    """Settings of the recipe to try; by default the recipe is taken as it is."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=32)] = ()
    """What the result must prove before it is published; by default nothing."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=16)]
    """Kinds of machines, and how the model is served on each."""
    rollout: Rollout = Rollout()
    """How a revision takes over from the one that serves."""
    learning: Learning | None = None
    """Learning behind the endpoint; by default the served model never changes."""
    monitoring: Monitoring | None = None
    """How the served model is watched; by default only by its server's metrics."""
    data_policy: DataPolicy = DataPolicy()
    """What the server accepts, gives back and keeps."""
    store: Store = Store()
    """Where artifacts are kept."""
    jobs: Jobs = Jobs()
    """How stages run in a cluster."""
    seed: Seed = 0
    """Of all that is random: same inputs and seed, same result."""
    suspend: bool = False
    """Finish what runs and start nothing else, as in a CronJob; what serves goes on."""
    revision_history_limit: Annotated[int, Field(ge=1, le=100)] = 10
    """Revisions that are kept besides those that serve."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "OptimizedModelSpec":
        findings = duplicates((g.name for g in self.gates), "gates")
        findings += duplicates((t.name for t in self.targets), "targets")
        findings += self._data_for_stages() + self._gates_fit() + self._search_fits() + self._triggers_fit()
        refuse("spec", findings)
        return self

    def _data_for_stages(self) -> list[Finding]:
        """Only of stages that are written here; those of a reference are checked once it is resolved."""
        trains = next((s.name for s in self.recipe.stages if s.trains), None)
        if trains is not None and self.data.train is None:
            remedy = f"write the training set, as stage {trains} trains"
            return [Finding(("data", "train"), "nothing", remedy)]
        static = next((s.name for s in self.recipe.stages if _is_static(s)), None)
        from_train = self.data.calibration.from_ is DataOrigin.TRAIN
        if static is not None and from_train and self.data.train is None:
            remedy = f"write data.calibration.source or data.train, as stage {static} measures activation ranges"
            return [Finding(("data", "calibration"), "from: Train without a training set", remedy)]
        return []

    def _gates_fit(self) -> list[Finding]:
        findings = []
        known = known_stage_names(self.recipe.stages) if self.recipe.stages else None
        for index, gate in enumerate(self.gates):
            findings += self._metric_fits(gate.metric, "gates", index)
            sliced = self.data.slices is not None or self.objective.task is Task.CLASSIFICATION
            if gate.metric is GateMetric.WORST_SLICE_DROP and not sliced:
                remedy = "write data.slices: the values of a regression make no slices by themselves"
                findings.append(Finding(("gates", index, "metric"), gate.metric, remedy))
            for place, stage in enumerate(gate.stages):
                if known is not None and stage not in known:
                    remedy = f"name a stage of the recipe: {', '.join(known)}"
                    findings.append(Finding(("gates", index, "stages", place), stage, remedy))
        return findings

    def _search_fits(self) -> list[Finding]:
        if self.search is None:
            return []
        findings = []
        for index, goal in enumerate(self.search.goals):
            findings += self._metric_fits(goal.metric, "search", "goals", index)
        for index, constraint in enumerate(self.search.constraints):
            findings += self._metric_fits(constraint.metric, "search", "constraints", index)
        stages = self.recipe.stages
        wrong = choices.findings(self.search.choices, stages) if stages else []
        return findings + [Finding(("search", "choices", *f.loc), f.found, f.remedy) for f in wrong]

    def _metric_fits(self, metric: GateMetric, *at: str | int) -> list[Finding]:
        fitting = GATE_METRICS[self.objective.task]
        if metric not in QUALITY_METRICS or metric.value in fitting:
            return []
        remedy = f"write {' or '.join(fitting)}, as objective.task is {self.objective.task}"
        return [Finding((*at, "metric"), metric, remedy)]

    def _triggers_fit(self) -> list[Finding]:
        tests = [t.name for t in self.monitoring.tests] if self.monitoring else []
        findings = []
        for index, trigger in enumerate(self.learning.triggers if self.learning else ()):
            if trigger.drift is None:
                continue
            at = ("learning", "triggers", index, "drift")
            if not tests:
                findings.append(Finding(at, "a trigger without a test", "write monitoring.tests, which tell of drift"))
            findings += [
                Finding((*at, "tests", place), name, f"name a test of monitoring.tests: {', '.join(tests)}")
                for place, name in enumerate(trigger.drift.tests)
                if tests and name not in tests
            ]
        return findings


class OptimizedModel(ApiModel):
    """A trained model and what is to become of it."""

    api_version: Literal["lathe.dev/v1alpha1"] = API_VERSION
    """Group and version."""
    kind: Literal["OptimizedModel"] = "OptimizedModel"
    """Kind of the document."""
    metadata: ObjectMeta
    """Name and namespace."""
    spec: OptimizedModelSpec
    """What is asked for."""
    status: OptimizedModelStatus | None = None
    """What the operator saw; ignored in documents that people write."""


def _is_static(stage: Stage) -> bool:
    return stage.quantize is not None and stage.quantize.method is QuantizeMethod.STATIC
