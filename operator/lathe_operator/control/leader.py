"""Which of several operators writes: the holder of a Lease, and only while it is sure to hold it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lathe_operator.cluster.leases import Leases
from lathe_operator.cluster.protocol import ClusterError, FencedError, Json
from lathe_operator.plan.observed import dig

LEASE_SECONDS: Final = 10
"""Others wait so long after the last renewal that they have seen."""
MARGIN_SECONDS: Final = 3.0
"""The holder stops writing so long before, for requests that are on their way and clocks that run apart."""
RENEW_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.5
"""After a renewal that failed, so that a short absence of the API server ends no leader."""

log = logging.getLogger(__name__)


@dataclass
class Leader:
    """Takes part in the election.

    The others' clocks are not trusted: a Lease is taken over when its record has not changed for its duration, measured
    by this process (as in Kubernetes' own leader election).
    """

    leases: Leases
    identity: str
    clock: Callable[[], float]
    """Seconds, monotonic; must go on while the process is stopped."""
    _until: float = 0.0
    _seen: tuple[Json | None, float] = field(default=(None, 0.0))

    @property
    def leads(self) -> bool:
        """Whether this process may write now."""
        return self.clock() < self._until

    def fence(self) -> None:
        """Called before each write.

        Raises:
            FencedError: this process does not lead, or was stopped so long that somebody else may.
        """
        if not self.leads:
            raise FencedError(f"{self.identity} does not hold the lease")

    async def attempt(self) -> bool:
        """Renew the Lease, or take it where it is free.

        Returns:
            Whether this process leads.
        """
        begun = self.clock()
        lease = await self.leases.read()
        spec = dig(lease, "spec", default={})
        if spec != self._seen[0]:
            self._seen = (spec, begun)
        holder = spec.get("holderIdentity")
        patience = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        if holder not in (None, "", self.identity) and begun < self._seen[1] + patience:
            self._until = 0.0
            return False
        if await self.leases.take(self.identity, LEASE_SECONDS, lease):
            # From before the write: the others count from when they saw it, which is later.
            self._until = begun + LEASE_SECONDS - MARGIN_SECONDS
            return True
        return False

    async def acquire(self) -> None:
        """Wait until this process leads."""
        log.info("%s waits for the lease", self.identity)
        while not await self._try():  # noqa: ASYNC110 (the world outside of this process changes)
            await asyncio.sleep(RENEW_SECONDS)
        log.info("%s leads", self.identity)

    async def hold(self) -> None:
        """Renew until the Lease is lost."""
        renewed = True
        while True:
            await asyncio.sleep(RENEW_SECONDS if renewed else RETRY_SECONDS)
            renewed = False
            left = self._until - self.clock()
            if left > 0:
                with suppress(TimeoutError):
                    # One request that is never answered must not take the time of all others.
                    renewed = await asyncio.wait_for(self._try(), min(left, RENEW_SECONDS))
            if not self.leads:
                log.error("%s has lost the lease", self.identity)
                return

    async def release(self) -> None:
        """Let the next one take over at once."""
        self._until = 0.0
        try:
            await self.leases.release(self.identity)
        except ClusterError as error:
            log.warning("the lease was not released, and runs out by itself: %s", error)

    async def _try(self) -> bool:
        try:
            return await self.attempt()
        except ClusterError as error:
            log.warning("the lease could not be renewed: %s", error)
            return False
