"""`lathe validate FILE…`: all that is wrong with documents, without running anything."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lathe_api.documents import Document, Inspection, inspect_file, resolve_recipe
from lathe_api.errors import DocumentError, Problem
from lathe_api.explain import placed
from lathe_api.optimizedmodel import OptimizedModel


def run_validate(files: Sequence[Path], *, as_json: bool) -> int:
    """Check files and print what was found; 0 when there is nothing to mend, else 2.

    References to recipes are looked for in all the files together and among the recipes that Lathe ships. With
    `as_json`, one JSON document on one line: `{"valid", "files": [{"file", "documents", "problems", "warnings"}]}`.
    """
    inspections = {path: inspect_file(path) for path in dict.fromkeys(files)}
    everything = [document for inspection in inspections.values() for document in inspection.documents]
    problems = {
        path: (*inspection.problems, *_unresolved(path, inspection, everything))
        for path, inspection in inspections.items()
    }
    valid = not any(problems.values())
    if as_json:
        _print_json(inspections, problems, valid=valid)
    else:
        _print_text(inspections, problems)
    return 0 if valid else 2


def _unresolved(path: Path, inspection: Inspection, everything: Sequence[Document]) -> list[Problem]:
    found: list[Problem] = []
    for document, tree in zip(inspection.documents, inspection.trees, strict=True):
        if isinstance(document, OptimizedModel):
            try:
                resolve_recipe(document, everything)
            except DocumentError as error:
                found += [placed(p, tree, str(path)) for p in error.problems]
    return found


def _print_json(inspections: dict[Path, Inspection], problems: dict[Path, tuple[Problem, ...]], *, valid: bool) -> None:
    files = [
        {
            "file": str(path),
            "documents": [{"kind": d.kind, "name": d.metadata.name} for d in inspection.documents],
            "problems": [asdict(p) for p in problems[path]],
            "warnings": [asdict(w) for w in inspection.warnings],
        }
        for path, inspection in inspections.items()
    ]
    print(json.dumps({"valid": valid, "files": files}, ensure_ascii=False))


def _print_text(inspections: dict[Path, Inspection], problems: dict[Path, tuple[Problem, ...]]) -> None:
    for path, inspection in inspections.items():
        for warning in inspection.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        for problem in problems[path]:
            print(f"error: {problem}", file=sys.stderr)
        if not problems[path]:
            names = ", ".join(f"{d.kind} {d.metadata.name}" for d in inspection.documents)
            print(f"{path}: valid ({names})")
    count = sum(len(found) for found in problems.values())
    if count:
        print(f"{count} {'problem' if count == 1 else 'problems'}", file=sys.stderr)
