"""What to try when a gate does not pass. Pure."""

import itertools
from typing import TYPE_CHECKING, Final

from lathe_api.gates import DROP_METRICS, Gate, GateMetric
from lathe_api.summary import Verdict

if TYPE_CHECKING:
    from lathe_optimizers.gates import StageQuality

QUIETER: Final = "Run on a quieter machine of the target's kind, or move the bound away from the measured value"
MORE_SAMPLES: Final = "Give more evaluation samples, or accept less `confidence` or more loss in the gate"
_BY_STAGE: Final = {
    "Distill": "a larger student (`distill.student.width`) or more `distill.epochs`",
    "Prune": "a smaller share (`prune.parameters`) or more `prune.finetune.epochs`",
    "Quantize": "method QuantizationAware, more `quantize.epochs`, or `quantize.exclude` for the layers that lose most",
    "Export": "a tighter look at the stage before: export itself changes nothing",
}
_BY_METRIC: Final = {
    GateMetric.SIZE_RATIO: "Add or strengthen a Prune or Quantize stage, or lower the bound",
    GateMetric.PARAMETER_RATIO: "Raise the share of `prune.parameters` or lower `distill.student.width`",
    GateMetric.LATENCY_RATIO: (
        "Remove structure rather than precision (Prune, a narrower student): int8 alone does not speed up small or "
        "depthwise networks; or lower the bound"
    ),
    GateMetric.ECE: "Distil with hard labels mixed in (`losses`), or divide the scores by a temperature",
    GateMetric.WORST_SLICE_DROP: "Give more training and calibration samples of the slice that lost the most",
    GateMetric.INT8_COVERAGE: "Look in the Quantize stage's details for the operators that stayed in floating point",
}


def remedy(gate: Gate, verdict: Verdict, path: "tuple[StageQuality, ...]") -> str:
    """One or two sentences for the user."""
    if verdict is Verdict.INCONCLUSIVE:
        return MORE_SAMPLES if gate.metric in DROP_METRICS else QUIETER
    if gate.metric in _BY_METRIC:
        return _BY_METRIC[gate.metric]
    larger = gate.metric in {GateMetric.ACCURACY, GateMetric.MACRO_F1, GateMetric.R2}
    losses = [
        ((before.value - after.value) * (1 if larger else -1), after) for before, after in itertools.pairwise(path)
    ]
    if not losses:
        return "Give a better model, or move the bound"
    loss, worst = max(losses, key=lambda pair: pair[0])
    if loss <= 0:
        return "No stage lost anything: give a better model, or move the bound"
    return f"Stage {worst.name} lost the most ({loss:.4f}): try {_BY_STAGE.get(worst.type, 'less of it')}"
