"""The page as a whole."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from importlib.resources import files

from lathe_api.manifest import StageRecord
from lathe_api.summary import Summary, TargetResult, TargetState, Verdict
from lathe_optimizers.report import target as sections
from lathe_optimizers.report import trials, words
from lathe_optimizers.report.markup import NOTHING, Html, h, text
from lathe_optimizers.report.tables import pairs, table

_SHOWN = {
    Verdict.PASSED: "No gate stands in the way.",
    Verdict.FAILED: "A gate has failed.",
    Verdict.INCONCLUSIVE: "A gate could not be decided.",
}


def render(
    summary: Summary, records: Mapping[str, StageRecord], *, confusion: Mapping[str, list[list[int]] | None]
) -> str:
    """The report of a run: one HTML page that needs no other file, no network and no script.

    Args:
        summary: the result of the run.
        records: stage records by `StageResult.record`; a stage without one is shown without details.
        confusion: by target, true class x wrong answer, counted over the samples that the original has right and the
            result has wrong; None for a task without classes.

    Returns:
        UTF-8 encodable HTML. Everything that comes from the arguments is escaped.
    """
    # Safe: the style sheet is a file of this package, and holds no `</style>`.
    style = files("lathe_optimizers.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("meta", http_equiv="Content-Security-Policy", content=f"default-src 'none'; style-src 'sha256-{digest}'"),
        h("title", f"{summary.name}: {summary.verdict} ({summary.revision})"),
        h("style", Html(style)),
    )
    body = h(
        "body",
        _header(summary),
        h(
            "main",
            _overview(summary.targets),
            *(
                sections.section(target, records, confusion.get(target.name), number)
                for number, target in enumerate(summary.targets, 1)
            ),
            trials.section(summary.search) if summary.search is not None else NOTHING,
            _provenance(summary, records),
        ),
    )
    return f"<!doctype html>\n{h('html', head, body, lang='en')}\n"


def _header(summary: Summary) -> Html:
    ran = [t for t in summary.targets if t.state is not TargetState.SKIPPED]
    judged = sum(len(t.gates) for t in ran)
    told = _SHOWN[summary.verdict] if judged else "No gate was judged."
    done = f"{words.plural(summary.stages_run, 'stage')} run"
    if summary.cache_hits:
        done += f", {summary.cache_hits:,} from the cache"
    return h(
        "header",
        h("p", "Optimisation report", class_="label"),
        h("h1", summary.name),
        h("p", sections.verdict_badge(summary.verdict), h("span", told), class_="line"),
        h("p", h("code", summary.revision), h("span", done), h("span", words.duration(summary.seconds)), class_="meta"),
        class_="top",
    )


def _overview(targets: tuple[TargetResult, ...]) -> Html:
    if len(targets) < 2:  # noqa: PLR2004 (one target needs no list)
        return NOTHING
    columns = ["Target", "State", "Quality", "Size", "Speed", "Why"]
    rows = [_overview_row(target, number) for number, target in enumerate(targets, 1)]
    return h("section", h("h2", "Targets"), table("Targets of this run", columns, rows, class_="overview"))


def _overview_row(target: TargetResult, number: int) -> list[Html]:
    overall = target.overall
    link = h("a", target.name, href=f"#target-{number}")
    cells = [text(words.NONE)] * 3
    if overall is not None:
        latency = overall.latency
        cells = [
            text(words.quality(overall.metric, overall.final)),
            text(" ".join(words.compared(overall.size_ratio, "smaller", "larger"))),
            text(" ".join(words.compared(latency.value, "faster", "slower")) if latency else words.NONE),
        ]
    return [link, sections.state_badge(target.state), *cells, text(words.sentence(target.reason))]


def _provenance(summary: Summary, records: Mapping[str, StageRecord]) -> Html:
    run = [
        ("Revision", h("code", summary.revision)),
        ("Seed", text(str(summary.seed))),
        ("Hardware", text(_distinct(t.hardware for t in summary.targets))),
        ("Store", h("code", summary.store)),
        ("Run folder", h("code", summary.out)),
    ]
    inputs = sorted({(name, digest) for record in records.values() for name, digest in record.inputs.items()})
    versions = sorted({(name, version) for record in records.values() for name, version in record.versions.items()})
    parts = [pairs(run)]
    if inputs:
        parts += [h("h3", "Inputs"), pairs([(name, h("code", digest)) for name, digest in inputs])]
    if versions:
        parts += [h("h3", "Versions"), pairs([(name, h("code", version)) for name, version in versions])]
    note = "The same inputs, recipe and seed give the same revision. Commands that repeat a stage are in its details."
    return h("section", h("h2", "Provenance"), h("p", note, class_="quiet"), *parts, class_="provenance")


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
