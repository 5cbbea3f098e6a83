"""Monitoring: how a served model notices that the world has changed.

A test must clear two bars: it is significant after correction for the number of tests, and the effect is at least
`effectFloor`. Significance alone means nothing at a million rows.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Duration, FieldName, Name, NonNegative, Positive, Samples, Share, UnitDecimal, Uri
from lathe_api.findings import Finding, duplicates, refuse


class DriftSubject(StrEnum):
    """What is compared with the reference."""

    INPUTS = "Inputs"
    OUTPUTS = "Outputs"
    EMBEDDING = "Embedding"
    ERRORS = "Errors"
    """Needs labels."""


class DriftMethod(StrEnum):
    """How samples are compared."""

    KOLMOGOROV_SMIRNOV = "KolmogorovSmirnov"
    CHI_SQUARED = "ChiSquared"
    POPULATION_STABILITY = "PopulationStability"
    WASSERSTEIN = "Wasserstein"
    JENSEN_SHANNON = "JensenShannon"
    MAXIMUM_MEAN_DISCREPANCY = "MaximumMeanDiscrepancy"
    CLASSIFIER = "Classifier"
    """A classifier that tells reference from live; its effect is its AUC above one half, doubled."""
    ADWIN = "Adwin"
    PAGE_HINKLEY = "PageHinkley"
    CUSUM = "Cusum"


class Correction(StrEnum):
    """How many tests at once are paid for."""

    BENJAMINI_HOCHBERG = "BenjaminiHochberg"
    BONFERRONI = "Bonferroni"
    OFF = "Off"


class Reference(StrEnum):
    """What live data is compared with; frozen by digest when a revision is made."""

    EVALUATION = "Evaluation"
    TRAIN = "Train"


class MonitoringAction(StrEnum):
    """What happens on drift."""

    ALERT = "Alert"
    """A condition, an event and a metric."""
    SHADOW_RETRAIN = "ShadowRetrain"
    """As Alert, and a new revision is made and compared in the shadow."""
    ROLLBACK = "Rollback"
    """As Alert, and the last good revision serves again."""


class SliceOnFail(StrEnum):
    """What happens when a slice gets worse."""

    ALERT = "Alert"
    STOP = "Stop"
    """The revision is not rolled out."""


STREAM_METHODS: Final = frozenset({DriftMethod.ADWIN, DriftMethod.PAGE_HINKLEY, DriftMethod.CUSUM})
"""Methods that follow one number over time instead of comparing two samples."""


class DriftTest(ApiModel):
    """One comparison of live data with the reference."""

    name: Name
    """Unique within the document."""
    subject: DriftSubject
    """What is compared."""
    method: DriftMethod
    """How."""
    fields: Annotated[tuple[FieldName, ...], Field(max_length=256)] = ()
    """Inputs or outputs, by name; by default all. Embedding: the tensor that is compared."""
    effect_floor: NonNegative = "0.1"
    """Smaller effects are no drift, however significant; in the unit of the method's own statistic."""
    significance: Share = "0.05"
    """Error rate of the whole test, after correction."""
    correction: Correction = Correction.BENJAMINI_HOCHBERG
    """How many fields at once are paid for."""
    action: MonitoringAction = MonitoringAction.ALERT
    """What happens on drift."""

    @model_validator(mode="after")
    def _method_fits_subject(self) -> "DriftTest":
        findings = []
        if self.method in STREAM_METHODS and self.subject is DriftSubject.EMBEDDING:
            remedy = "write MaximumMeanDiscrepancy or Classifier for many dimensions at once"
            findings.append(Finding(("method",), f"{self.method} for an embedding", remedy))
        if self.subject is DriftSubject.EMBEDDING and not self.fields:
            findings.append(Finding(("fields",), "nothing", "name the tensor that is compared"))
        refuse("test", findings)
        return self


class Window(ApiModel):
    """Which live requests are compared."""

    samples: Samples = 1000
    """The newest so many."""
    interval: Duration = "10m"
    """Time between two comparisons."""
    min_samples: Samples = 300
    """Fewer than this decide nothing."""

    @model_validator(mode="after")
    def _minimum_fits(self) -> "Window":
        if self.min_samples > self.samples:
            remedy = f"write at most {self.samples}, the size of the window"
            refuse("window", [Finding(("minSamples",), str(self.min_samples), remedy)])
        return self


class Labels(ApiModel):
    """Truth that becomes known after the answer."""

    max_delay: Duration = "168h"
    """A request whose truth is not known after this long is left out."""
    source: Uri | None = None
    """Parquet files with `request` and `truth`, polled; by default truth comes by `/learn` or `/truth` alone."""


class QualityEstimate(ApiModel):
    """Quality without labels: what the model's own calibrated scores say it should reach. Blind to changed meanings."""

    max_drop: UnitDecimal = "0.05"
    """Largest loss of the objective's metric, as a share of its value on the evaluation set."""
    action: MonitoringAction = MonitoringAction.ALERT
    """What happens when more is lost."""


class ErrorSlices(ApiModel):
    """Groups of samples that the model is worst at, found before a rollout and at every interval afterwards."""

    fields: Annotated[tuple[FieldName, ...], Field(max_length=64)] = ()
    """Columns of the evaluation set that describe a sample; by default its class and the model's answer."""
    max_conditions: Annotated[int, Field(ge=1, le=4)] = 2
    """Conditions that describe one slice."""
    size_weight: UnitDecimal = "0.05"
    """How much a slice's size counts beside its error when slices are ranked."""
    top: Annotated[int, Field(ge=1, le=100)] = 10
    """How many slices are shown."""
    min_samples: Samples = 30
    """Smaller slices are left out."""
    max_drop: Positive = "0.05"
    """Largest loss of a slice against the serving revision, in the metric's own unit."""
    on_fail: SliceOnFail = SliceOnFail.ALERT
    """What happens when a slice loses more."""


class Monitoring(ApiModel):
    """How a served model is watched."""

    reference: Reference = Reference.EVALUATION
    """What live data is compared with."""
    sampling: UnitDecimal = "1"
    """Share of requests that is looked at; sketches are kept, not requests."""
    window: Window = Window()
    """Which requests are compared."""
    tests: Annotated[tuple[DriftTest, ...], Field(max_length=32)] = ()
    """The comparisons; by default none."""
    cooldown: Duration = "1h"
    """The same action does not happen again before this long."""
    labels: Labels | None = None
    """Where truth comes from; by default from `/learn` alone."""
    quality_estimate: QualityEstimate | None = None
    """Quality without labels; by default not estimated."""
    slices: ErrorSlices | None = None
    """Groups of samples that the model is worst at; by default not searched for."""

    @model_validator(mode="after")
    def _tests_differ(self) -> "Monitoring":
        refuse("monitoring", duplicates((t.name for t in self.tests), "tests"))
        return self
