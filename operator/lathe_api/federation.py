"""ModelFederation: rounds in which copies of a model are trained where the data is, and only updates come back.

An update is admitted before it is aggregated: finite numbers, the right shapes, a bounded norm and a bounded weight.
Masked sums hide single updates, so that rules which compare them (median, trimmed mean, Krum) exclude masking.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from lathe_api.base import (
    API_VERSION,
    ApiModel,
    CronSchedule,
    Decimal,
    Digest,
    Duration,
    Name,
    NonNegative,
    Positive,
    Quantity,
    Samples,
    Share,
    SubdomainName,
    Text,
    Timestamp,
    Uri,
)
from lathe_api.findings import Finding, duplicates, exactly_one, refuse
from lathe_api.gates import Gate
from lathe_api.objects import Labels, ObjectMeta, ObjectRef, SecretRef
from lathe_api.recipe import Training
from lathe_api.status import CamelWord, Conditions, Count, GateStatus, Generation, Revision
from lathe_api.store import Store
from lathe_api.targets import Pool, Resources

Clients = Annotated[int, Field(ge=1, le=100_000)]


class AggregationMethod(StrEnum):
    """How updates become one."""

    FED_AVG = "FedAvg"
    """Mean, weighted by examples (McMahan et al. 2017, arXiv:1602.05629)."""
    FED_ADAM = "FedAdam"
    FED_YOGI = "FedYogi"
    FED_ADAGRAD = "FedAdagrad"
    MEDIAN = "Median"
    TRIMMED_MEAN = "TrimmedMean"
    KRUM = "Krum"


ROBUST_METHODS: Final = frozenset({AggregationMethod.MEDIAN, AggregationMethod.TRIMMED_MEAN, AggregationMethod.KRUM})
"""Rules that compare single updates."""


class FederationBackend(StrEnum):
    """What carries the rounds."""

    LATHE = "Lathe"
    FLOWER = "Flower"


class MaskingMode(StrEnum):
    """Whether the server can see single updates."""

    OFF = "Off"
    PAIRWISE = "Pairwise"
    """Pairwise masks that cancel in the sum (Bonawitz et al. 2017)."""


class PrivacyMode(StrEnum):
    """Where noise is added."""

    OFF = "Off"
    CENTRAL = "Central"
    """By the server, to the sum."""
    LOCAL = "Local"
    """By every client, to each example's gradient."""


class RoundStart(StrEnum):
    """What starts a round."""

    CONTINUOUS = "Continuous"
    """The end of the one before."""
    SCHEDULE = "Schedule"
    SAMPLES = "Samples"
    """Enough new examples at the clients."""
    MANUAL = "Manual"


class LocalTraining(Training):
    """What a client does with its copy."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over the client's data in each round."""
    proximal: NonNegative = "0"
    """Pull towards the round's start (mu of FedProx, arXiv:1812.06127); 0 is none."""


class Aggregation(ApiModel):
    """How updates become one."""

    method: AggregationMethod = AggregationMethod.FED_AVG
    """The rule."""
    server_rate: Positive = "1"
    """Step size of the server along the aggregated update; 0.01 to 0.1 is usual for FedAdam and FedYogi."""
    trim: Share | None = None
    """TrimmedMean: share of the values that is left out at each end."""
    faulty: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """Krum: clients that may lie."""

    @model_validator(mode="after")
    def _settings_fit(self) -> "Aggregation":
        findings = []
        needs = (
            ("trim", self.trim, AggregationMethod.TRIMMED_MEAN, 'trim: "0.1"'),
            ("faulty", self.faulty, AggregationMethod.KRUM, "faulty: 1"),
        )
        for name, value, method, example in needs:
            if self.method is method and value is None:
                findings.append(Finding((name,), "nothing", f"write {example} for {method}"))
            if self.method is not method and value is not None:
                remedy = f"remove it, or write method: {method}"
                findings.append(Finding((name,), f"a setting of {method} beside method: {self.method}", remedy))
        if self.trim is not None and float(self.trim) >= 0.5:  # noqa: PLR2004
            findings.append(Finding(("trim",), f'"{self.trim}"', 'write less than "0.5", or nothing is left'))
        refuse("aggregation", findings)
        return self


