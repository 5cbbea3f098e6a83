"""What a mean hides: one slice that pays for the others, and confidence that is not deserved."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError
from support.records import metrics

from lathe_api.data import Metric
from lathe_api.gates import Gate
from lathe_optimizers import gates, quality

SAMPLES = 3000


def judged(gate, before, after, truth, slices=()):
    def side(answers):
        return gates.Side(metrics(), lambda metric: quality.answered(metric, answers, truth))

    evidence = gates.Evidence(
        side(after), side(before), side(before), (), (True, ""), seed=0, metric=Metric.ACCURACY, slices=tuple(slices)
    )
    return gates.judge(Gate(name="g", **gate), target="cpu", stage="onnx", evidence=evidence)


def answers(truth, wrong):
    """One-hot scores of ten classes, wrong where told."""
    return np.eye(10, dtype=np.float32)[np.where(wrong, (truth + 1) % 10, truth)]


def cohort(lost, small=0):
    """Three sites of 1000 samples, of which the last loses some; and optionally a small one that loses all."""
    truth = np.arange(SAMPLES + small) % 10
    sites = np.repeat(["north", "south", "west", "tiny"], [1000, 1000, 1000, small])
    wrong = np.zeros(len(truth), bool)
    wrong[2000 : 2000 + lost] = True
    wrong[SAMPLES:] = True
    return answers(truth, np.zeros(len(truth), bool)), answers(truth, wrong), truth, sites


@pytest.mark.parametrize(
    ("lost", "expected"), [(0, "Passed"), (20, "Passed"), (50, "Inconclusive"), (120, "Failed")], ids=str
)
def test_the_worst_slice_is_bounded_though_the_mean_is_fine(lost, expected):
    before, after, truth, sites = cohort(lost)
    mean = judged({"metric": "accuracy", "maxDrop": "0.05"}, before, after, truth)
    worst = judged({"metric": "worstSliceDrop", "maxDrop": "0.05"}, before, after, truth, sites)
    assert mean.verdict == "Passed"
    assert worst.verdict == expected, worst.reason
    assert worst.value == pytest.approx(lost / 1000)
    assert worst.low <= worst.value <= worst.high


def test_slices_that_are_too_small_are_named_and_not_judged():
    before, after, truth, sites = cohort(0, small=20)
    result = judged({"metric": "worstSliceDrop", "maxDrop": "0.05"}, before, after, truth, sites)
    assert result.verdict == "Passed"
    assert "not judged, with fewer than 100 samples: tiny" in result.reason


def test_without_a_slice_that_is_large_enough_nothing_is_known():
    before, after, truth, sites = cohort(0)
    result = judged({"metric": "worstSliceDrop", "maxDrop": "0.05", "minSamples": 2000}, before, after, truth, sites)
    assert (result.verdict, result.value) == ("Inconclusive", None)


def test_many_slices_do_not_fail_a_gate_by_accident():
    """True loss 0.02 everywhere, bound 0.02: of 100 slices some look bad, and none may be called Failed for that."""
    failed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 10, 10_000)
        sites = np.arange(10_000) % 100
        after = answers(truth, rng.random(10_000) < 0.02)
        gate = {"metric": "worstSliceDrop", "maxDrop": "0.02", "minSamples": 50}
        result = judged(gate, answers(truth, np.zeros(10_000, bool)), after, truth, [f"s{i}" for i in sites])
        failed += result.verdict == "Failed"
    assert failed <= 6  # 5 % of 40 are expected at the most; 6 and more happen once in 60 tries at exactly that rate


def calibrated(seed, sharpness=1.0, samples=4000):
    """Logits of ten classes and truth drawn from their own probabilities; then sharpened."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(samples, 10))
    shares = quality.probabilities(logits)
    truth = (shares.cumsum(1) > rng.random((samples, 1))).argmax(1)
    return logits * sharpness, truth


def test_the_calibration_error_is_that_of_the_definition():
    logits, truth = calibrated(0, sharpness=2.0)
    shares = quality.probabilities(logits)
    confidence, right = shares.max(1), shares.argmax(1) == truth
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        members = (confidence > low) & (confidence <= high)
        if members.any():
            expected += members.mean() * abs(right[members].mean() - confidence[members].mean())
    assert quality.answered(Metric.ECE, logits, truth).value == pytest.approx(expected)
    assert quality.answered(Metric.ECE, shares, truth).value == pytest.approx(expected)


def test_a_single_score_is_the_logit_of_class_one():
    scores = np.array([[0.0], [4.0], [-4.0]])
    assert quality.probabilities(scores)[:, 1] == pytest.approx([0.5, 0.98201379, 0.01798621])


@pytest.mark.parametrize(
    ("gate", "sharpness", "expected"),
    [
        ({"max": "0.05"}, 1.0, "Passed"),
        ({"max": "0.05"}, 3.0, "Failed"),
        ({"maxDrop": "0.02"}, 1.0, "Passed"),
        ({"maxDrop": "0.02"}, 3.0, "Failed"),
    ],
    ids=["calibrated", "overconfident", "as before", "worse than before"],
)
def test_a_gate_on_the_calibration_error(gate, sharpness, expected):
    before, truth = calibrated(1)
    result = judged({"metric": "ece", **gate}, before, before * sharpness, truth)
    assert result.verdict == expected, result.reason
    assert result.low <= result.value <= result.high


@pytest.mark.parametrize(
    "gate", [{"min": "0.1"}, {"max": "0.1"}, {"maxDrop": "0.1", "metric": "sizeRatio"}], ids=["min", "max", "no drop"]
)
def test_bounds_that_make_no_sense_are_refused(gate):
    with pytest.raises(ValidationError, match="maxDrop"):
        Gate.model_validate({"name": "g", "metric": "worstSliceDrop", **gate})
