"""What the command prints about results: right words, right units, nothing that breaks a terminal of 80 columns."""

import pytest
from support import summaries

from lathe_api.events import TrialStarted
from lathe_api.searchresult import TrialCheck, TrialState, TrialValue
from lathe_api.summary import TargetState, Verdict
from lathe_cli import texts


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (45_024, "45.0 kB"), (1_232_242, "1.2 MB"), (10**16, "10000.0 TB")],
)
def test_sizes_have_the_unit_that_fits(count, shown):
    assert texts.size(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 m 00 s"), (93.2, "1 m 33 s"), (7200, "120 m 00 s")],
)
def test_times_never_show_sixty_seconds(value, shown):
    assert texts.seconds(value) == shown


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({}, "4.00x smaller, 4.00x faster (noise floor ±2.0%)\n  0% of", id="better"),
        pytest.param(
            {"size_ratio": 0.5, "latency": summaries.latency(0.25)}, "2.00x larger, 4.00x slower (noise", id="worse"
        ),
        pytest.param({"latency": None, "int8_coverage": 1.0}, "4.00x smaller\n  100% of", id="latency not measured"),
    ],
)
def test_a_result_is_told_in_the_word_that_fits(changes, told):
    result = summaries.summary(summaries.target(overall=summaries.overall(**changes)))
    assert told in texts.outcome(result)


def test_an_outcome_says_what_was_lost_why_it_stopped_and_where_to_read_on():
    gates = (
        summaries.gate("accuracy", Verdict.FAILED, value=0.05),
        summaries.gate("speed", Verdict.INCONCLUSIVE, value=None),
        summaries.gate("size"),
    )
    warned = summaries.stage(warnings=("zeros do not make it faster",), cached=True)
    target = summaries.target("edge", TargetState.REFUSED, stages=(summaries.original(), warned), gates=gates)
    result = summaries.summary(
        target, summaries.skipped(), verdict=Verdict.FAILED, cache_hits=1, stages_run=1, out="result"
    )
    text = texts.outcome(result)
    for part in (
        "digits: Failed",
        "target edge (X86Vnni): Refused",
        "accuracy 0.9700 -> 0.9600, drop 0.0100 [0.0010, 0.0200]",
        "gate accuracy after slim: Failed (0.05; drop <= 0.02 absolute)",
        "the reason of accuracy",
        "try: the remedy of accuracy",
        "gate speed after slim: Inconclusive (not measured; ",
        "gate size after slim: Passed",
        "warning, slim: zeros do not make it faster",
        "target gpu (Cuda): Skipped",
        "1 stage done, 1 cached, 1 m 01 s",
        "result/report.html",
    ):
        assert part in text
    assert "try: the remedy of size" not in text


def test_long_reasons_are_wrapped_to_the_terminal():
    result = summaries.summary(summaries.target(gates=(summaries.gate(reason="a long reason " * 30),)))
    assert max(len(line) for line in texts.outcome(result).splitlines()) <= 80


def test_names_cannot_command_the_terminal():
    hostile = "\x1b]0;owned\x07\x9b2J"
    result = summaries.summary(summaries.target(hostile, reason=hostile), name=hostile)
    text = texts.outcome(result)
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "\\x1b]0;owned\\x07\\x9b2J" in text


def test_the_example_of_a_client_is_a_program_that_sends_every_input(monkeypatch):
    """The printed program is run, against a client that records what it is asked."""
    sent = []

    class Client:
        def __init__(self, address):
            assert address == "127.0.0.1:8000"

        def infer(self, model, inputs):
            sent.append((model, inputs))
            return self

        def as_numpy(self, name):
            sent.append(name)
            return name

    import tritonclient.http

    monkeypatch.setattr(tritonclient.http, "InferenceServerClient", Client)
    inputs = (
        texts.Tensor("image", "FP32", (1, 3, 8, 8), "float32"),
        texts.Tensor('odd"name\\', "INT64", (1, 1), "int64"),
        texts.Tensor("words", "BYTES", (1, 2), "object"),
    )
    printed = texts.serving("127.0.0.1:8000", "127.0.0.1:8001", [texts.Served("digits", inputs, ("scores", "boxes"))])
    program = printed[printed.index("import numpy") : printed.index("Ctrl-C")]
    exec(compile(program, "printed", "exec"), {})  # noqa: S102 - it is meant to be pasted and run
    (model, tensors), *outputs = sent
    assert model == "digits"
    assert [(t.name(), t.datatype(), tuple(t.shape())) for t in tensors] == [
        (t.name, t.datatype, t.shape) for t in inputs
    ]
    assert outputs == ["scores", "boxes"]


def test_trials_are_told_on_one_line_each():
    values = (TrialValue(stage="slim", field="prune.parameters", value="0.5"),)
    assert (
        texts.trial_started(TrialStarted(number=3, most=20, values=values)) == "trial 3/20: slim.prune.parameters 0.5"
    )
    assert texts.trial(summaries.trial(3)) == (
        "trial 3: passed after 2.0 s: accuracy 0.9000, 4.00x smaller, 2.00x faster"
    )
    stopped = summaries.trial(4, state=TrialState.STOPPED, check=TrialCheck.SAMPLE)
    assert texts.trial(stopped) == "trial 4: stopped at Sample after 2.0 s: the reason of trial 4"


def test_an_outcome_shows_the_front_of_a_search_with_the_taken_trial_marked():
    trials = (summaries.trial(1, best=True), summaries.trial(2, best=True), summaries.trial(3))
    lines = texts.outcome(summaries.summary(search=summaries.search(trials, chosen=2, reason="why"))).splitlines()
    assert "search: 3 trials in 12.0 s, 0 stopped early" in lines
    assert [line[:9] for line in lines if "trial" in line[:8]] == ["  trial 1", " *trial 2"]
