"""The operator's process: election, watches, workers, probes, and an orderly end."""

import asyncio
import logging
import signal
import socket
import time
import uuid
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp import web

from lathe_api.base import API_VERSION
from lathe_operator.cluster.connect import connect
from lathe_operator.cluster.leases import Leases
from lathe_operator.cluster.protocol import Cluster, ClusterError, FencedError
from lathe_operator.cluster.rest import RestCluster
from lathe_operator.control.leader import Leader
from lathe_operator.control.metrics import Metrics
from lathe_operator.control.prober import HttpProber
from lathe_operator.control.queue import WorkQueue
from lathe_operator.control.reconcile import Key, Reconciler
from lathe_operator.control.watches import Watches
from lathe_operator.plan.observed import name_of
from lathe_operator.settings import Settings

LEASE: Final = "lathe-operator"
WORKERS: Final = 8
_BEAT_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


async def run(settings: Settings, *, port: int) -> int:
    """Run until a signal ends it or the lease is lost.

    Args:
        settings: of the operator.
        port: of metrics and probes; 0 for none.

    Returns:
        The exit status: 0 after a signal, 1 when the lease was lost, so that the pod starts anew without old knowledge.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    metrics = Metrics()
    site = await _serve(metrics, port)
    client = await connect()
    session = aiohttp.ClientSession()
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    leader = Leader(Leases(RestCluster(client), settings.operator_namespace, LEASE), identity, clock=time.monotonic)
    try:
        # A replica that waits is alive and ready: it takes over at any moment.
        metrics.watching = True
        beating = asyncio.create_task(_beat(metrics))
        if not await _first(leader.acquire(), stopped):
            return 0
        metrics.leader.set(1)
        reconciler = Reconciler(
            RestCluster(client, leader.fence),
            HttpProber(session, settings),
            settings,
            clock=lambda: datetime.now(UTC),
            seen=metrics.see,
        )
        lost = await _lead(reconciler, leader, settings, metrics, stopped)
        beating.cancel()
        if not lost:
            await leader.release()
        return 1 if lost else 0
    finally:
        await session.close()
        await client.close()  # type: ignore[no-untyped-call]
        if site is not None:
            await site.cleanup()


async def _lead(
    reconciler: Reconciler, leader: Leader, settings: Settings, metrics: Metrics, stopped: asyncio.Event
) -> bool:
    """Work until a signal comes or the lease is lost; whether it was lost."""
    queue: WorkQueue[Key] = WorkQueue()
    watches = Watches(queue, settings)
    watches.start()
    tasks = [asyncio.create_task(_work(queue, reconciler, settings, metrics)) for _ in range(WORKERS)]
    tasks.append(asyncio.create_task(_resync(queue, reconciler.cluster, settings)))
    ends = [asyncio.create_task(wait) for wait in (leader.hold(), stopped.wait(), watches.ended.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, *ends):
        # A pass may be cut off anywhere: the next one goes on from what it finds, as after a crash.
        task.cancel()
    await asyncio.gather(*tasks, *ends, return_exceptions=True)
    await watches.stop()
    return not stopped.is_set()


async def _work(queue: WorkQueue[Key], reconciler: Reconciler, settings: Settings, metrics: Metrics) -> None:
    while True:
        key = await queue.take()
        metrics.depth.set(len(queue))
        begun = time.monotonic()
        result = "error"
        try:
            after = await reconciler.reconcile(key)
            result = "ok"
            queue.succeeded(key)
            if after is not None:
                queue.add(key, min(after, settings.resync_seconds))
        except FencedError as error:
            result = "fenced"
            log.warning("%s", error, extra={"key": "/".join(key)})
        except ClusterError as error:
            delay = queue.failed(key, error.retry_after)
            log.warning("%s; again in %.1f s", error, delay, extra={"key": "/".join(key)})
        except Exception:
            # A fault of this program in one object must not stop the others.
            delay = queue.failed(key)
            log.exception("again in %.1f s", delay, extra={"key": "/".join(key)})
        finally:
            metrics.reconcile.labels(result=result).observe(time.monotonic() - begun)
            queue.release(key)


async def _resync(queue: WorkQueue[Key], cluster: Cluster, settings: Settings) -> None:
    """Put every model into the queue now and then, whatever the watches have seen or missed."""
    while True:
        try:
            for namespace in settings.watch_namespaces or (None,):
                for model in await cluster.list(API_VERSION, "OptimizedModel", namespace):
                    queue.add((model["metadata"]["namespace"], name_of(model)))
        except ClusterError as error:
            log.warning("the models could not be listed: %s", error)
        await asyncio.sleep(settings.resync_seconds)


async def _beat(metrics: Metrics) -> None:
    while True:
        metrics.beat = time.monotonic()
        await asyncio.sleep(_BEAT_SECONDS)


async def _first(work: Coroutine[Any, Any, None], stopped: asyncio.Event) -> bool:
    """Whether the work was done before the signal."""
    task = asyncio.create_task(work)
    ending = asyncio.create_task(stopped.wait())
    await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False


async def _serve(metrics: Metrics, port: int) -> web.AppRunner | None:
    if port == 0:
        return None
    runner = web.AppRunner(metrics.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
