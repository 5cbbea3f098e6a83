"""Verdicts: what passes, what fails, and what nobody can know yet."""

import numpy as np
import pytest
from support.records import metrics

from lathe_api.data import Metric
from lathe_api.gates import Gate
from lathe_api.manifest import Kernels, LatencyRatio
from lathe_optimizers import gates, quality


def sides(samples=719, right=700, lost=0, gained=0):
    """Answers of original and result, ten classes; of the `right` ones the result loses some, of the others gains."""
    truth = np.arange(samples) % 10
    before, after = truth.copy(), truth.copy()
    before[right:] = after[right:] = (truth[right:] + 1) % 10
    after[:lost] = (truth[:lost] + 1) % 10
    after[right : right + gained] = truth[right : right + gained]
    return [np.eye(10, dtype=np.float32)[x] for x in (before, after)], truth


def evidence(*, answers=None, truth=None, result=None, counts=(True, ""), path=()):
    if answers is None:
        answers, truth = sides()

    def side(given, measured):
        return gates.Side(measured, lambda metric: quality.answered(metric, given, truth))

    original = side(answers[0], metrics())
    own = side(answers[1], metrics().model_copy(update=result or {}))
    return gates.Evidence(own, original, original, tuple(path), counts, seed=0)


def verdict(gate, **kwargs):
    result = gates.judge(Gate(name="g", **gate), target="cpu", stage="onnx", evidence=evidence(**kwargs))
    return str(result.verdict), result


def drops(lost, gained=0, samples=719, right=700):
    answers, truth = sides(samples, right, lost, gained)
    return {"answers": answers, "truth": truth}


@pytest.mark.parametrize(
    ("data", "limit", "expected"),
    [
        (drops(0), "0.02", "Passed"),
        (drops(4, 2), "0.02", "Passed"),
        (drops(14), "0.02", "Inconclusive"),
        (drops(40), "0.02", "Failed"),
        (drops(0, samples=120, right=115), "0.001", "Inconclusive"),
        (drops(0, 19), "0", "Passed"),
    ],
    ids=["nothing changed", "a little", "at the bound", "too much", "bound finer than the data", "better"],
)
def test_a_bound_on_a_drop(data, limit, expected):
    found, result = verdict({"metric": "accuracy", "maxDrop": limit}, **data)
    assert found == expected, result.reason
    assert result.low <= result.value <= result.high
    assert str(len(data["truth"])) in result.reason


def test_fewer_samples_than_wanted_never_pass():
    found, result = verdict({"metric": "accuracy", "maxDrop": "0.5", "minSamples": 1000})
    assert found == "Inconclusive"
    assert "719 samples, the gate wants 1000" in result.reason


def test_an_open_question_says_how_many_samples_would_answer_it():
    _, result = verdict({"metric": "accuracy", "maxDrop": "0.02"}, **drops(10))
    assert "samples would decide it" in result.reason
    assert "evaluation samples" in result.remedy


def test_a_failed_drop_names_the_stage_that_lost_most_and_what_to_try():
    path = [gates.StageQuality(n, t, v) for n, t, v in [
        ("import", "Import", 0.97), ("slim", "Prune", 0.95), ("int8", "Quantize", 0.91), ("onnx", "Export", 0.91),
    ]]  # fmt: skip
    _, result = verdict({"metric": "accuracy", "maxDrop": "0.02"}, path=path, **drops(60))
    assert "Stage int8 lost the most (0.0400)" in result.remedy
    assert "QuantizationAware" in result.remedy


@pytest.mark.parametrize(
    ("gate", "result", "expected"),
    [
        ({"metric": "sizeRatio", "min": "3.5"}, {"size_bytes": 250}, "Passed"),
        ({"metric": "sizeRatio", "min": "4.5"}, {"size_bytes": 250}, "Failed"),
        ({"metric": "parameterRatio", "min": "2"}, {"parameters": 100}, "Passed"),
        ({"metric": "int8Coverage", "min": "1"}, {"kernels": Kernels(int8=3, float32=0)}, "Passed"),
        ({"metric": "int8Coverage", "min": "0.9"}, {"kernels": Kernels(int8=1, float32=2)}, "Failed"),
        ({"metric": "accuracy", "min": "0.9"}, {}, "Passed"),
        ({"metric": "accuracy", "min": "0.99"}, {}, "Failed"),
        ({"metric": "accuracy", "min": "0.97"}, {}, "Inconclusive"),
    ],
)
def test_bounds_on_values(gate, result, expected):
    found, ruling = verdict(gate, result=result)
    assert found == expected, ruling.reason
    assert ruling.bound.startswith(gate["metric"])


