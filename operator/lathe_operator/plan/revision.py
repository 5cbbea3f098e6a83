"""The ModelRevision of a resolved model: everything that decides the result, under the hash of that."""

from typing import Any, Final

from lathe_api.base import API_VERSION
from lathe_api.canonical import digest_of
from lathe_api.modelrevision import ModelRevisionSpec
from lathe_api.objects import ObjectRef
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.wiring import LABEL_MANAGED_BY, LABEL_MODEL, LABEL_REVISION, MANAGED_BY
from lathe_operator.plan import names
from lathe_operator.plan.observed import Json

_IN_PLACE: Final[Any] = {"pool": True, "serving": {"replicas", "resources"}}
"""Parts of a target that change the servers, not what is served."""


def hash_of(model: OptimizedModel) -> str:
    """sha256 over all of a resolved model that decides what is built and how it is served.

    Replicas, resources, pools and the rollout are left out: they are changed in place, without a new revision.
    """
    spec = model.spec
    return digest_of(
        {
            "model": spec.model,
            "data": spec.data,
            "objective": spec.objective,
            "stages": spec.recipe.stages,
            "gates": spec.gates,
            "targets": [
                t.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_IN_PLACE) for t in spec.targets
            ],
            "seed": spec.seed,
            "store": spec.store,
            # Without a search as it was before there were any: revisions keep their names.
            **({} if spec.search is None else {"search": spec.search}),
        }
    )


def revision(model: OptimizedModel, raw: Json) -> Json:
    """The ModelRevision of a resolved model, as applied.

    Args:
        model: resolved (`plan.resolve`).
        raw: the OptimizedModel as the API server gave it.
    """
    digest = hash_of(model)
    name = names.revision(model.metadata.name, digest)
    spec = ModelRevisionSpec(
        model_ref=ObjectRef(name=model.metadata.name),
        generation=raw["metadata"].get("generation", 0),
        model=model.spec.model,
        data=model.spec.data,
        objective=model.spec.objective,
        stages=model.spec.recipe.stages,
        search=model.spec.search,
        gates=model.spec.gates,
        targets=model.spec.targets,
        seed=model.spec.seed,
        store=model.spec.store,
        hash=digest,
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelRevision",
        "metadata": {
            "name": name,
            "namespace": raw["metadata"]["namespace"],
            "labels": child_labels(model.metadata.name, name),
            "ownerReferences": [owner(raw)],
        },
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def child_labels(model: str, revision_name: str) -> dict[str, str]:
    """Labels of everything that is made for a revision."""
    return {LABEL_MODEL: model, LABEL_REVISION: revision_name, LABEL_MANAGED_BY: MANAGED_BY}


def owner(raw: Json) -> Json:
    """The owner reference to an object: what carries it is deleted with that object."""
    return {
        "apiVersion": raw["apiVersion"],
        "kind": raw["kind"],
        "name": raw["metadata"]["name"],
        "uid": raw["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
