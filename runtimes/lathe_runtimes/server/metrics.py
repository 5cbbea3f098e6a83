"""Prometheus metrics: Triton's names, so that dashboards and scaling queries carry over, and this server's own."""

from collections.abc import Callable, Iterable
from typing import Final

from lathe_runtimes.server.control import resident_bytes
from lathe_runtimes.server.model import Model

Read = Callable[[Model], float]
_PER_MODEL: Final[tuple[tuple[str, str, str, Read], ...]] = (
    (
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        lambda model: model.engine.counters.success,
    ),
    (
        "nv_inference_count",
        "counter",
        "Number of inferences performed (samples)",
        lambda model: model.engine.counters.samples,
    ),
    (
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed",
        lambda model: model.engine.counters.executions,
    ),
    (
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds",
        lambda model: (model.engine.counters.queue_ns + model.engine.counters.infer_ns) // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds",
        lambda model: model.engine.counters.queue_ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds",
        lambda model: model.engine.counters.infer_ns // 1000,
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda model: model.engine.queued,
    ),
    (
        "lathe_requests_in_flight",
        "gauge",
        "Requests that are queued or run",
        lambda model: model.engine.pending,
    ),
    (
        "lathe_model_memory_bytes",
        "gauge",
        "Memory that loading the model has added; 0 when not measured",
        lambda model: model.footprint,
    ),
)
_REASONS: Final[tuple[tuple[str, Read], ...]] = (
    ("BACKEND", lambda model: model.engine.counters.fail),
    ("CANCELED", lambda model: model.engine.counters.cancelled),
    ("OTHER", lambda _: 0),
    ("REJECTED", lambda _: 0),
)


def metrics_text(models: Iterable[Model]) -> bytes:
    """Metrics in Prometheus' text format."""
    served = tuple(models)
    lines: list[str] = []
    for name, kind, text, read in _PER_MODEL:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{{{_labels(model)}}} {read(model)}" for model in served]
    name = "nv_inference_request_failure"
    lines += [f"# HELP {name} Number of failed inference requests, all batch sizes", f"# TYPE {name} counter"]
    lines += [
        f'{name}{{{_labels(model)},reason="{reason}"}} {read(model)}' for model in served for reason, read in _REASONS
    ]
    lines += ["# HELP lathe_batch_size Samples of an execution", "# TYPE lathe_batch_size histogram"]
    for model in served:
        lines += _batches(model)
    lines += ["# HELP process_resident_memory_bytes Memory of the server", "# TYPE process_resident_memory_bytes gauge"]
    lines.append(f"process_resident_memory_bytes {resident_bytes()}")
    return "\n".join([*lines, ""]).encode()


def _batches(model: Model) -> list[str]:
    sizes = model.engine.counters.batches
    lines = []
    limit, largest = 1, max(sizes, default=1)
    while limit < 2 * largest:
        count = sum(times for size, (times, _) in sizes.items() if size <= limit)
        lines.append(f'lathe_batch_size_bucket{{{_labels(model)},le="{limit}"}} {count}')
        limit *= 2
    total = sum(times for times, _ in sizes.values())
    samples = sum(size * times for size, (times, _) in sizes.items())
    lines.append(f'lathe_batch_size_bucket{{{_labels(model)},le="+Inf"}} {total}')
    lines.append(f"lathe_batch_size_sum{{{_labels(model)}}} {samples}")
    lines.append(f"lathe_batch_size_count{{{_labels(model)}}} {total}")
    return lines


def _labels(model: Model) -> str:
    return f'model="{model.name}",version="{model.version}"'
