"""Results of runs for tests that care about how a result is shown, not about how it came about."""

from lathe_api.data import Metric, Task
from lathe_api.gates import GateMetric
from lathe_api.manifest import Blob, Estimate, Kernels, LatencyRatio, StageMetrics, StageRecord
from lathe_api.search import Sampler
from lathe_api.searchresult import SearchResult, Trial, TrialMeasures, TrialState
from lathe_api.summary import GateResult, Overall, StageResult, Summary, TargetResult, TargetState, Verdict
from lathe_api.targets import Hardware
from support.records import stage_record


def digest(letter: str = "b") -> str:
    """A digest that is easy to tell from another."""
    return "sha256:" + letter * 64


def latency(value: float = 4.0, **changes) -> LatencyRatio:
    """A ratio from a quiet machine."""
    fields = {
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "noise_floor": 0.02,
        "rounds": 40,
        "threads": 1,
        "batch": 1,
        "baseline_ms": 0.5,
    }
    return LatencyRatio(**fields | changes)


def stage(name: str = "slim", kind: str = "Prune", *, target: str = "cpu", **changes) -> StageResult:
    """A stage of a classifier; `changes` may be of the stage or of its metrics."""
    metrics = {
        "metric": Metric.ACCURACY,
        "task": Task.CLASSIFICATION,
        "quality": Estimate(value=0.96, low=0.94, high=0.98, samples=500),
        "size_bytes": 250_000,
        "parameters": 60_000,
        "kernels": Kernels(int8=0, float32=10),
        "latency": latency(),
    }
    given = {field: changes.pop(field) for field in tuple(changes) if field in StageMetrics.model_fields}
    fields = {
        "name": name,
        "type": kind,
        "key": digest("a"),
        "cached": False,
        "artifact": "sha256:" + name.encode().hex().ljust(64, "0")[:64],
        "metrics": StageMetrics(**metrics | given),
        "seconds": 12.5,
        "peak_memory_bytes": 900_000_000,
        "record": f"stages/{target}/{name}/stage.json",
    }
    return StageResult(**fields | changes)


def original(**changes) -> StageResult:
    """The first stage."""
    fields = {
        "quality": Estimate(value=0.97, low=0.95, high=0.985, samples=500),
        "size_bytes": 1_000_000,
        "latency": None,
    }
    return stage("import", "Import", **fields | changes)


def gate(name: str = "accuracy", verdict: Verdict = Verdict.PASSED, **changes) -> GateResult:
    """A gate on the drop of accuracy after the stage `slim`."""
    fields = {
        "gate": name,
        "target": "cpu",
        "stage": "slim",
        "metric": GateMetric.ACCURACY,
        "verdict": verdict,
        "value": 0.01,
        "low": 0.002,
        "high": 0.018,
        "bound": "drop <= 0.02 absolute",
        "reason": f"the reason of {name}",
        "remedy": None if verdict is Verdict.PASSED else f"the remedy of {name}",
    }
    return GateResult(**fields | changes)


def overall(**changes) -> Overall:
    """A small loss for a fourth of the size."""
    fields = {
        "metric": Metric.ACCURACY.value,
        "original": 0.97,
        "final": 0.96,
        "drop": 0.01,
        "drop_low": 0.001,
        "drop_high": 0.02,
        "size_ratio": 4.0,
        "parameter_ratio": 4.0,
        "latency": latency(),
        "int8_coverage": 0.0,
    }
    return Overall(**fields | changes)


def target(name: str = "cpu", state: TargetState = TargetState.BUILT, **changes) -> TargetResult:
    """A target that is imported and pruned."""
    fields = {
        "name": name,
        "hardware": Hardware.X86_VNNI,
        "state": state,
        "reason": f"the reason of {name}",
        "stages": (original(target=name), stage(target=name)),
        "gates": (gate(target=name),),
        "overall": overall(),
    }
    return TargetResult(**fields | changes)


def skipped(name: str = "gpu") -> TargetResult:
    """A target that nothing was done for."""
    return TargetResult(
        name=name, hardware=Hardware.CUDA, state=TargetState.SKIPPED, reason="this machine has no such GPU"
    )


def summary(*targets: TargetResult, **changes) -> Summary:
    """The result of a run."""
    fields = {
        "name": "digits",
        "revision": "digits-0123456789",
        "verdict": Verdict.PASSED,
        "seed": 7,
        "store": "/var/lathe/store",
        "out": "/var/lathe/out",
        "cache_hits": 0,
        "stages_run": 2,
        "seconds": 61.0,
        "targets": targets or (target(),),
    }
    return Summary(**fields | changes)


def records(result: Summary, **changes) -> dict[str, StageRecord]:
    """A record for each stage of a result, by its path."""
    blob = Blob(digest=digest(), size=1000)
    return {
        s.record: stage_record(blob, **{"name": s.name, "type": s.type} | changes)
        for t in result.targets
        for s in t.stages
    }


def trial(number: int = 1, **changes) -> Trial:
    """A trial that passed, or was stopped."""
    measures = TrialMeasures(
        target="cpu",
        metric="accuracy",
        quality=0.9,
        size_ratio=4.0,
        parameter_ratio=1.0,
        int8_coverage=1.0,
        latency_ratio=2.0,
        noise_floor=0.01,
    )
    passed = changes.get("state", TrialState.PASSED) is TrialState.PASSED
    fields = {
        "number": number,
        "values": (),
        "state": TrialState.PASSED,
        "reason": f"the reason of trial {number}",
        "seconds": 2.0,
        "goals": (4.0,) if passed else (),
        "measures": (measures,) if passed else (),
    }
    return Trial(**fields | changes)


def search(trials: tuple[Trial, ...], chosen: int | None = None, **changes) -> SearchResult:
    """A search that took a trial."""
    fields = {
        "sampler": Sampler.TPE,
        "combinations": 50,
        "possible": 49,
        "impossible": ("a reason",),
        "goals": ("Maximize sizeRatio",),
        "trials": trials,
        "chosen": chosen,
        "reason": f"trial {chosen} is best",
        "ended": "the budget is used up",
        "seconds": 12.0,
    }
    return SearchResult(**fields | changes)
