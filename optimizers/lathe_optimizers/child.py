"""One stage's process: reads a request, runs the pass, measures the result, writes blobs and the record.

Also the command that repeats a stage: `python -m lathe_optimizers.child --store URI --key sha256:… --check` does the
stage again aside and says whether the bytes are the same.
"""

import argparse
import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lathe_api.data import DataSource
from lathe_api.manifest import ArtifactManifest, Blob, MadeRecord, Role, StageMetrics, StageRecord
from lathe_optimizers import hardware, locations, wire
from lathe_optimizers.context import Artifact, PassContext, PassOutput, Progress
from lathe_optimizers.datasets import check_against_model, open_datasets
from lathe_optimizers.errors import InputError, LatheError, StageError, StoreError
from lathe_optimizers.passes import registry
from lathe_optimizers.request import Purpose, StageRequest
from lathe_optimizers.store import Store

PASS_SHARE: Final = 0.9
"""Share of a stage's progress that the pass itself takes; the rest is export and measurement."""
LATENCY_SECONDS: Final = 8.0
"""Longest time spent on the paired latency of one stage."""
LATENCY_BATCH: Final = 1
"""Samples per timed run: what a single client waits for."""
PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed (told on the events pipe where there is one), 3 the repeat differs."""
    parser = argparse.ArgumentParser(prog="python -m lathe_optimizers.child", description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--request", type=Path, help="file with the request")
    parser.add_argument("--key", help="or the key of a stage in the store")
    parser.add_argument("--check", action="store_true", help="do it again, compare, write nothing")
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--parent", type=int)
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _die_with(options.parent)
        _die_first()
    tell = _teller(options.events_fd)
    try:
        store = Store(options.store)
        request = _read_request(options.request, options.key, store)
        if options.check:
            return _check(request, store)
        perform(request, store, tell)
    except LatheError as error:
        tell(wire.Message(failure=wire.failure_of(error)))
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the log of this process
        return 1
    return 0


def perform(
    request: StageRequest, store: Store, tell: Callable[[wire.Message], None], *, publish: bool = True
) -> StageRecord | None:
    """Do one stage; None where it is not measured, or a trial was stopped.

    Raises:
        LatheError: see `runner.run_stage`.
    """
    with store.workdir() as workdir:
        try:
            context = _context(request, store, workdir, tell)
            made = store.made(request.key) if publish else None
            if made is None:
                made = _make(request, store, context)
                if publish and request.purpose is not Purpose.FINISH:
                    store.write_made(request.key, made)
            if request.purpose is Purpose.MAKE:
                return None
            tell(wire.Message(fraction=PASS_SHARE, step="measure"))
            found = _measured(request, store, context, made, tell)
        except OSError as error:
            _explain_full_disk(error, workdir)
            raise
        except (RuntimeError, MemoryError) as error:
            # torch reports a failed write or allocation as RuntimeError.
            if shutil.disk_usage(workdir).free < 1 << 20:
                raise StoreError(f"{workdir}: no space left on the device. Free some space") from error
            raise
        if found is None:
            return None
        record = _record(request, store, made, found)
    if publish:
        asked = request.model_copy(update={"purpose": Purpose.FINISH, "checks": None})
        store.write_request(request.key, asked.model_dump_json(by_alias=True, indent=2))
        store.publish(record)
    return record


def _context(request: StageRequest, store: Store, workdir: Path, tell: Callable[[wire.Message], None]) -> PassContext:
    def find(field: str) -> Path:
        place = request.locations[field]
        return locations.fetch(locations.Location(place.uri, place.digest), field, store)

    def report(progress: Progress) -> None:
        share = min(max(progress.fraction, 0.0), 1.0) * PASS_SHARE
        tell(
            wire.Message(
                fraction=share,
                step=progress.step,
                epoch=progress.epoch,
                epochs=progress.epochs,
                loss=progress.loss,
            )
        )

    def locate(field: str, source: DataSource) -> Path:
        del source
        return find(field)

    student = f"spec.recipe.stages[{request.index}].distill.student"
    return PassContext(
        stage=request.stage,
        model=request.model,
        objective=request.objective,
        data_spec=request.data,
        data=open_datasets(request.data, locate, request.seed),
        source=find(locations.MODEL) if request.stage is None else None,
        input=_artifact(request.input, store),
        original=_artifact(request.original, store),
        extras={"student.uri": find(student)} if student in request.locations else {},
        seed=request.seed,
        hardware=request.hardware,
        threads=request.threads,
        workdir=workdir,
        checkpoints=store.checkpoints(request.key),
        report=report,
    )


def _artifact(manifest: ArtifactManifest | None, store: Store) -> Artifact | None:
    if manifest is None:
        return None
    return Artifact(manifest, {role: store.get(blob) for role, blob in manifest.files.items()})


def _make(request: StageRequest, store: Store, context: PassContext) -> MadeRecord:
    """Do the pass."""
    from lathe_optimizers.passes import onnx_files

    started = time.monotonic()
    output = registry.load(request.type)(context)
    onnx = output.onnx if output.onnx is not None else _measurable(context, output)
    signature = onnx_files.read_signature(onnx)
    if request.stage is None:
        check_against_model(context.data, signature, context.objective)
    files = {Role.ONNX: store.put(onnx)}
    if output.program is not None:
        files[Role.PROGRAM] = store.put(output.program)
    return MadeRecord(
        artifact=ArtifactManifest(
            files=files, signature=signature, exported=output.exported, frozen=_frozen(context, output)
        ),
        details=dict(output.details),
        warnings=output.warnings,
        wall_seconds=time.monotonic() - started,
        peak_memory_bytes=_peak_memory(),
    )


@dataclass(frozen=True)
class _Found:
    metrics: StageMetrics
    predictions: Blob
    seconds: float


def _measured(
    request: StageRequest, store: Store, context: PassContext, made: MadeRecord, tell: Callable[[wire.Message], None]
) -> _Found | None:
    """Measure what was made; None where a trial was stopped."""
    import numpy as np

    from lathe_optimizers.passes import measure

    started = time.monotonic()
    onnx = store.get(made.artifact.files[Role.ONNX])
    if request.checks is not None:
        from lathe_optimizers.search.ladder import Ladder

        ladder = Ladder(request.checks, onnx, context, store)
        answer = ladder.climb(latency_batch=LATENCY_BATCH, latency_seconds=LATENCY_SECONDS)
        tell(wire.Message(stopped=ladder.stopped, spent=ladder.spent))
        if answer is None:
            return None
    else:
        answer = measure.measure(
            onnx,
            data=context.data.evaluation,
            objective=context.objective,
            baseline=context.original.files[Role.ONNX] if context.original is not None else None,
            threads=request.threads,
            latency_batch=LATENCY_BATCH,
            latency_seconds=LATENCY_SECONDS,
            seed=request.seed,
        )
    predictions = context.workdir / "predictions.npy"
    np.save(predictions, answer.answers, allow_pickle=False)
    return _Found(answer.metrics, store.put(predictions), time.monotonic() - started)


def _record(request: StageRequest, store: Store, made: MadeRecord, found: _Found) -> StageRecord:
    files = made.artifact.files | {Role.PREDICTIONS: found.predictions}
    return StageRecord(
        name=request.name,
        type=request.type,
        key=request.key,
        key_fields=request.key_fields,
        finished_at=time.time(),
        config={} if request.stage is None else request.stage.model_dump(mode="json", by_alias=True, exclude_none=True),
        inputs={field: place.digest for field, place in request.locations.items()},
        seed=request.seed,
        hardware=request.hardware,
        versions=request.versions,
        threads=request.threads,
        artifact=made.artifact.model_copy(update={"files": files}),
        metrics=found.metrics,
        details=made.details | {"machine": dict(hardware.facts())},
        warnings=made.warnings,
        wall_seconds=made.wall_seconds + found.seconds,
        peak_memory_bytes=max(made.peak_memory_bytes, _peak_memory()),
        reproduce=tuple(f"python -m lathe_optimizers.child --store {store.uri} --key {request.key} --check".split()),
    )


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _frozen(context: PassContext, output: PassOutput) -> tuple[str, ...]:
    """Weights that stay frozen: those of the stage before too, as long as there is a program to train."""
    before = context.input.manifest.frozen if context.input is not None and output.program is not None else ()
    return tuple(dict.fromkeys((*before, *output.frozen)))


def _measurable(context: PassContext, output: PassOutput) -> Path:
    """The ONNX form of an unfinished program: for measurement only, at the exporter's default operator set."""
    from lathe_optimizers.passes import onnx_files, programs

    if output.program is None or context.original is None:
        raise StageError(context.stage.name if context.stage else "import", "the pass left no model")
    signature = context.original.manifest.signature
    path = context.workdir / "measured.onnx"
    onnx_files.to_onnx(
        programs.load_program(output.program),
        path,
        opset=20,
        input_names=[t.name for t in signature.inputs],
        output_names=[t.name for t in signature.outputs],
    )
    return path


