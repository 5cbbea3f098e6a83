"""Everything that a decision about one OptimizedModel needs, read from the API server and from the servers."""

import asyncio
from typing import Final, Protocol

from lathe_api.base import API_VERSION
from lathe_api.wiring import LABEL_MODEL
from lathe_operator.cluster.protocol import Cluster, Json, KindMissingError
from lathe_operator.plan.objects.serving import KSERVE_API
from lathe_operator.plan.observed import Observed, Ref, dig, name_of

_CLUSTER_RECIPE: Final = "ClusterOptimizationRecipe"


class Prober(Protocol):
    """Asks a server what it serves."""

    async def digest(self, namespace: str, inference_service: str, model: str) -> str | None:
        """sha256 of the artifact as the server reports it; None where none answers for the model."""
        ...


async def gather(cluster: Cluster, prober: Prober, namespace: str, name: str) -> Observed | None:
    """What there is; None where the OptimizedModel is gone.

    Raises:
        ClusterError: something could not be read: no decision is made from half of the truth.
    """
    model = await cluster.get(Ref(API_VERSION, "OptimizedModel", namespace, name))
    if model is None:
        return None
    labels = {LABEL_MODEL: name}
    kserve = True
    try:
        services = await cluster.list(KSERVE_API, "InferenceService", namespace, labels)
    except KindMissingError:
        kserve, services = False, ()
    revisions, jobs, pods, claims, fronts, deployments, recipes = await asyncio.gather(
        cluster.list(API_VERSION, "ModelRevision", namespace, labels),
        cluster.list("batch/v1", "Job", namespace, labels),
        cluster.list("v1", "Pod", namespace, labels),
        cluster.list("v1", "PersistentVolumeClaim", namespace),
        cluster.list("v1", "Service", namespace, labels),
        cluster.list("apps/v1", "Deployment", namespace, labels),
        _recipes(cluster, model, namespace),
    )
    asked = [name_of(s) for s in services]
    answers = await asyncio.gather(*(prober.digest(namespace, service, name) for service in asked))
    return Observed(
        model=model,
        recipes=recipes,
        revisions=revisions,
        jobs=jobs,
        pods=pods,
        claims=claims,
        # KServe makes Services of its own, and hands on the labels of their InferenceService.
        services=tuple(s for s in fronts if _is_ours(s)),
        inference_services=services,
        deployments=deployments,
        kserve=kserve,
        served=dict(zip(asked, answers, strict=True)),
    )


def _is_ours(service: Json) -> bool:
    owners = dig(service, "metadata", "ownerReferences", default=[])
    return any(owner.get("kind") == "OptimizedModel" for owner in owners)


async def _recipes(cluster: Cluster, model: Json, namespace: str) -> tuple[Json, ...]:
    name = dig(model, "spec", "recipe", "ref", "name")
    if name is None:
        return ()
    kind = dig(model, "spec", "recipe", "ref", "kind", default="OptimizationRecipe")
    where = None if kind == _CLUSTER_RECIPE else namespace
    found = await cluster.get(Ref(API_VERSION, kind, where, name))
    return () if found is None else (found,)
