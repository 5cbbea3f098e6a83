"""Read documents from YAML files, with all problems of a file at once; choose a model, put its recipe in."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lathe_api import explain, yamltree
from lathe_api.base import API_VERSION
from lathe_api.errors import DocumentError, Problem
from lathe_api.federation import ModelFederation
from lathe_api.modelrevision import ModelRevision
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.recipe import RecipeKind, RecipeRef
from lathe_api.recipekinds import ClusterOptimizationRecipe, OptimizationRecipe
from lathe_api.yamltree import Node, Place, Scalar

Document = OptimizedModel | OptimizationRecipe | ClusterOptimizationRecipe | ModelRevision | ModelFederation
KINDS: Final[Mapping[str, type[Document]]] = {
    "OptimizedModel": OptimizedModel,
    "OptimizationRecipe": OptimizationRecipe,
    "ClusterOptimizationRecipe": ClusterOptimizationRecipe,
    "ModelRevision": ModelRevision,
    "ModelFederation": ModelFederation,
}


@dataclass(frozen=True)
class Inspection:
    """A file with everything that can be said about it."""

    documents: tuple[Document, ...]
    """Those without a problem."""
    problems: tuple[Problem, ...]
    """What must be mended."""
    warnings: tuple[Problem, ...]
    """What works here and not everywhere."""
    trees: tuple[Node, ...] = ()
    """Where each of `documents` is written, in their order."""


def load_file(path: Path) -> list[Document]:
    """The documents of a YAML file, in order.

    Raises:
        DocumentError: the file cannot be read, or something in it is wrong. Holds all problems of the file.
    """
    return _documents(inspect_file(path))


def load_text(text: str, name: str = "text") -> list[Document]:
    """The documents of a YAML text; `name` stands for the file in messages. Raises as `load_file`."""
    return _documents(inspect_text(text, name))


def inspect_file(path: Path) -> Inspection:
    """As `load_file`, with problems as a value."""
    try:
        with path.open("rb") as stream:
            data = stream.read(yamltree.MAX_BYTES + 1)
    except OSError as error:
        found = (error.strerror or type(error).__name__).lower()
        return Inspection((), (Problem(str(path), 0, 0, "", found, "name a YAML file that can be read"),), ())
    return _inspect(data, str(path))


def inspect_text(text: str, name: str = "text") -> Inspection:
    """As `load_text`, with problems as a value."""
    return _inspect(text.encode(errors="surrogatepass"), name)


def select_model(documents: Iterable[Document], name: str | None = None) -> OptimizedModel:
    """The one OptimizedModel among the documents, or the one called `name`.

    Raises:
        DocumentError: there is none, or more than one to choose from.
    """
    models = [d for d in documents if isinstance(d, OptimizedModel)]
    chosen = [m for m in models if name is None or m.metadata.name == name]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(m.metadata.name for m in models) or "none"
    if not models:
        problem = ("no OptimizedModel", "write a document of kind: OptimizedModel")
    elif not chosen:
        problem = (f"no OptimizedModel called {name}", f"choose one of {names}")
    else:
        problem = (f"{len(chosen)} OptimizedModels to choose from", f"name one of {names}, or keep one in the file")
    raise DocumentError([Problem("documents", 0, 0, "", *problem)])


def resolve_recipe(model: OptimizedModel, documents: Iterable[Document] = ()) -> OptimizedModel:
    """The model with its stages in place of a reference; unchanged where they are written in it.

    A reference is looked for among the documents (an OptimizationRecipe of the model's namespace, then a
    ClusterOptimizationRecipe), then among the recipes that Lathe ships.

    Raises:
        DocumentError: there is no such recipe, or its stages do not fit the rest of the model.
    """
    ref = model.spec.recipe.ref
    if ref is None:
        return model
    recipe = _find_recipe(ref, model.metadata.namespace, [*documents, *presets().values()])
    value = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    stages = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]["stages"]
    value["spec"]["recipe"] = {"stages": stages}
    try:
        return OptimizedModel.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise DocumentError(
            explain.unplaced(error, OptimizedModel, f"{model.metadata.name} with {ref.name}")
        ) from error


def presets() -> dict[str, ClusterOptimizationRecipe]:
    """The recipes that Lathe ships, by name."""
    found = {}
    for file in sorted(resources.files("lathe_api").joinpath("presets").iterdir(), key=lambda f: f.name):
        for document in load_text(file.read_text(encoding="utf-8"), file.name):
            if isinstance(document, ClusterOptimizationRecipe):
                found[document.metadata.name] = document
    return found


def _find_recipe(
    ref: RecipeRef, namespace: str | None, documents: list[Document]
) -> OptimizationRecipe | ClusterOptimizationRecipe:
    candidates: list[OptimizationRecipe | ClusterOptimizationRecipe] = []
    if ref.kind is not RecipeKind.CLUSTER_RECIPE:
        reachable = (None, namespace)
        candidates += [
            d
            for d in documents
            if isinstance(d, OptimizationRecipe) and (namespace is None or d.metadata.namespace in reachable)
        ]
    if ref.kind is not RecipeKind.RECIPE:
        candidates += [d for d in documents if isinstance(d, ClusterOptimizationRecipe)]
    for candidate in candidates:
        if candidate.metadata.name == ref.name:
            return candidate
    known = list(dict.fromkeys(c.metadata.name for c in candidates))
    meant = explain.closest(ref.name, known)
    hint = f"did you mean {meant}? known: " if meant else "known: "
    where = f"the reference to {ref.kind or 'recipe'} {ref.name}"
    problem = Problem("documents", 0, 0, "spec.recipe.ref.name", where, hint + (", ".join(known) or "none"))
    raise DocumentError([problem])


def _documents(inspection: Inspection) -> list[Document]:
    if inspection.problems:
        raise DocumentError(inspection.problems)
    return list(inspection.documents)


def _inspect(data: bytes, file: str) -> Inspection:
    trees, problems = yamltree.read(data, file)
    documents: list[Document] = []
    sound: list[Node] = []
    warnings: list[Problem] = []
    if not trees and not problems:
        problems.append(Problem(file, 1, 1, "", "no document", f"write one, beginning with apiVersion: {API_VERSION}"))
    for tree in trees:
        document, wrong = _document(tree, file)
        problems += wrong
        if document is not None:
            documents.append(document)
            sound.append(tree)
        warnings += _warnings(tree, file)
    return Inspection(tuple(documents), tuple(sorted(problems)), tuple(warnings), tuple(sound))


def _document(tree: Node, file: str) -> tuple[Document | None, list[Problem]]:
    kind = _kind(tree, file)
    if isinstance(kind, Problem):
        return None, [kind]
    model = KINDS[kind]
    value = json.dumps(yamltree.to_json(tree))
    try:
        # Strict, so that 1 is no text and "1" no number; as JSON, where strict mode still reads enums and lists.
        return model.model_validate_json(value, strict=True, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, list(explain.problems(error, model, tree, file))


def _kind(tree: Node, file: str) -> str | Problem:
    def problem(place: Place, path: str, found: str, remedy: str) -> Problem:
        return Problem(file, place.line, place.column, path, found, remedy)

    if not isinstance(tree, yamltree.Mapping):
        return problem(tree.place, "", tree.describe(), f"write a mapping that begins with apiVersion: {API_VERSION}")
    place, version = explain.locate(tree, ("apiVersion",))
    if not isinstance(version, Scalar) or version.text != API_VERSION:
        found = version.describe() if version else "nothing"
        return problem(place, "apiVersion", found, f"write apiVersion: {API_VERSION}, and keep other objects elsewhere")
    place, kind = explain.locate(tree, ("kind",))
    if not isinstance(kind, Scalar) or kind.text not in KINDS:
        meant = explain.closest(kind.text, list(KINDS)) if isinstance(kind, Scalar) else None
        hint = f"did you mean {meant}? " if meant else ""
        return problem(place, "kind", kind.describe() if kind else "nothing", f"{hint}write one of {', '.join(KINDS)}")
    return kind.text


def _warnings(tree: Node, file: str) -> list[Problem]:
    return [
        Problem(
            file,
            scalar.place.line,
            scalar.place.column,
            yamltree.path_text(path),
            f"a plain {scalar.text}, which kubectl reads as a boolean",
            f'write it in quotes: "{scalar.text}"',
        )
        for path, scalar in yamltree.walk(tree)
        if scalar.ambiguous
    ]