def _explain_full_disk(error: OSError, where: Path) -> None:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise StoreError(
            f"{error.filename or where}: no space left on the device. "
            "Free some space, or choose another place by --store"
        ) from error


def _read_request(path: Path | None, key: str | None, store: Store) -> StageRequest:
    text = path.read_text(encoding="utf-8") if path is not None else store.read_request(key or "")
    if text is None:
        raise InputError("--key", f"the store {store.uri} has no stage {key}", "Write the key from a stage.json")
    return StageRequest.model_validate_json(text)


def _check(request: StageRequest, store: Store) -> int:
    known = store.record(request.key)
    again = perform(request, store, lambda _: None, publish=False)
    if again is None:
        raise StoreError(f"the store {store.uri} holds a request that measures nothing. Run again to make it anew")
    same = known is not None and _content(known) == _content(again)
    for role, digest in _content(again).items():
        was = _content(known).get(role) if known is not None else None
        print(f"{role}: {digest}" + ("" if was == digest else f" (was {was})"))  # noqa: T201 - a command's answer
    print("the same bytes" if same else "DIFFERENT from the stored result")  # noqa: T201 - as above
    return 0 if same else 3


def _content(record: StageRecord) -> dict[str, str]:
    return {role.value: blob.digest for role, blob in sorted(record.artifact.files.items())}


def _teller(descriptor: int | None) -> Callable[[wire.Message], None]:
    if descriptor is None:
        return lambda _: None

    def tell(message: wire.Message) -> None:
        data = message.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]

    return tell


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when its parent dies (Linux), so that nothing is left running."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _die_first() -> None:
    """Ask the kernel to end this process rather than its parent when memory runs out: the parent can explain it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
