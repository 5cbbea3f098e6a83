"""`lathe job REVISION_FILE --segment N`: the stages of one segment of a ModelRevision, as its Job's pod runs them."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lathe_api.events import Event
from lathe_api.modelrevision import ModelRevision
from lathe_api.summary import Summary
from lathe_api.wiring import JOB_MANAGER_PREFIX
from lathe_cli import jobplaces, jobreport, texts
from lathe_cli.jobpublish import Publisher, backend_of
from lathe_cli.jobstatus import JobStatus, Json, is_final
from lathe_cli.plain import Lines
from lathe_cli.provenance import signer_of
from lathe_operator.plan import names
from lathe_operator.plan.segments import Segment, segments
from lathe_optimizers.errors import InputError, LatheError
from lathe_optimizers.run import RunOptions, execute


def job(options: argparse.Namespace) -> int:
    """Do a segment and report on it; a gate that stops the model is a result, and so a good end.

    Raises:
        DocumentError, LatheError, LatheRuntimeError: the revision or its files cannot be used, or a stage failed.
        JobError: the result could not be reported.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = jobplaces.of_environment(os.environ)
    revision = jobplaces.read_revision(options.revision)
    segment = _segment(revision, options.segment)
    until = _until(segment, options.until)
    sources = jobplaces.sources_of(revision) if segment.index == 0 else None
    status = JobStatus(segment.stages, names.job(revision.metadata.name, segment.index), sources, _now)
    tell, close = _reporting(revision, segment, where)
    try:
        _do(revision, where, _Work(segment, until), status, tell)
    except Exception as error:
        status.fail(where.revealed(str(error)))
        _say_farewell(status, close)
        if isinstance(error, jobreport.ReportError):
            raise JobError(str(error)) from error
        raise
    try:
        close(status.value(), jobreport.PATIENCE_SECONDS)
    except jobreport.ReportError as error:
        raise JobError(f"the result is kept in the store, but could not be reported: {error}") from error
    return 0


class JobError(LatheError):
    """The work is done or stopped, and its ModelRevision does not say so."""


@dataclass(frozen=True)
class _Work:
    segment: Segment
    until: str | None


def _do(
    revision: ModelRevision, where: jobplaces.Places, work: _Work, status: JobStatus, tell: Callable[[Json], None]
) -> None:
    uri = revision.spec.store.uri
    if uri is None:
        raise InputError("spec.store.uri", "the revision names no store", "Write one, such as pvc://claim/path")
    store = where.path(uri, "spec.store.uri")
    document = jobplaces.document_of(revision, where)
    signer = signer_of(None)
    publisher = Publisher(store, uri, revision.metadata.name, document, backend_of(os.environ), signer)
    out = where.scratch / "run"
    settings = RunOptions(base=Path("/"), store=store, out=out, until=work.until, revision=revision.metadata.name)
    lines = Lines(sys.stdout.write, sys.stdout.flush)

    def observe(event: Event) -> None:
        lines(event)
        if status.see(event):
            tell(status.value())

    summary = execute(document, settings, observe, publisher)
    if is_final(summary, last=work.segment.last):
        report = publisher.report(out)
        status.finish(summary, publisher.repositories, report)
        sys.stdout.write(_outcome(summary, publisher.repositories, report))
    else:
        sys.stdout.write(f"segment {work.segment.index} is done; the next one goes on\n")
    sys.stdout.flush()


def _outcome(summary: Summary, repositories: Mapping[str, str], report: str) -> str:
    """The end of the revision for the log; the run folder is lost with the pod, so that only what stays is named."""
    targets = tuple(t.model_copy(update={"model_file": None}) for t in summary.targets)
    told = summary.model_copy(update={"out": report.rpartition("/")[0], "targets": targets})
    return "\n".join([texts.outcome(told).rstrip("\n"), *repositories.values(), ""])


def _segment(revision: ModelRevision, index: int) -> Segment:
    found = segments(revision.spec.stages, revision.spec.model.format, revision.spec.search)
    if index >= len(found):
        raise InputError("--segment", str(index), f"The stages make {len(found)} segments: write 0 to {len(found) - 1}")
    return found[index]


def _until(segment: Segment, given: str | None) -> str | None:
    """The last stage to do; None for the end of the recipe."""
    if given is None:
        return None if segment.last else segment.stages[-1]
    if given not in segment.stages:
        raise InputError(
            "--until", f"{given!r} is no stage of this segment", f"Write one of {', '.join(segment.stages)}"
        )
    return given


def _reporting(
    revision: ModelRevision, segment: Segment, where: jobplaces.Places
) -> tuple[Callable[[Json], None], Callable[[Json, float], None]]:
    """How to tell of progress, and of the end."""
    server = jobreport.api_server(where.account, os.environ)
    if server is None or revision.metadata.namespace is None:
        print("note: this is no pod of a cluster: progress is printed, and nothing is reported")
        return (lambda _: None), (lambda _status, _patience: None)
    manager = f"{JOB_MANAGER_PREFIX}{segment.index}"
    reporter = jobreport.Reporter(lambda status: server.apply_status(revision, status, manager), _note)
    return reporter.tell, reporter.close


def _say_farewell(status: JobStatus, close: Callable[[Json, float], None]) -> None:
    try:
        close(status.value(), jobreport.FAREWELL_SECONDS)
    except jobreport.ReportError as error:
        # The exit status and the reason that is left tell the same.
        _note(str(error))


def _note(text: str) -> None:
    print(f"note: {text}", flush=True)


def _now() -> datetime:
    return datetime.now(UTC)
