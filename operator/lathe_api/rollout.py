"""Rollout: how traffic moves from the revision that serves to the one that has passed its gates."""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Final

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Decimal, Duration, Name, Positive, Share, SubdomainName
from lathe_api.findings import Finding, duplicates, exactly_one, refuse


class RolloutStrategy(StrEnum):
    """How a revision takes over."""

    RECREATE = "Recreate"
    """The serving revision stops before the next one starts: answers are missing meanwhile, resources never double."""
    BLUE_GREEN = "BlueGreen"
    """The next revision starts beside the serving one, then takes all traffic at once."""
    CANARY = "Canary"
    """Traffic moves in steps."""
    SHADOW = "Shadow"
    """The next revision answers copies of requests, which nobody sees, before it takes over."""


class RolloutMetric(StrEnum):
    """What a check measures on live traffic. Ratios are next / serving, so that smaller is better."""

    ERROR_RATE = "errorRate"
    """Share of the next revision's requests that fail."""
    LATENCY_P50_RATIO = "latencyP50Ratio"
    LATENCY_P95_RATIO = "latencyP95Ratio"
    LATENCY_P99_RATIO = "latencyP99Ratio"
    AGREEMENT = "agreement"
    """Share of requests that both revisions answer alike."""
    QUALITY_DROP = "qualityDrop"
    """Loss of the objective's metric on requests whose truth is known, in the metric's own unit."""


class RolloutOnFail(StrEnum):
    """What happens when a check is broken."""

    ROLLBACK = "Rollback"
    HOLD = "Hold"


class CheckOnInconclusive(StrEnum):
    """What happens when there was too little traffic to decide before the step's hold is over."""

    WAIT = "Wait"
    ROLLBACK = "Rollback"
    CONTINUE = "Continue"


class Promotion(StrEnum):
    """Who takes the last step."""

    AUTOMATIC = "Automatic"
    MANUAL = "Manual"
    """`lathe promote` or `kubectl lathe promote` does."""


class Routing(StrEnum):
    """Which objects split the traffic."""

    AUTO = "Auto"
    """HTTPRoute where the cluster has the Gateway API, else Service."""
    HTTP_ROUTE = "HttpRoute"
    SERVICE = "Service"


_SHARES: Final = (RolloutMetric.ERROR_RATE, RolloutMetric.AGREEMENT)
TrafficWeight = Annotated[int, Field(ge=1, le=100)]


class RolloutStep(ApiModel):
    """One step of a canary."""

    weight: TrafficWeight
    """Percent of the traffic that the next revision gets."""
    hold: Duration = "5m"
    """How long the checks must hold before the next step."""


class RolloutCheck(ApiModel):
    """One bound on one metric of live traffic, judged all through the rollout."""

    metric: RolloutMetric
    """What is measured; each at most once."""
    min: Decimal | None = None
    """The value must be at least this."""
    max: Decimal | None = None
    """The value must be at most this."""
    confidence: Share = "0.95"
    """Certainty with which the bound must be broken before the rollout fails (one-sided)."""
    min_requests: Annotated[int, Field(ge=1, le=100_000_000)] = 100
    """Fewer requests than this decide nothing."""
    on_inconclusive: CheckOnInconclusive = CheckOnInconclusive.WAIT
    """What happens when the hold is over and there were too few requests."""

    @model_validator(mode="after")
    def _one_bound(self) -> "RolloutCheck":
        bounds = {"min": self.min, "max": self.max}
        given = {name: value for name, value in bounds.items() if value is not None}
        findings = exactly_one((), given, bounds)
        findings += [
            Finding((name,), f'"{value}"', f'write a share from 0 to 1, such as "0.01", for {self.metric}')
            for name, value in given.items()
            if self.metric in _SHARES and not 0 <= float(value) <= 1
        ]
        refuse("check", findings)
        return self


class Shadow(ApiModel):
    """How the next revision is tried on copies of requests."""

    share: TrafficWeight = 100
    """Percent of requests that are copied."""
    hold: Duration = "10m"
    """How long the checks must hold before the next revision takes over."""


class Preflight(ApiModel):
    """The artifact is loaded by the very server that will serve it and answers known inputs, before any traffic."""

    samples: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Evaluation samples that are answered."""
    tolerance: Positive = "0.001"
    """Largest allowed difference from the recorded answers, relative to their range."""
    timeout: Duration = "10m"
    """The preflight fails after this long."""


class GatewayRef(ApiModel):
    """A Gateway that routes are attached to."""

    name: SubdomainName
    """Its metadata.name."""
    namespace: Name | None = None
    """Its namespace; by default the model's."""


class Traffic(ApiModel):
    """How requests reach the model."""

    routing: Routing = Routing.AUTO
    """Which objects split the traffic."""
    gateway: GatewayRef | None = None
    """HttpRoute: the Gateway; by default the one that the operator was installed with."""
    hostname: Annotated[str | None, Field(min_length=1, max_length=253)] = None
    """HttpRoute: host name of the model; by default `<name>.<namespace>` under the operator's domain."""

    @model_validator(mode="after")
    def _gateway_fits_routing(self) -> "Traffic":
        given = [name for name in ("gateway", "hostname") if getattr(self, name) is not None]
        if self.routing is Routing.SERVICE:
            remedy = "remove it, or write routing: HttpRoute"
            refuse(
                "traffic",
                [Finding((name,), "a setting of HttpRoute beside routing: Service", remedy) for name in given],
            )
        return self


class Rollout(ApiModel):
    """How a revision takes over from the one that serves."""

    strategy: RolloutStrategy = RolloutStrategy.BLUE_GREEN
    """How it takes over."""
    steps: Annotated[tuple[RolloutStep, ...], Field(max_length=20)] = ()
    """Canary: the steps, with rising weights; after the last one all traffic moves."""
    shadow: Shadow | None = None
    """Shadow: how requests are copied."""
    checks: Annotated[tuple[RolloutCheck, ...], Field(max_length=16)] = ()
    """What must hold meanwhile."""
    preflight: Preflight = Preflight()
    """What must hold before."""
    promotion: Promotion = Promotion.AUTOMATIC
    """Who takes the last step."""
    on_fail: RolloutOnFail = RolloutOnFail.ROLLBACK
    """What happens when a check is broken."""
    deadline: Duration = "1h"
    """The rollout fails when the next revision makes no progress for this long."""
    traffic: Traffic = Traffic()
    """How requests reach the model."""

    @model_validator(mode="after")
    def _steps_fit_strategy(self) -> "Rollout":
        findings = duplicates((c.metric for c in self.checks), "checks", field="metric")
        if self.strategy is RolloutStrategy.CANARY and not self.steps:
            findings.append(Finding(("steps",), "nothing", "write at least one step, such as {weight: 10, hold: 5m}"))
        if self.strategy is not RolloutStrategy.CANARY and self.steps:
            remedy = "remove them, or write strategy: Canary"
            findings.append(Finding(("steps",), f"steps beside strategy: {self.strategy}", remedy))
        if self.strategy is not RolloutStrategy.SHADOW and self.shadow is not None:
            remedy = "remove it, or write strategy: Shadow"
            findings.append(Finding(("shadow",), f"a block beside strategy: {self.strategy}", remedy))
        for index, (low, high) in enumerate(pairwise(s.weight for s in self.steps), start=1):
            if high <= low:
                remedy = f"write more than {low}: weights rise from step to step"
                findings.append(Finding(("steps", index, "weight"), str(high), remedy))
        refuse("rollout", findings)
        return self
