"""The cluster over HTTP, by the official client's connection: its TLS, tokens and their renewal."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import aiohttp
from kubernetes.aio.client import ApiClient

from lathe_api.wiring import OPERATOR_MANAGER
from lathe_operator.cluster.protocol import ClusterError, Json, KindMissingError
from lathe_operator.plan.observed import Event, Ref, dig, name_of

PLURALS: Final = {
    "OptimizedModel": "optimizedmodels",
    "OptimizationRecipe": "optimizationrecipes",
    "ClusterOptimizationRecipe": "clusteroptimizationrecipes",
    "ModelRevision": "modelrevisions",
    "InferenceService": "inferenceservices",
    "Job": "jobs",
    "Pod": "pods",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "ConfigMap": "configmaps",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Deployment": "deployments",
    "Lease": "leases",
    "Event": "events",
}
APPLY: Final = "application/apply-patch+yaml"
Query = Sequence[tuple[str, str]]
_SECONDS: Final = 15.0
_NOT_FOUND: Final = 404
_PAGE: Final = 500


class RestCluster:
    """A `Cluster`.

    Args:
        client: a connection with credentials.
        fence: called before every write; raises `FencedError` where this process may not write.
    """

    def __init__(self, client: ApiClient, fence: Callable[[], None] = lambda: None) -> None:
        self._client = client
        self._fence = fence

    async def get(self, ref: Ref) -> Json | None:
        """See `Cluster`."""
        try:
            return await self.request("GET", path(ref.api_version, ref.kind, ref.namespace, ref.name))
        except ClusterError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def list(
        self, api_version: str, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> tuple[Json, ...]:
        """See `Cluster`."""
        selector = ",".join(f"{k}={v}" for k, v in (labels or {}).items())
        query = [("limit", str(_PAGE)), *([("labelSelector", selector)] if selector else [])]
        found: list[Json] = []
        more: list[tuple[str, str]] = []
        while True:
            try:
                page = await self.request("GET", path(api_version, kind, namespace), query=query + more)
            except ClusterError as error:
                if error.status == _NOT_FOUND:
                    raise KindMissingError(
                        error.status, f"the cluster does not know {kind} of {api_version}"
                    ) from error
                raise
            found += [{"apiVersion": api_version, "kind": kind, **item} for item in page["items"]]
            token = dig(page, "metadata", "continue")
            if not token:
                return tuple(sorted(found, key=name_of))
            more = [("continue", token)]

    async def apply(self, obj: Json, *, subresource: str | None = None) -> Json:
        """See `Cluster`."""
        where = path(obj["apiVersion"], obj["kind"], dig(obj, "metadata", "namespace"), name_of(obj), subresource)
        query = [("fieldManager", OPERATOR_MANAGER), ("force", "true")]
        return await self.write("PATCH", where, obj, query=query, content_type=APPLY)

    async def delete(self, ref: Ref) -> None:
        """See `Cluster`."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            await self.write("DELETE", path(ref.api_version, ref.kind, ref.namespace, ref.name), body)
        except ClusterError as error:
            if error.status != _NOT_FOUND:
                raise

    async def tell(self, about: Json, event: Event) -> None:
        """See `Cluster`."""
        meta = about["metadata"]
        regarding = {"apiVersion": about["apiVersion"], "kind": about["kind"], "name": meta["name"], "uid": meta["uid"]}
        namespace = meta["namespace"]
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "lathe.dev/operator",
            "reportingInstance": OPERATOR_MANAGER,
            "action": "Reconcile",
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason,
            "note": event.message,
            "regarding": {**regarding, "namespace": namespace},
        }
        await self.write("POST", path("events.k8s.io/v1", "Event", namespace), body)

    async def write(
        self,
        method: str,
        where: str,
        body: Json,
        *,
        query: Query = (),
        content_type: str = "application/json",
    ) -> Json:
        """A request that changes something."""
        self._fence()
        return await self.request(method, where, body, query=query, content_type=content_type)

    async def request(
        self,
        method: str,
        where: str,
        body: Json | None = None,
        *,
        query: Query = (),
        content_type: str = "application/json",
    ) -> Json:
        """One request.

        Raises:
            ClusterError: refused, or no answer in time.
        """
        headers = {"Accept": "application/json", "Content-Type": content_type}
        serialized = await self._client.param_serialize(
            method, where, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            answer = await self._client.call_api(*serialized, _request_timeout=_SECONDS)
            data: bytes = await answer.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(0, f"no answer of the API server: {error or type(error).__name__}") from error
        content = _decoded(data)
        if not 200 <= answer.status < 300:  # noqa: PLR2004
            wait = answer.getheaders().get("Retry-After")  # type: ignore[no-untyped-call]
            message = str(content.get("message") or data[:300])
            raise ClusterError(answer.status, message, float(wait) if wait and wait.isdigit() else None)
        return content


def path(
    api_version: str, kind: str, namespace: str | None, name: str | None = None, subresource: str | None = None
) -> str:
    """Where the API server has an object, or all of a kind."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    parts = [root, *(["namespaces", namespace] if namespace else []), PLURALS[kind]]
    return "/".join([*parts, *([name] if name else []), *([subresource] if subresource else [])])


def _decoded(data: bytes | None) -> Json:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
