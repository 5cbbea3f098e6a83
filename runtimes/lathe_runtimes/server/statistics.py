"""Counters of a model in the shape of Triton's statistics."""

from typing import Any

from lathe_runtimes.server.model import Model


def statistics_of(model: Model) -> dict[str, Any]:
    """One entry of `model_stats`; times in nanoseconds, summed over requests or executions."""
    counters = model.engine.counters
    success = counters.success
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counters.last_ms,
        "inference_count": counters.samples,
        "execution_count": counters.executions,
        "inference_stats": {
            "success": {"count": success, "ns": counters.queue_ns + counters.infer_ns},
            "fail": {"count": counters.fail, "ns": 0},
            "queue": {"count": success, "ns": counters.queue_ns},
            "compute_infer": {"count": success, "ns": counters.infer_ns},
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": {"count": count, "ns": spent}}
            for size, (count, spent) in sorted(counters.batches.items())
        ],
    }
