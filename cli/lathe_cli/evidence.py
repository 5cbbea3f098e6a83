"""`lathe explain` and `lathe reproduce`: why a stage was looked up or done, and if it gives the same bytes again."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from lathe_api.canonical import digest_of
from lathe_api.manifest import Role, StageRecord
from lathe_api.summary import GateResult, StageResult, Summary, TargetResult
from lathe_cli.summaries import read_summary
from lathe_cli.texts import printable
from lathe_optimizers import explaining
from lathe_optimizers.errors import InputError
from lathe_optimizers.locations import absolute
from lathe_optimizers.store import Store


@dataclass(frozen=True)
class _Asked:
    """The stage that a command is about."""

    record: StageRecord
    store: str
    result: StageResult | None = None
    """As the run tells of it; absent where only a store is at hand."""
    target: TargetResult | None = None


def explain(options: argparse.Namespace) -> int:
    """Say why a stage was looked up or done, and what the gates after it rest on.

    Raises:
        InputError, NoRunError: there is no such run folder, stage or key.
    """
    asked = _asked(options)
    lines = [f"stage {asked.record.name} ({asked.record.type}), key {asked.record.key}"]
    lines += _lookup(asked)
    if asked.target is not None:
        lines += _verdicts(asked.target, asked.record)
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Do a stage again and compare the bytes: 0 the same, 3 different.

    Raises:
        InputError, NoRunError: there is no such run folder, stage or key.
    """
    asked = _asked(options)
    command = [sys.executable, "-m", "lathe_optimizers.child", "--store", asked.store, "--key", asked.record.key]
    return subprocess.run([*command, "--check"], check=False).returncode


def _asked(options: argparse.Namespace) -> _Asked:
    if options.stage is None:
        store = Store(absolute(options.store, Path.cwd()))
        record = store.record(options.place)
        if record is None:
            remedy = "Write the key from a stage.json, or a run folder and the name of a stage"
            raise InputError("KEY", f"the store {store.uri} has no stage {options.place!r}", remedy)
        return _Asked(record, store.uri)
    folder = Path(options.place)
    summary = read_summary(folder)
    target = _target(summary, options.target)
    names = [s.name for s in target.stages]
    if options.stage not in names:
        raise InputError("STAGE", f"target {target.name} has no stage {options.stage!r}", f"Write one of {names}")
    result = target.stages[names.index(options.stage)]
    path = folder / result.record
    try:
        record = StageRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(str(path), "no record that this version reads", "Run `lathe run` again") from error
    return _Asked(record, summary.store, result, target)


def _target(summary: Summary, name: str | None) -> TargetResult:
    ran = [t for t in summary.targets if t.stages]
    found = next((t for t in ran if name in {None, t.name}), None)
    if found is None:
        raise InputError("--target", f"no target {name!r} was run", f"Write one of {[t.name for t in ran]}")
    return found


def _lookup(asked: _Asked) -> Iterator[str]:
    record = asked.record
    finished = _moment(record.finished_at)
    if record.key_fields and digest_of(record.key_fields) != record.key:
        yield "the record was changed: its key is not the digest of its parts"
    if asked.result is not None and asked.result.cached:
        yield f"hit: all parts of the key are those of the result that was finished {finished}, which was used again"
        return
    if asked.result is not None:
        yield f"miss: {asked.store} had no result under this key, and the stage was done"
    else:
        yield f"finished {finished}"
    found = explaining.nearest(record, _records(asked.store))
    if found is None:
        yield "no earlier stage of this type is in the store to compare with"
        return
    other = found.record
    yield f"nearest earlier result: stage {other.name}, finished {_moment(other.finished_at)}, key {other.key}"
    for change in found.changes:
        yield f"  {change.part}: was {change.was}, is {change.now}"


def _records(uri: str) -> Iterator[StageRecord]:
    store = Store(uri)
    for key in store.stages():
        record = store.peek(key)
        if record is not None:
            yield record


def _verdicts(target: TargetResult, record: StageRecord) -> Iterator[str]:
    judged = [g for g in target.gates if g.stage == record.name]
    if not judged:
        yield "no gate was judged after this stage"
    for gate in judged:
        yield _verdict(gate)
        yield f"  {gate.reason}"
        if gate.remedy is not None:
            yield f"  to try: {gate.remedy}"
    if judged:
        yield f"the verdicts rest on the answers {record.artifact.files[Role.PREDICTIONS].digest},"
        yield f"  the baseline {target.stages[0].artifact}, seed {record.seed} for resampling, and the data"
        for field, digest in sorted(record.inputs.items()):
            yield f"    {field} {digest}"


def _verdict(gate: GateResult) -> str:
    ends = "" if gate.low is None or gate.high is None else f" [{gate.low:.4g}, {gate.high:.4g}]"
    value = "not measured" if gate.value is None else f"{gate.value:.4g}{ends}"
    return f"gate {gate.gate}: {gate.verdict}, {value}; bound: {gate.bound}"


def _moment(seconds: float | None) -> str:
    return "at a time unknown" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
