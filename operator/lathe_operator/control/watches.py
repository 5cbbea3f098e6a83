"""kopf as a shell: its watches put keys into the queue, and nothing else; it writes nothing to any object.

Handlers are coroutines, as kopf runs others in threads, which the queue is not made for.
"""

from collections.abc import Callable
from typing import Any, Final

import kopf

from lathe_api.wiring import GROUP, LABEL_MODEL
from lathe_operator.control.queue import WorkQueue
from lathe_operator.control.reconcile import Key

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


def registry(queue: WorkQueue[Key], known: set[Key], started: Callable[[], None]) -> kopf.OperatorRegistry:
    """Handlers of raw events.

    Args:
        queue: gets the keys.
        known: every OptimizedModel that was seen; kept up to date here.
        started: called when the watches begin.
    """
    found = kopf.OperatorRegistry()

    @kopf.on.startup(registry=found)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.watching.server_timeout = 240
        settings.watching.client_timeout = 300
        settings.watching.connect_timeout = 10
        started()

    @kopf.on.login(registry=found)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, "optimizedmodels", registry=found)
    async def model(event: Any, namespace: str | None, name: str | None, **_: Any) -> None:
        key = (str(namespace), str(name))
        if event["type"] == "DELETED":
            known.discard(key)
        else:
            known.add(key)
        queue.add(key, DEBOUNCE_SECONDS)

    async def child(namespace: str | None, labels: Any, **_: Any) -> None:
        queue.add((str(namespace), str(labels[LABEL_MODEL])), DEBOUNCE_SECONDS)

    for group, plural in CHILDREN:
        kopf.on.event(group, plural, labels={LABEL_MODEL: kopf.PRESENT}, registry=found, id=f"child-{plural}")(child)

    @kopf.on.event(GROUP, "optimizationrecipes", registry=found)
    @kopf.on.event(GROUP, "clusteroptimizationrecipes", registry=found)
    async def recipe(namespace: str | None, **_: Any) -> None:
        for key in known:
            if namespace in (None, key[0]):
                queue.add(key, DEBOUNCE_SECONDS)

    return found