class Admission(ApiModel):
    """Which updates are let in. Updates that are not finite, or of another shape or type, never are."""

    max_norm: Positive = "10"
    """Updates longer than this (Euclidean, over all weights) are shortened to it."""
    reject_norm: Positive = "1000"
    """Updates longer than this are refused."""
    max_examples: Samples = 1_000_000
    """A client's weight is capped at this many examples."""
    min_examples: Samples = 1
    """Clients with fewer examples are left out."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "Admission":
        findings = []
        if float(self.reject_norm) < float(self.max_norm):
            remedy = f'write at least "{self.max_norm}", the value of maxNorm'
            findings.append(Finding(("rejectNorm",), f'"{self.reject_norm}"', remedy))
        if self.max_examples < self.min_examples:
            remedy = f"write at least {self.min_examples}, the value of minExamples"
            findings.append(Finding(("maxExamples",), str(self.max_examples), remedy))
        refuse("admission", findings)
        return self


class Masking(ApiModel):
    """Secure aggregation: the server learns the sum alone."""

    mode: MaskingMode = MaskingMode.OFF
    """Whether updates are masked."""
    threshold: Annotated[int | None, Field(ge=2, le=100_000)] = None
    """Clients that must stay to the end so that the sum can be unmasked; by default two thirds of those that began."""


class Privacy(ApiModel):
    """Differential privacy, accounted for over all rounds."""

    mode: PrivacyMode = PrivacyMode.OFF
    """Where noise is added."""
    clip_norm: Positive = "1"
    """Euclidean bound of one client's update (Central) or one example's gradient (Local)."""
    noise_multiplier: Positive = "1"
    """Standard deviation of the noise, in units of `clipNorm`."""
    delta: Positive = "0.00001"
    """Probability that the guarantee fails."""
    max_epsilon: Positive = "8"
    """No further round starts once the accountant has reached this."""


class RoundTrigger(ApiModel):
    """What starts a round: `type` says which of the fields below is filled."""

    type: RoundStart = RoundStart.CONTINUOUS
    """What starts it."""
    schedule: CronSchedule | None = None
    """Schedule: when, in UTC."""
    samples: Samples | None = None
    """Samples: new examples at all clients together."""

    @model_validator(mode="after")
    def _one_field(self) -> "RoundTrigger":
        fields = {RoundStart.SCHEDULE: ("schedule", self.schedule), RoundStart.SAMPLES: ("samples", self.samples)}
        given = [name for name, value in fields.values() if value is not None]
        own = [fields[self.type][0]] if self.type in fields else []
        if own:
            refuse("trigger", exactly_one((), given, own))
        found = f"a setting of another type beside type: {self.type}"
        refuse(
            "trigger",
            [Finding((name,), found, f"remove it, or write type: {name.title()}") for name in given if not own],
        )
        return self


class ClientGroup(ApiModel):
    """Clients that the operator starts in the cluster, one on each chosen node. Others enrol from outside by token."""

    name: Name
    """Unique within the federation."""
    pool: Pool = Pool()
    """The nodes where data is."""
    path: Annotated[str, Field(min_length=1, max_length=1024)]
    """Folder of the node that holds the data; mounted read-only, seen by nothing else."""
    resources: Resources = Resources()
    """What each client may use."""


class FederationTransport(ApiModel):
    """How clients reach the server. They only ever call out."""

    hostname: Annotated[str | None, Field(min_length=1, max_length=253)] = None
    """Name that clients outside the cluster use; by default the server is reachable inside alone."""
    certificate: SecretRef | None = None
    """Secret with `tls.crt`, `tls.key` and `ca.crt`; by default the operator's own authority issues it."""
    enrolment: SecretRef | None = None
    """Secret with the tokens that clients enrol with; by default the operator makes one."""
    max_update_size: Quantity = "256Mi"
    """Longer updates are refused, before they are read."""


