import itertools
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from support import summaries

from lathe_api.data import Metric, Task
from lathe_api.gates import GateMetric
from lathe_api.manifest import Estimate, Kernels
from lathe_api.searchresult import TrialCheck, TrialState, TrialValue
from lathe_api.summary import TargetState, Verdict
from lathe_optimizers.report import render

VOID = {"meta", "br", "col", "hr"}
FETCHING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "xlink:href", "background"}
TIMES = "\N{MULTIPLICATION SIGN}"
HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00"


class Page(HTMLParser):
    """Reads a page; fails on wrong nesting."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.html, self.open, self.elements, self.pieces, self.within = html, [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> with nothing open"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "title"}:
            self.pieces.append(data)
            self.within.append((self.open[-1], data))

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def texts(self, tag):
        return [data for name, data in self.within if name == tag]


def page(result=None, *, confusion=None, **record):
    result = result or summaries.summary()
    return Page(render(result, summaries.records(result, **record), confusion=confusion or {}))


def regression():
    quality = {
        "metric": Metric.RMSE,
        "task": Task.REGRESSION,
        "quality": Estimate(value=2.5, low=2.25, high=2.75, samples=400),
    }
    gate = summaries.gate("error", metric=GateMetric.RMSE, value=0.1, low=-0.1, high=0.25, bound="drop <= 0.5 absolute")
    overall = summaries.overall(metric="rmse", original=2.4, final=2.5, drop=0.1, drop_low=-0.1, drop_high=0.3)
    stages = (summaries.original(**quality), summaries.stage(**quality))
    return summaries.summary(summaries.target(stages=stages, gates=(gate,), overall=overall))


def refused():
    gates = (
        summaries.gate("accuracy", Verdict.FAILED, value=0.05, low=0.03, high=0.07),
        summaries.gate("speed", Verdict.INCONCLUSIVE, metric=GateMetric.LATENCY_RATIO, bound="latencyRatio >= 2"),
        summaries.gate("size", metric=GateMetric.SIZE_RATIO, value=4, low=4, high=4, bound="sizeRatio >= 3.5"),
    )
    target = summaries.target(state=TargetState.REFUSED, gates=gates)
    return summaries.summary(target, verdict=Verdict.FAILED)


def one_stage():
    target = summaries.target(
        state=TargetState.PARTIAL,
        stages=(summaries.original(),),
        gates=(),
        overall=summaries.overall(latency=None, size_ratio=1, parameter_ratio=1, drop=0),
    )
    return summaries.summary(target)


def not_measured():
    gates = (
        summaries.gate("none", Verdict.INCONCLUSIVE, value=None, low=None, high=None),
        summaries.gate("nan", Verdict.INCONCLUSIVE, value=math.nan, low=math.nan, high=math.nan),
        summaries.gate("infinite", value=math.inf, low=math.inf, high=math.inf, bound="sizeRatio >= 2"),
        summaries.gate("open", Verdict.INCONCLUSIVE, value=0.01, low=-math.inf, high=math.inf),
        summaries.gate("wordless", bound="as good as it gets"),
    )
    broken = Estimate(value=math.nan, low=-math.inf, high=math.inf, samples=0)
    wild = summaries.latency(math.inf, low=0.0, high=math.inf, noise_floor=math.inf, baseline_ms=math.nan)
    stages = (
        summaries.original(size_bytes=0, parameters=0, kernels=Kernels(int8=0, float32=0)),
        summaries.stage("nan", quality=broken, latency=wild),
        summaries.stage("slim", latency=None),
    )
    overall = summaries.overall(
        original=math.nan, drop=math.nan, drop_low=-math.inf, drop_high=math.inf, size_ratio=math.inf, latency=wild
    )
    return summaries.summary(summaries.target(stages=stages, gates=gates, overall=overall))


def several_targets():
    return summaries.summary(
        summaries.target("cpu"),
        summaries.target("edge", TargetState.REFUSED, gates=(summaries.gate("size", Verdict.FAILED),)),
        summaries.target("arm", TargetState.PARTIAL, gates=()),
        summaries.skipped("gpu"),
        verdict=Verdict.FAILED,
    )


RESULTS = {
    "a built target": summaries.summary,
    "a regression": regression,
    "a refused target": refused,
    "only the original": one_stage,
    "values that are missing or infinite": not_measured,
    "several targets": several_targets,
    "only a skipped target": lambda: summaries.summary(summaries.skipped()),
}


@pytest.fixture(params=RESULTS.values(), ids=RESULTS.keys())
def any_page(request):
    return page(request.param(), details={"groups": [{"layer": "stem", "kept": 1}], "deep": {"a": {"b": [1, None]}}})


def test_every_element_is_closed_and_every_id_is_unique(any_page):
    ids = [attrs["id"] for _, attrs in any_page.elements if "id" in attrs]
    assert not [name for name, count in Counter(ids).items() if count > 1]
    links = {attrs["href"].removeprefix("#") for attrs in any_page.of("a")}
    labels = {attrs["aria-labelledby"] for _, attrs in any_page.elements if "aria-labelledby" in attrs}
    assert links | labels <= set(ids)


def test_a_page_loads_nothing_and_runs_nothing(any_page):
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & {
        t for t, _ in any_page.elements
    }
    for tag, attrs in any_page.elements:
        assert not any(name.startswith("on") for name in attrs), tag
        assert all((value or "").startswith("#") for name, value in attrs.items() if name in FETCHING), (tag, attrs)
    assert "url(" not in any_page.html
    assert "@import" not in any_page.html
    assert "http:" not in any_page.html
    assert "https:" not in any_page.html


def test_headings_are_in_order_below_one_title(any_page):
    levels = [int(tag[1]) for tag, _ in any_page.elements if tag in {"h1", "h2", "h3", "h4", "h5", "h6"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels


def test_a_page_says_its_language_title_and_width(any_page):
    assert any_page.of("html")[0]["lang"] == "en"
    assert any_page.of("title")
    viewport = next(attrs["content"] for attrs in any_page.of("meta") if attrs.get("name") == "viewport")
    assert "width=device-width" in viewport


def test_pictures_and_tables_are_described(any_page):
    for attrs in any_page.of("svg"):
        assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
    captions = len(any_page.of("caption"))
    assert captions == len([attrs for attrs in any_page.of("table") if attrs.get("class") != "small"])
    assert all(attrs.get("scope") in {"row", "col"} for attrs in any_page.of("th"))


def test_no_number_is_drawn_outside_of_its_picture(any_page):
    for tag, attrs in any_page.elements:
        for name in {"x", "x1", "x2", "cx", "y", "y1", "y2", "cy", "width"} & attrs.keys():
            value = attrs[name]
            if tag in {"rect", "line", "circle", "text"} and value.endswith("%"):
                assert 0 <= float(value[:-1]) <= 100, (tag, attrs)
    assert "nan" not in {value for tag, attrs in any_page.elements if tag != "h2" for value in attrs.values()}


@pytest.mark.parametrize("verdict", Verdict)
def test_verdicts_are_named_with_reason_and_remedy(verdict):
    result = summaries.summary(summaries.target(gates=(summaries.gate("quick", verdict),)), verdict=verdict)
    shown = page(result)
    assert shown.texts("span").count(verdict) >= 2  # overall and at the gate
    assert "The reason of quick" in shown.text
    assert ("the remedy of quick" in shown.text) == (verdict is not Verdict.PASSED)
    assert str(verdict) in shown.html.partition("<title>")[2].partition("</title>")[0]


@pytest.mark.parametrize("state", TargetState)
def test_states_of_targets_are_named_with_their_reason(state):
    shown = page(summaries.summary(summaries.target(state=state)))
    assert str(state) in shown.texts("span")
    assert "The reason of cpu" in shown.text


def test_a_skipped_target_says_why_and_shows_no_empty_parts():
    shown = page(summaries.summary(summaries.skipped("gpu")))
    assert "This machine has no such GPU" in shown.text
    assert "Pipeline" not in shown.texts("h3")


def test_every_target_has_a_section_that_the_overview_leads_to():
    shown = page(several_targets())
    sections = [attrs["aria-labelledby"] for attrs in shown.of("section") if attrs.get("class") == "target"]
    assert len(sections) == 4
    assert [attrs["href"] for attrs in shown.of("a")] == [f"#{name}" for name in sections]


def test_what_documents_and_passes_wrote_stays_text():
    gate = summaries.gate(
        HOSTILE, Verdict.FAILED, stage=HOSTILE, bound=f"drop <= 0.02 {HOSTILE}", reason=HOSTILE, remedy=HOSTILE
    )
    stage = summaries.stage(HOSTILE, HOSTILE, warnings=(HOSTILE,), record=HOSTILE)
    target = summaries.target(
        HOSTILE,
        reason=HOSTILE,
        stages=(summaries.original(), stage),
        gates=(gate,),
        artifact=summaries.digest(),
        model_file=HOSTILE,
        repository=HOSTILE,
    )
    result = summaries.summary(target, summaries.skipped(), name=HOSTILE, revision=HOSTILE, store=HOSTILE, out=HOSTILE)
    nested = {
        HOSTILE: [{HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}],
        "deep": {"a": {"b": {"c": {"d": {"e": {HOSTILE: 1}}}}}},
    }
    shown = page(
        result,
        details=nested,
        config={"prune": {HOSTILE: HOSTILE}},
        versions={HOSTILE: HOSTILE},
        inputs={HOSTILE: summaries.digest()},
        reproduce=("python", HOSTILE),
        confusion={HOSTILE: [[0, 1], [0, 0]]},
    )
    assert not shown.of("script")
    assert "<script" not in shown.html
    assert "\u202e" not in shown.html
    assert "\x00" not in shown.html
    assert shown.text.count("<script>alert(1)</script>") > 20
    allowed = {
        "class",
        "id",
        "aria-label",
        "aria-labelledby",
        "aria-hidden",
        "role",
        "scope",
        "href",
        "tabindex",
        "lang",
    }
    assert {
        name for tag, attrs in shown.elements if tag in {"span", "li", "code", "td", "a"} for name in attrs
    } <= allowed


def test_text_that_utf8_cannot_hold_does_not_stop_a_report():
    shown = page(summaries.summary(summaries.target(reason="half \ud800 a character")))
    assert "Half \ufffd a character" in shown.html.encode().decode()


def test_the_headline_tells_what_was_won_and_lost():
    text = page().text
    assert "96.00%" in text
    assert "from 97.00%, 1.00 points worse" in text
    assert "95% interval of the drop 0.10 to 2.00" in text
    assert f"4.00{TIMES} smaller" in text
    assert f"4.00{TIMES} faster" in text
    assert "noise floor ±2.0%" in text


@pytest.mark.parametrize(
    ("latency", "said", "noisy"),
    [
        pytest.param(None, "not measured", False, id="none"),
        pytest.param(summaries.latency(0.5, low=0.49, high=0.51), f"2.00{TIMES} slower", False, id="slower"),
        pytest.param(summaries.latency(1.0, low=0.99, high=1.01), f"1.00{TIMES} unchanged", True, id="the same"),
        pytest.param(
            summaries.latency(4.0, noise_floor=1.2), f"4.00{TIMES} faster", True, id="noise larger than the gain"
        ),
        pytest.param(summaries.latency(1.2, low=0.9, high=1.5), f"1.20{TIMES} faster", True, id="interval around one"),
    ],
)
def test_the_headline_does_not_claim_a_speed_that_noise_explains(latency, said, noisy):
    text = page(summaries.summary(summaries.target(overall=summaries.overall(latency=latency)))).text
    assert said in text
    assert ("too noisy to tell a difference" in text) == noisy


def test_a_larger_and_better_model_is_called_so():
    text = page(
        summaries.summary(summaries.target(overall=summaries.overall(size_ratio=0.5, drop=-0.01, parameter_ratio=1)))
    ).text
    assert f"2.00{TIMES} larger" in text
    assert "1.00 points better" in text
    assert "as many parameters" in text


def test_a_regression_is_told_in_the_unit_of_its_metric():
    shown = page(regression(), confusion={"cpu": None})
    assert "RMSE, lower is better" in shown.text
    assert "from 2.4, 0.1 worse" in shown.text
    assert "at most 0.5" in shown.text
    assert "New errors" not in shown.texts("h3")


def test_a_gate_is_drawn_with_its_interval_left_of_the_bound_that_it_keeps():
    shown = page(summaries.summary(summaries.target(gates=(summaries.gate(value=0.01, low=0.005, high=0.015),))))
    parts = {attrs["class"]: attrs for tag, attrs in shown.elements if tag in {"rect", "line"} and "class" in attrs}
    spread, bound, allowed = parts["spread"], parts["bound"], parts["allowed"]

    def at(value):
        return float(value.removesuffix("%"))

    assert at(spread["x"]) + at(spread["width"]) < at(bound["x1"])
    assert at(allowed["x"]) == 0
    assert allowed["width"] == bound["x1"]
    assert "Measured 1.00 points, interval 0.50 points to 1.50 points; the bound is at most 2.00 points: Passed" in [
        attrs.get("aria-label") for attrs in shown.of("svg")
    ]


def test_a_gate_on_latency_is_drawn_with_the_noise_floor():
    gate = summaries.gate(
        "speed", metric=GateMetric.LATENCY_RATIO, value=4, low=3.9, high=4.1, bound="latencyRatio >= 2"
    )
    assert [
        attrs
        for attrs in page(summaries.summary(summaries.target(gates=(gate,)))).of("line")
        if attrs["class"] == "noise"
    ]
    assert not [attrs for attrs in page().of("line") if attrs["class"] == "noise"]


def test_stages_of_one_file_share_a_dot():
    same = {"artifact": summaries.digest("c")}
    stages = (summaries.original(), summaries.stage("int8", **same), summaries.stage("onnx", **same))
    shown = page(summaries.summary(summaries.target(stages=stages)))
    dots = [attrs["class"] for attrs in shown.of("g")]
    assert dots == ["dot", "dot last"]
    assert any(label.startswith("int8, onnx") for label in shown.texts("text"))


def test_dots_that_crowd_are_numbered_and_listed():
    stages = [summaries.stage(f"stage-{n}", size_bytes=900_000 - n) for n in range(4)]
    shown = page(summaries.summary(summaries.target(stages=(summaries.original(), *stages))))
    assert {"1", "2", "3", "4", "5"} <= set(shown.texts("text"))
    assert any(item.startswith("stage-3: 96.00%") for item in shown.texts("li"))


def test_cached_stages_are_marked():
    stages = (summaries.original(cached=True), summaries.stage())
    assert page(summaries.summary(summaries.target(stages=stages), cache_hits=1)).texts("span").count("cached") == 2
    assert "cached" not in page().texts("span")


def test_new_errors_are_counted_by_class():
    matrix = [[0, 0, 0], [0, 0, 3], [1, 0, 0]]
    shown = page(confusion={"cpu": matrix})
    assert "4 samples of 500 that the original has right are wrong in the result." in shown.text
    assert {attrs["class"] for attrs in shown.of("td") if "class" in attrs} == {"heat2", "heat4"}


def test_no_new_error_is_said_in_words():
    assert "every sample right that the original has right" in page(confusion={"cpu": [[0, 0], [0, 0]]}).text


def test_many_classes_are_listed_by_their_most_frequent_errors():
    matrix = [[0] * 1000 for _ in range(1000)]
    matrix[41][7], matrix[2][3] = 9, 1
    cells = page(confusion={"cpu": matrix}).texts("td")
    first = cells.index("class 7")
    assert cells[first : first + 4] == ["class 7", "9", "class 3", "1"]


def test_warnings_are_shown_with_their_stage():
    stages = (summaries.original(), summaries.stage(warnings=("zeros do not make it faster",)))
    text = page(summaries.summary(summaries.target(stages=stages))).text
    assert "1 warning slim zeros do not make it faster" in text


def test_details_are_readable_and_keep_the_names_of_layers():
    details = {
        "removedShare": 0.25,
        "groups": [{"layer": "blocks.0.body", "kept": 8}, {"layer": "stem", "kept": 4}],
        "refused": {"output [head]": 10},
        "losses": [0.5, 0.25],
        "reached": True,
        "many": list(range(500)),
        "huge": 10**400,
    }
    shown = page(details=details)
    assert {"Removed share", "output [head]"} <= set(shown.texts("dt"))
    assert {"blocks.0.body", "stem"} <= set(shown.texts("code"))
    assert "0.5, 0.25" in shown.text
    assert "300 more in stage.json" in shown.text
    json.dumps(details)  # what a record can hold


def test_a_stage_without_a_record_says_so():
    result = summaries.summary()
    shown = Page(render(result, {}, confusion={}))
    assert "There is no record at stages/cpu/slim/stage.json." in shown.text


def test_provenance_names_every_input_version_and_command():
    shown = page(
        inputs={"spec.model": summaries.digest("d")},
        versions={"torch": "2.13.0"},
        reproduce=("python", "-m", "module", "--store", "a folder"),
    )
    codes = shown.texts("code")
    assert {summaries.digest("d"), "2.13.0", "python -m module --store 'a folder'", "digits-0123456789"} <= set(codes)


def test_both_colour_schemes_are_legible():
    """Text colours on every surface they are used on: at least 4.5 to 1 (WCAG 2.2, AA)."""
    style = page().html.partition("<style>")[2].partition("</style>")[0]
    light, dark = (_colours(block) for block in (style.partition("@media")[0], style.partition("dark)")[2]))
    for colours in (light, light | dark):
        for ink, surfaces in {
            "ink": ("page", "card", "track", "open-tint"),
            "soft": ("page", "card"),
            "accent": ("page", "card"),
            "ok": ("card", "ok-tint"),
            "bad": ("card", "bad-tint"),
            "open": ("card", "open-tint"),
        }.items():
            for surface in surfaces:
                assert _contrast(colours[ink], colours[surface]) >= 4.5, (ink, surface)


def _colours(block):
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block.partition("}")[0]))


def _contrast(one, other):
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_search_is_drawn_and_listed_with_the_taken_trial_first():
    stopped = summaries.trial(
        3,
        state=TrialState.STOPPED,
        check=TrialCheck.SAMPLE,
        reason=HOSTILE,
        values=(TrialValue(stage="slim", field="prune.parameters", value="0.7"),),
    )
    trials = (summaries.trial(1, best=True), summaries.trial(2, best=True), stopped)
    shown = page(summaries.summary(search=summaries.search(trials, chosen=2)))
    assert "trial 2 is best" in shown.text.lower()
    rows = [t for t in shown.texts("th") if t in {"1", "2, taken", "3"}]
    assert rows == ["2, taken", "1", "3"]
    assert "Stopped at Sample" in shown.text
    assert "slim.prune.parameters 0.7" in shown.text

    assert sum("last" in (attrs.get("class") or "") for attrs in shown.of("g")) >= 1


def test_a_search_in_which_nothing_was_measured_has_no_picture():
    stopped = summaries.trial(1, state=TrialState.STOPPED, check=TrialCheck.STAGES)
    shown = page(summaries.summary(search=summaries.search((stopped,), nearest=1)))
    assert "Trials of the search" in shown.html
    assert "Speed against the original" not in shown.text
