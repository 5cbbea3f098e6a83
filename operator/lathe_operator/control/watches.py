"""kopf as a shell: its watches put keys into the queue, and nothing else; it writes nothing to any object.

It runs in a thread and event loop of its own: when it ends it cancels every task of its loop, and it takes the signals
of the process.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import kopf

from lathe_api.wiring import GROUP, LABEL_MODEL
from lathe_operator.control.queue import WorkQueue
from lathe_operator.control.reconcile import Key
from lathe_operator.settings import Settings

CHILDREN: Final = (
    (GROUP, "modelrevisions"),
    ("batch", "jobs"),
    ("", "pods"),
    ("", "services"),
    ("apps", "deployments"),
    ("serving.kserve.io", "inferenceservices"),
)
DEBOUNCE_SECONDS: Final = 0.1
"""Changes come in bursts; one look is enough for all."""
_PATIENCE: Final = 3.0

log = logging.getLogger(__name__)


class Watches:
    """The watches of one operator.

    Args:
        queue: gets the keys; used in the event loop that `start` is called in only.
        settings: of the operator.
    """

    def __init__(self, queue: WorkQueue[Key], settings: Settings) -> None:
        self.known: set[Key] = set()
        """Every OptimizedModel that was seen and not deleted."""
        self.ended = asyncio.Event()
        """Set when the watches have ended, which they only do on their own when something is broken."""
        self._queue = queue
        self._settings = settings
        self._halt = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def stop(self) -> None:
        """End; the thread is left to itself where it does not follow."""
        self._halt.set()
        await asyncio.to_thread(self._thread.join, _PATIENCE)

    def _run(self) -> None:
        namespaces = self._settings.watch_namespaces
        try:
            kopf.run(
                registry=_registry(self._see, self._see_recipe),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                stop_flag=self._halt,
            )
        except Exception:
            log.exception("the watches have ended")
        finally:
            self._hand_over(self.ended.set)

    def _see(self, key: Key, *, exists: bool | None = None) -> None:
        def add() -> None:
            if exists is not None:
                (self.known.add if exists else self.known.discard)(key)
            self._queue.add(key, DEBOUNCE_SECONDS)

        self._hand_over(add)

    def _see_recipe(self, namespace: str | None) -> None:
        def add() -> None:
            for key in self.known:
                if namespace in (None, key[0]):
                    self._queue.add(key, DEBOUNCE_SECONDS)

        self._hand_over(add)

    def _hand_over(self, work: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)


def _registry(see: Callable[..., None], see_recipe: Callable[[str | None], None]) -> kopf.OperatorRegistry:
    found = kopf.OperatorRegistry()

    @kopf.on.startup(registry=found)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        # A watch that has died without a word is begun anew after this time at the latest.
        settings.watching.server_timeout = 240
        settings.watching.client_timeout = 300
        settings.watching.connect_timeout = 10

    @kopf.on.login(registry=found)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, "optimizedmodels", registry=found)
    async def model(event: Any, namespace: str | None, name: str | None, **_: Any) -> None:
        see((str(namespace), str(name)), exists=event["type"] != "DELETED")

    async def child(namespace: str | None, labels: Any, **_: Any) -> None:
        see((str(namespace), str(labels[LABEL_MODEL])))

    for group, plural in CHILDREN:
        kopf.on.event(group, plural, labels={LABEL_MODEL: kopf.PRESENT}, registry=found, id=f"child-{plural}")(child)

    @kopf.on.event(GROUP, "optimizationrecipes", registry=found)
    @kopf.on.event(GROUP, "clusteroptimizationrecipes", registry=found)
    async def recipe(namespace: str | None, **_: Any) -> None:
        see_recipe(namespace)

    return found
