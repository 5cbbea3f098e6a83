"""`lathe run FILE…`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from lathe_api.documents import inspect_file, resolve_recipe, select_model
from lathe_api.errors import DocumentError
from lathe_api.events import Event, Notice
from lathe_api.explain import placed
from lathe_api.manifest import StageRecord
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.summary import Summary, TargetResult, TargetState, Verdict
from lathe_api.targets import Target
from lathe_api.wiring import SIGNING_KEY
from lathe_cli import observers, texts
from lathe_optimizers.errors import InputError
from lathe_optimizers.run import Publish, RunOptions, census, execute, preview

STATUS: Final = {Verdict.PASSED: 0, Verdict.FAILED: 3, Verdict.INCONCLUSIVE: 4}


def run(options: argparse.Namespace) -> int:
    """Run a document; exit status by the worst verdict.

    Raises:
        DocumentError: the files are wrong.
        LatheError: see `lathe_optimizers.run.execute`.
        LatheRuntimeError: see `lathe_cli.serve.serve_run`.
    """
    if options.serve != "none":
        # Before anything else: a taken port or a missing server must not be noticed after hours of work.
        from lathe_cli.serve import check_ports

        check_ports(options)
        if options.until is not None:
            raise InputError("--serve", "--until ends the run before there is a result", "Leave one of them out")
    document, base = _document(options.files, options.name)
    name = document.metadata.name
    settings = RunOptions(
        base=base,
        store=options.store,
        out=options.out or Path("lathe-out") / name,
        seed=options.seed,
        until=options.until,
        targets=tuple(options.target),
    )
    if options.dry_run:
        sys.stdout.write(_plan(document, settings, as_json=options.json))
        return 0
    with observers.chosen(as_json=options.json, plain=options.plain) as observe:
        summary = _execute(document, settings, observe, options.signing_key)
    if options.json:
        print(summary.model_dump_json(by_alias=True), flush=True)
    else:
        sys.stdout.write(texts.outcome(summary))
        sys.stdout.flush()
    if options.serve != "none" and summary.verdict is Verdict.PASSED:
        from lathe_cli.serve import serve_run

        serve_run(settings.out, options, runtime=options.serve, target=None)
    elif options.serve != "none":
        print("nothing is served: a gate stands in the way", file=sys.stderr)
    return STATUS[summary.verdict]


def _plan(document: OptimizedModel, settings: RunOptions, *, as_json: bool) -> str:
    """What would be done; of a search the number of its combinations, and the first one's stages."""
    stages, found = preview(document, settings), census(document, settings)
    if as_json:
        listed = [asdict(s) for s in stages]
        return json.dumps(listed if found is None else {"search": asdict(found), "stages": listed}) + "\n"
    most = 0 if document.spec.search is None else document.spec.search.max_trials
    return ("" if found is None else texts.counted(found, most)) + texts.planned(stages)


def _document(files: list[Path], name: str | None) -> tuple[OptimizedModel, Path]:
    """The document with its recipe, and the folder of its file."""
    inspections = {path: inspect_file(path) for path in dict.fromkeys(files)}
    problems = [p for inspection in inspections.values() for p in inspection.problems]
    if problems:
        raise DocumentError(problems)
    documents = [d for inspection in inspections.values() for d in inspection.documents]
    chosen = select_model(documents, name)
    for path, inspection in inspections.items():
        for document, tree in zip(inspection.documents, inspection.trees, strict=True):
            if document is chosen:
                try:
                    return resolve_recipe(chosen, documents), path.resolve().parent
                except DocumentError as error:
                    raise DocumentError(placed(p, tree, str(path)) for p in error.problems) from error
    raise ValueError("the chosen document is in no file")


def _execute(
    document: OptimizedModel, settings: RunOptions, observe: Callable[[Event], None], key: Path | None
) -> Summary:
    try:
        publish = _publisher(document, key)
    except ModuleNotFoundError as error:
        if key is not None or os.environ.get(SIGNING_KEY):
            raise  # a result that is not signed is not what was asked for
        what = f"no model repository will be written, because {error.name} is missing"
        observe(Notice(message=f'{what}; to have one, install "lathe-platform[runtimes]"'))
        publish = None
    return execute(document, settings, observe, publish)


def _publisher(document: OptimizedModel, key: Path | None) -> Publish:
    """Writes the Triton model repository of a built target, signed where there is a key."""
    from lathe_cli.provenance import signer_of, signing
    from lathe_runtimes.modelconfig import Profile
    from lathe_runtimes.repository import write_repository

    signer = signer_of(key)

    def publish(folder: Path, target: Target, result: TargetResult, record: StageRecord) -> TargetResult:
        if result.state is not TargetState.BUILT or result.artifact is None or result.model_file is None:
            return result
        place = Path("targets") / target.name / "repository"
        write_repository(
            folder / place,
            name=document.metadata.name,
            onnx=folder / result.model_file,
            signature=record.artifact.signature,
            serving=target.serving,
            hardware=target.hardware,
            digest=result.artifact,
            profile=Profile.ONNXRUNTIME,
            sign=signing(signer, document, folder, target, result, record),
        )
        return result.model_copy(update={"repository": place.as_posix()})

    return publish