def latency(value, low, high, noise=0.01):
    ratio = LatencyRatio(
        value=value, low=low, high=high, noise_floor=noise, rounds=20, threads=1, batch=1, baseline_ms=1.0
    )
    return {"latency": ratio}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (latency(2.5, 2.4, 2.6), "Passed"),
        (latency(1.5, 1.4, 1.6), "Failed"),
        (latency(2.05, 1.9, 2.2), "Inconclusive"),
        (latency(2.1, 2.05, 2.15, noise=0.2), "Inconclusive"),
        ({}, "Inconclusive"),
    ],
    ids=["faster", "slower", "interval on both sides", "within the noise", "not measured"],
)
def test_a_bound_on_latency(measured, expected):
    assert verdict({"metric": "latencyRatio", "min": "2"}, result=measured)[0] == expected


def test_a_latency_of_another_machine_decides_nothing():
    found, result = verdict(
        {"metric": "latencyRatio", "min": "2"}, result=latency(9, 8.9, 9.1), counts=(False, "no VNNI here")
    )
    assert found == "Inconclusive"
    assert "no VNNI here" in result.reason


def test_a_latency_against_the_stage_before_is_the_quotient_of_both():
    own, before = (metrics().model_copy(update=latency(*v)) for v in ((2.0, 1.9, 2.1), (4.0, 3.9, 4.1)))
    answers, truth = sides()
    original, previous, result = (
        gates.Side(m, lambda metric: quality.answered(metric, answers[0], truth)) for m in (metrics(), before, own)
    )
    found = gates.judge(
        Gate(name="g", metric="latencyRatio", baseline="Previous", min="0.9"),
        target="cpu",
        stage="int8",
        evidence=gates.Evidence(result, original, previous, (), (True, ""), seed=0),
    )
    assert found.verdict == "Failed"
    assert found.value == pytest.approx(0.5)


def test_unchanged_answers_on_few_samples_prove_nothing_of_macro_f1():
    answers, truth = sides(20, 20)
    found, _ = verdict({"metric": "macroF1", "maxDrop": "0.001", "minSamples": 10}, answers=answers, truth=truth)
    assert found == "Inconclusive"


def regression(noise):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(500)
    return [
        (truth + 0.1 * rng.standard_normal(500))[:, None],
        (truth + noise * rng.standard_normal(500))[:, None],
    ], truth


@pytest.mark.parametrize("metric", ["rmse", "mae", "r2"])
@pytest.mark.parametrize(("noise", "expected"), [(0.1, "Passed"), (0.6, "Failed")])
def test_regression_drops_in_the_right_direction(metric, noise, expected):
    answers, truth = regression(noise)
    found, result = verdict({"metric": metric, "maxDrop": "0.05"}, answers=answers, truth=truth)
    assert found == expected, result.reason


def test_a_relative_drop_is_a_share_of_the_baseline():
    answers, truth = regression(0.2)
    _, absolute = verdict({"metric": "rmse", "maxDrop": "0.5"}, answers=answers, truth=truth)
    _, relative = verdict({"metric": "rmse", "maxDrop": "0.5", "dropType": "Relative"}, answers=answers, truth=truth)
    base = quality.answered(Metric.RMSE, answers[0], truth).value
    assert relative.value == pytest.approx(absolute.value / base)


def test_metrics_agree_with_scikit_learn():
    from sklearn import metrics as sk

    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 4, 200), rng.random((200, 4))
    found = scores.argmax(1)
    assert quality.answered(Metric.ACCURACY, scores, truth).value == pytest.approx(sk.accuracy_score(truth, found))
    expected = sk.f1_score(truth, found, average="macro")
    assert quality.answered(Metric.MACRO_F1, scores, truth).value == pytest.approx(expected)
    x, y = rng.random(50), rng.random(50)
    for metric, expected in (
        (Metric.RMSE, sk.root_mean_squared_error(y, x)),
        (Metric.MAE, sk.mean_absolute_error(y, x)),
        (Metric.R2, sk.r2_score(y, x)),
    ):
        assert quality.answered(metric, x[:, None], y).value == pytest.approx(expected)


def test_the_confusion_delta_counts_what_broke():
    truth = np.array([0, 0, 1, 2])
    before, after = np.eye(3)[[0, 0, 1, 1]], np.eye(3)[[0, 2, 1, 1]]
    assert quality.confusion_delta(before, after, truth) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
