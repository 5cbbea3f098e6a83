"""What the operator tells of itself: Prometheus metrics and probes, over HTTP."""

import time
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from lathe_operator.plan.observed import Json, Observed, Plan, dig, find

STALE_SECONDS: Final = 60.0
"""The workers' loop must have turned within this time."""
_MINUTES: Final = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)


@dataclass
class Metrics:
    """Counters of one operator, in a registry of their own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    beat: float = field(default_factory=time.monotonic)
    """When the workers' loop has turned last."""
    watching: bool = False

    def __post_init__(self) -> None:
        r = self.registry
        self.reconcile = Histogram("lathe_reconcile_seconds", "Time of one pass.", ["result"], registry=r)
        self.depth = Gauge("lathe_queue_depth", "Keys that wait, due or not.", registry=r)
        self.leader = Gauge("lathe_leader", "1 where this replica leads.", registry=r)
        self.stages = Histogram(
            "lathe_stage_seconds", "Duration of a finished stage.", ["type"], buckets=_MINUTES, registry=r
        )
        self.verdicts = Counter("lathe_gate_verdicts", "What gates said.", ["metric", "verdict"], registry=r)

    def see(self, plan: Plan, observed: Observed) -> None:
        """Count what became final with this pass: the first one that sees a revision's stages done."""
        name = plan.status.get("observedRevision")
        revision = find(observed.revisions, name) if name else None
        if revision is None or dig(revision, "status", "finishedAt") is None:
            return
        known = {c["type"]: c["status"] for c in dig(revision, "status", "conditions", default=[])}
        if known.get("Optimized") == "True":
            return
        for stage in dig(revision, "status", "stages", default=[]):
            if (seconds := _seconds(stage)) is not None:
                self.stages.labels(type=stage.get("type", "Import")).observe(seconds)
        for gate in dig(revision, "status", "gates", default=[]):
            self.verdicts.labels(metric=gate["metric"], verdict=gate["verdict"]).inc()

    def app(self) -> web.Application:
        """`/metrics`, `/healthz` (the loop turns) and `/readyz` (the watches have begun)."""

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        async def health(_: web.Request) -> web.Response:
            age = time.monotonic() - self.beat
            return web.Response(status=200 if age < STALE_SECONDS else 503, text=f"last turn {age:.1f} s ago\n")

        async def ready(_: web.Request) -> web.Response:
            return web.Response(status=200 if self.watching else 503, text=f"watching: {self.watching}\n")

        app = web.Application()
        app.add_routes([web.get("/metrics", metrics), web.get("/healthz", health), web.get("/readyz", ready)])
        return app


def _seconds(stage: Json) -> float | None:
    begun, ended = stage.get("startedAt"), stage.get("finishedAt")
    if begun is None or ended is None:
        return None
    from datetime import datetime

    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()
