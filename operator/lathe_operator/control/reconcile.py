"""Look, decide, act: one pass over one OptimizedModel."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from lathe_api.base import API_VERSION
from lathe_api.canonical import canonical_json
from lathe_operator.cluster.gather import Prober, gather
from lathe_operator.cluster.protocol import Cluster, ClusterError, Json
from lathe_operator.plan.blocked import blocked
from lathe_operator.plan.make import make_plan
from lathe_operator.plan.observed import Event, Observed, Plan, Ref, dig, find, name_of, ref_of
from lathe_operator.settings import Settings

Key = tuple[str, str]
"""Namespace and name of an OptimizedModel."""

_NOT_FOUND: Final = 404
_REVISION_STATUS: Final = ("summary", "observedGeneration", "conditions")

log = logging.getLogger(__name__)


@dataclass
class Reconciler:
    """Brings what is there closer to what is asked for."""

    cluster: Cluster
    prober: Prober
    settings: Settings
    clock: Callable[[], datetime]
    seen: Callable[[Plan, Observed], None]
    """Told of every decision, for metrics."""
    _applied: dict[Ref, tuple[str, str]] = field(default_factory=dict)
    """Digest of what was applied last, and the version that it had then: the same need not be applied again."""

    async def reconcile(self, key: Key) -> float | None:
        """One pass.

        Returns:
            Seconds until the next one, where no watch tells of the change that is waited for.

        Raises:
            ClusterError: try again; what was done stays done, and is not done twice.
            FencedError: another process is the leader.
        """
        observed = await gather(self.cluster, self.prober, *key)
        if observed is None:
            self._forget(key)
            return None
        plan = make_plan(observed, self.settings, self.clock())
        self.seen(plan, observed)
        await self._carry_out(plan, observed)
        return plan.requeue_after

    async def _carry_out(self, plan: Plan, observed: Observed) -> None:
        """The order matters: after a crash in between, the next pass must find what tells it to go on."""
        model = observed.model
        for ref in plan.deletions:
            log.info("deleting %s %s", ref.kind, ref.name)
            await self.cluster.delete(ref)
        for obj in plan.objects:
            try:
                await self._apply(obj, observed)
            except ClusterError as error:
                if not error.passing:
                    await self._status(model, blocked(plan, obj, str(error), observed, self.clock()))
                raise
        for name, status in plan.revision_status.items():
            await self._revision_status(name, status, observed)
        await self._status(model, plan.status)
        for event in plan.events:
            await self._tell(model, event)

    async def _apply(self, obj: Json, observed: Observed) -> None:
        ref = ref_of(obj)
        digest = hashlib.sha256(canonical_json(obj)).hexdigest()
        there = _there(ref, observed)
        version = dig(there, "metadata", "resourceVersion")
        if version is not None and self._applied.get(ref) == (digest, version):
            return
        if there is None:
            log.info("applying %s %s", ref.kind, ref.name)
        now = await self.cluster.apply(obj)
        self._applied[ref] = (digest, dig(now, "metadata", "resourceVersion", default=""))

    async def _status(self, model: Json, status: Json) -> None:
        if status and status != model.get("status"):
            await self.cluster.apply(_status_of(model, status), subresource="status")

    async def _revision_status(self, name: str, status: Json, observed: Observed) -> None:
        revision = find(observed.revisions, name)
        if revision is None:
            return
        written = {k: v for k, v in revision.get("status", {}).items() if k in _REVISION_STATUS}
        if written == status:
            return
        try:
            await self.cluster.apply(_status_of(revision, status), subresource="status")
        except ClusterError as error:
            # Pruned a moment ago by this very plan, or by a person.
            if error.status != _NOT_FOUND:
                raise

    async def _tell(self, model: Json, event: Event) -> None:
        """An Event that is lost is no reason to repeat what caused it."""
        try:
            await self.cluster.tell(model, event)
        except ClusterError as error:
            log.warning("event %s was not recorded: %s", event.reason, error)

    def _forget(self, key: Key) -> None:
        namespace, _ = key
        self._applied = {r: v for r, v in self._applied.items() if r.namespace != namespace}


def _status_of(obj: Json, status: Json) -> Json:
    meta = obj["metadata"]
    return {
        "apiVersion": obj.get("apiVersion", API_VERSION),
        "kind": obj["kind"],
        # With the uid the write fails where the object was deleted and made anew in the meantime.
        "metadata": {"name": name_of(obj), "namespace": meta["namespace"], "uid": meta["uid"]},
        "status": status,
    }


def _there(ref: Ref, observed: Observed) -> Json | None:
    kinds = {
        "ModelRevision": observed.revisions,
        "Job": observed.jobs,
        "Service": observed.services,
        "InferenceService": observed.inference_services,
    }
    return find(kinds.get(ref.kind, ()), ref.name)