class ModelFederationSpec(ApiModel):
    """What is asked for."""

    model_ref: ObjectRef
    """The OptimizedModel of the same namespace that is improved."""
    backend: FederationBackend = FederationBackend.LATHE
    """What carries the rounds."""
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    """How many rounds there are."""
    min_clients: Clients = 2
    """A round starts with at least so many."""
    quorum: Clients | None = None
    """A round counts with at least so many updates; by default `minClients`."""
    client_share: Annotated[int, Field(ge=1, le=100)] = 100
    """Percent of the ready clients that take part in a round, chosen by seed."""
    deadline: Duration = "10m"
    """Updates that come later are left out of the round."""
    start: RoundTrigger = RoundTrigger()
    """What starts a round."""
    training: LocalTraining = LocalTraining()
    """What a client does with its copy."""
    aggregation: Aggregation = Aggregation()
    """How updates become one."""
    admission: Admission = Admission()
    """Which updates are let in."""
    masking: Masking = Masking()
    """Whether the server can see single updates."""
    privacy: Privacy = Privacy()
    """Differential privacy."""
    groups: Annotated[tuple[ClientGroup, ...], Field(max_length=64)] = ()
    """Clients that the operator starts in the cluster."""
    node_labels: Labels = {}
    """Labels that clients from outside must carry to be let in; by default all are that enrol."""
    transport: FederationTransport = FederationTransport()
    """How clients reach the server."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=32)] = ()
    """What the improved model must prove besides the gates of the OptimizedModel."""
    publish_every: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Rounds between two revisions of the OptimizedModel; the last round always makes one."""
    store: Store = Store()
    """Where rounds and models are kept."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of all that is random on the server."""
    suspend: bool = False
    """Finish the round that runs and start no other, as in a CronJob."""
    round_history_limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """Rounds that are kept in `status`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelFederationSpec":
        findings = duplicates((g.name for g in self.groups), "groups") + duplicates(
            (g.name for g in self.gates), "gates"
        )
        if self.quorum is not None and self.quorum > self.min_clients:
            remedy = f"write at most {self.min_clients}, the value of minClients"
            findings.append(Finding(("quorum",), str(self.quorum), remedy))
        masked = self.masking.mode is not MaskingMode.OFF
        if masked and self.aggregation.method in ROBUST_METHODS:
            remedy = "write FedAvg, FedAdam, FedYogi or FedAdagrad: masked updates cannot be compared with each other"
            findings.append(Finding(("aggregation", "method"), f"{self.aggregation.method} with masking", remedy))
        if self.aggregation.faulty is not None and self.min_clients < self.aggregation.faulty + 3:
            remedy = f"write at least {self.aggregation.faulty + 3}: Krum needs three more clients than may lie"
            findings.append(Finding(("minClients",), str(self.min_clients), remedy))
        refuse("spec", findings)
        return self


class RoundState(StrEnum):
    """Where a round is."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    NO_QUORUM = "NoQuorum"
    REFUSED = "Refused"
    """A gate was not passed: the model of the round before goes on."""


class Rejection(ApiModel):
    """Updates that were not let in."""

    reason: CamelWord
    """Why, in one word."""
    count: Count
    """How many."""
    clients: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = ()
    """The first of them."""


class RoundStatus(ApiModel):
    """One round."""

    number: Count
    """From 1."""
    state: RoundState
    """Where it is."""
    clients: Count = 0
    """That began."""
    updates: Count = 0
    """That were aggregated."""
    examples: Count = 0
    """That these updates were trained on, after capping."""
    rejections: Annotated[tuple[Rejection, ...], Field(max_length=16)] = ()
    """That were not let in."""
    quality: Decimal | None = None
    """Value of the objective's metric on the evaluation set after the round."""
    model: Digest | None = None
    """sha256 of the aggregated model."""
    seconds: Decimal | None = None
    """Wall time."""
    bytes_up: Count = 0
    """Bytes that clients sent."""
    bytes_down: Count = 0
    """Bytes that clients received."""
    finished_at: Timestamp | None = None
    """When."""


class PrivacyStatus(ApiModel):
    """What has been spent."""

    epsilon: Decimal
    """Spent over all rounds."""
    delta: Decimal
    """Probability that the guarantee fails."""
    accountant: Annotated[str, Field(min_length=1, max_length=63)]
    """How it was counted, such as `rdp`."""


class ModelFederationStatus(ApiModel):
    """What became of a federation."""

    summary: Text = ""
    """One line for people."""
    observed_generation: Generation | None = None
    """Generation of `spec` that all of this is about."""
    conditions: Conditions = ()
    """For machines."""
    round: Count = 0
    """Rounds that are done."""
    ready_clients: Count = 0
    """Clients that could take part."""
    rounds: Annotated[tuple[RoundStatus, ...], Field(max_length=1000)] = ()
    """The newest rounds."""
    best_round: Count | None = None
    """Round with the best model."""
    privacy: PrivacyStatus | None = None
    """What has been spent."""
    gates: Annotated[tuple[GateStatus, ...], Field(max_length=64)] = ()
    """What each gate said of the newest model."""
    published_revision: Revision | None = None
    """Newest revision that the federation made."""
    server: SubdomainName | None = None
    """Service of the federation's server."""
    url: Uri | None = None
    """Where clients call."""


class ModelFederation(ApiModel):
    """Federated rounds over an OptimizedModel."""

    api_version: Literal["lathe.dev/v1alpha1"] = API_VERSION
    """Group and version."""
    kind: Literal["ModelFederation"] = "ModelFederation"
    """Kind of the document."""
    metadata: ObjectMeta
    """Name and namespace."""
    spec: ModelFederationSpec
    """What is asked for."""
    status: ModelFederationStatus | None = None
    """What the operator saw."""
