"""From what a user wrote to what is run: recipes looked up, places made absolute, defaults filled in."""

import posixpath
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from lathe_api import explain
from lathe_api.documents import Document, resolve_recipe
from lathe_api.errors import DocumentError
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.recipekinds import ClusterOptimizationRecipe, OptimizationRecipe
from lathe_api.status import ConditionType
from lathe_api.wiring import pod_path
from lathe_operator.plan.observed import Json, Observed
from lathe_operator.settings import Settings

_RECIPES: dict[str, type[OptimizationRecipe] | type[ClusterOptimizationRecipe]] = {
    "OptimizationRecipe": OptimizationRecipe,
    "ClusterOptimizationRecipe": ClusterOptimizationRecipe,
}


class RefusalError(Exception):
    """Why a document cannot be run, as a condition says it.

    Args:
        kind: the condition that is False.
        reason: its reason.
        message: field, what was found, what to write instead.
        summary: what the column of `kubectl get om` says.
    """

    def __init__(self, kind: ConditionType, reason: str, message: str, summary: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.summary = summary


def parse(model: Json) -> OptimizedModel:
    """The document.

    Raises:
        RefusalError: a rule refuses it that the API server does not know.
    """
    value = {key: model[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in model}
    try:
        return OptimizedModel.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _refused(DocumentError(explain.unplaced(error, OptimizedModel, model["metadata"]["name"]))) from error


def resolve(model: OptimizedModel, observed: Observed, settings: Settings) -> OptimizedModel:
    """The model with its stages written out and every place absolute.

    Raises:
        RefusalError: a recipe is missing or does not fit, a relative path has no start, a store is missing.
    """
    try:
        inline = resolve_recipe(model, _recipes(observed.recipes))
    except DocumentError as error:
        raise _refused(error) from error
    value = inline.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec: Json = value["spec"]
    for field, holder in places(spec):
        holder["uri"] = _absolute(holder["uri"], field, settings)
    store = spec.setdefault("store", {})
    if not store.get("uri"):
        if settings.store_uri is None:
            raise RefusalError(
                ConditionType.INPUTS_RESOLVED,
                "NoStore",
                "spec.store.uri: not given, and the operator has no store of its own. "
                "Write one, such as pvc://claim/path, or set `store.uri` of the chart",
                "Needs a store",
            )
        store["uri"] = settings.store_uri
    store["uri"] = _absolute(store["uri"], "spec.store.uri", settings)
    return OptimizedModel.model_validate(value, by_alias=True, by_name=False)


def places(spec: Json) -> list[tuple[str, Json]]:
    """Every block of a spec (as JSON) that names a file to read, with its field path."""
    data: Json = spec["data"]
    found: list[tuple[str, Any]] = [
        ("spec.model", spec["model"]),
        ("spec.data.train", data.get("train")),
        ("spec.data.calibration.source", data.get("calibration", {}).get("source")),
        ("spec.data.evaluation", data.get("evaluation")),
    ]
    for index, stage in enumerate(spec.get("recipe", {}).get("stages", spec.get("stages", []))):
        found.append((f"spec.recipe.stages[{index}].distill.student", stage.get("distill", {}).get("student")))
    return [(field, block) for field, block in found if block is not None and block.get("uri")]


def _absolute(uri: str, field: str, settings: Settings) -> str:
    if uri.startswith("pvc://"):
        return _in_volume(uri, field)
    if "://" in uri and not uri.startswith("file://"):
        return uri
    path = uri.removeprefix("file://").removeprefix("file:")
    if path.startswith("/"):
        raise _inputs(
            f"{field}: {uri} is a path of one machine, which the pods of a cluster do not share. "
            "Write pvc://claim/path or the URI of an object store",
        )
    if settings.files_uri is None:
        raise _inputs(
            f"{field}: {uri} is a relative path, and the operator knows no place that it starts from. "
            "Write pvc://claim/path or the URI of an object store, or set `files.uri` of the chart",
        )
    tail = posixpath.normpath(path)
    if tail.startswith(".."):
        raise _inputs(f"{field}: {uri} leaves the place where relative paths start. Write a path below it")
    return _absolute(f"{settings.files_uri.rstrip('/')}/{tail}", field, settings)


def _in_volume(uri: str, field: str) -> str:
    try:
        pod_path(uri)
    except ValueError as error:
        raise _inputs(f"{field}: {error}. Write pvc://claim/path") from error
    return uri


def _inputs(message: str) -> RefusalError:
    return RefusalError(ConditionType.INPUTS_RESOLVED, "UnreachablePath", message, "Cannot reach its files")


def _recipes(raw: Sequence[Json]) -> list[Document]:
    found: list[Document] = []
    for value in raw:
        kind = _RECIPES[value["kind"]]
        try:
            found.append(kind.model_validate({k: v for k, v in value.items() if k != "status"}, by_alias=True))
        except ValidationError as error:
            raise _refused(DocumentError(explain.unplaced(error, kind, value["metadata"]["name"]))) from error
    return found


def _refused(error: DocumentError) -> RefusalError:
    return RefusalError(ConditionType.RECIPE_VALID, "Refused", str(error)[:4096], "Refused: see condition RecipeValid")
