"""The Lease that decides which of several operators writes, kept by optimistic locking."""

from datetime import UTC, datetime
from typing import Final

from lathe_operator.cluster.protocol import ClusterError, Json
from lathe_operator.cluster.rest import RestCluster, path
from lathe_operator.plan.observed import Ref, dig

API: Final = "coordination.k8s.io/v1"
_CONFLICT: Final = 409


class Leases:
    """Reads and writes one Lease.

    Args:
        cluster: an unfenced connection: the Lease is what the fence is made of.
        namespace: of the Lease.
        name: of the Lease.
    """

    def __init__(self, cluster: RestCluster, namespace: str, name: str) -> None:
        self._cluster = cluster
        self._ref = Ref(API, "Lease", namespace, name)

    async def read(self) -> Json | None:
        """The Lease, or None."""
        return await self._cluster.get(self._ref)

    async def take(self, holder: str, seconds: int, before: Json | None) -> bool:
        """Write oneself as holder, unless somebody else wrote since `before` was read.

        Returns:
            Whether it was written.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = dig(before, "spec", "holderIdentity") == holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "renewTime": now,
            "acquireTime": dig(before, "spec", "acquireTime", default=now) if same else now,
            "leaseTransitions": dig(before, "spec", "leaseTransitions", default=0) + (0 if same else 1),
        }
        return await self._put(spec, before)

    async def release(self, holder: str) -> None:
        """Let the next one take over at once; nothing where somebody else holds it."""
        before = await self.read()
        if before is None or dig(before, "spec", "holderIdentity") != holder:
            return
        await self._put({**before["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}, before)

    async def _put(self, spec: Json, before: Json | None) -> bool:
        ref = self._ref
        meta = {"name": ref.name, "namespace": ref.namespace}
        if before is not None:
            meta["resourceVersion"] = before["metadata"]["resourceVersion"]
        body = {"apiVersion": API, "kind": "Lease", "metadata": meta, "spec": spec}
        where = path(API, "Lease", ref.namespace, ref.name if before else None)
        try:
            await self._cluster.write("PUT" if before else "POST", where, body)
        except ClusterError as error:
            if error.status == _CONFLICT:
                return False
            raise
        return True
