"""What the operator tells of itself."""

import asyncio

from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import generate_latest

from lathe_operator.control.metrics import STALE_SECONDS, Metrics
from lathe_operator.plan.observed import Observed, Plan

REVISION = {
    "metadata": {"name": "digits-1"},
    "status": {
        "finishedAt": "2026-01-31T12:10:00Z",
        "stages": [
            {
                "name": "int8",
                "type": "Quantize",
                "startedAt": "2026-01-31T12:00:00Z",
                "finishedAt": "2026-01-31T12:00:30Z",
            }
        ],
        "gates": [{"name": "cpu.onnx.size", "metric": "sizeRatio", "verdict": "Passed"}],
    },
}
PLAN = Plan(status={"observedRevision": "digits-1"})


def told(metrics):
    return generate_latest(metrics.registry).decode()


def test_stages_and_verdicts_are_counted_once_when_they_are_final():
    metrics = Metrics()
    metrics.see(PLAN, Observed(model={}, revisions=(REVISION,)))
    done = {**REVISION["status"], "conditions": [{"type": "Optimized", "status": "True"}]}
    metrics.see(PLAN, Observed(model={}, revisions=({**REVISION, "status": done},)))
    assert 'lathe_stage_seconds_sum{type="Quantize"} 30.0' in told(metrics)
    assert 'lathe_stage_seconds_count{type="Quantize"} 1.0' in told(metrics)
    assert 'lathe_gate_verdicts_total{metric="sizeRatio",verdict="Passed"} 1.0' in told(metrics)


def test_what_runs_is_not_counted():
    metrics = Metrics()
    running = {**REVISION, "status": {**REVISION["status"], "finishedAt": None}}
    metrics.see(PLAN, Observed(model={}, revisions=(running,)))
    assert "lathe_stage_seconds_count" not in told(metrics)


def test_probes_tell_a_loop_that_turns_from_one_that_hangs():
    async def scenario():
        metrics = Metrics()
        async with TestClient(TestServer(metrics.app())) as client:
            found = [(await client.get(path)).status for path in ("/healthz", "/readyz", "/metrics")]
            metrics.beat -= STALE_SECONDS
            metrics.watching = True
            found += [(await client.get(path)).status for path in ("/healthz", "/readyz")]
            return found

    assert asyncio.run(scenario()) == [200, 503, 200, 503, 200]
