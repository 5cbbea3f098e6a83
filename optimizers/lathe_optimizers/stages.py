"""Does the stages of a plan: looks each up in the store, or runs it in a process of its own."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lathe_api.canonical import digest_of, plain
from lathe_api.events import Event, StageProgress, StageStarted, StageWaiting
from lathe_api.manifest import ArtifactManifest, StageRecord
from lathe_api.optimizedmodel import OptimizedModel
from lathe_optimizers import plan, runner, wire
from lathe_optimizers.locations import Location, digests
from lathe_optimizers.request import PinnedLocation, StageRequest
from lathe_optimizers.store import Store

ETA_FRACTION = 0.02
"""Below this the remaining time would be a guess."""


@dataclass(frozen=True)
class Done:
    """A stage that has a record."""

    record: StageRecord
    cached: bool
    seconds: float
    """Wall time in this run."""


@dataclass(frozen=True)
class Inputs:
    """Everything besides earlier stages that decides a result."""

    document: OptimizedModel
    locations: Mapping[str, Location]
    seed: int
    versions: Mapping[str, str]
    host: str

    def key_fields(
        self, node: plan.Node, parent: ArtifactManifest | None, original: ArtifactManifest | None
    ) -> dict[str, Any]:
        """What decides the node's result."""
        return plan.key_fields(
            node,
            self.document,
            digests=digests(self.locations),
            parent=parent,
            original=original,
            seed=self.seed,
            versions=self.versions,
            host=self.host,
        )

    def key(self, node: plan.Node, parent: ArtifactManifest | None, original: ArtifactManifest | None) -> str:
        """Under which the node's result is kept."""
        return digest_of(self.key_fields(node, parent, original))


class Stages:
    """Does nodes in order, parents first.

    Args:
        inputs: what the run is made of.
        store: where results are kept.
        before_work: called once, before the first stage that is not in the store.
        observe: told what happens.
    """

    def __init__(
        self, inputs: Inputs, store: Store, before_work: Callable[[], None], observe: Callable[[Event], None]
    ) -> None:
        self.inputs = inputs
        self.store = store
        self.observe = observe
        self.done: dict[str, Done] = {}
        self._before_work: Callable[[], None] | None = before_work

    def key(self, node: plan.Node) -> str | None:
        """The node's key; None while its parent is not done."""
        if node.parent is not None and node.parent not in self.done:
            return None
        return self.inputs.key(node, self._parent(node), self._original(node))

    def look_up(self, node: plan.Node) -> Done | None:
        """The node's result, if the store has it."""
        started = time.monotonic()
        key = self.key(node)
        record = self.store.record(key) if key is not None else None
        if record is None:
            return None
        renamed = record.model_copy(update={"name": node.name})
        self.done[node.id] = Done(renamed, cached=True, seconds=time.monotonic() - started)
        return self.done[node.id]

    def do(self, node: plan.Node) -> Done:
        """The node's result, from the store or by doing the stage.

        Raises:
            LatheError: see `runner.run_stage`.
        """
        found = self.look_up(node)
        if found is not None:
            return found
        key = self.key(node)
        if key is None:
            raise ValueError(f"{node.id} comes before its parent {node.parent}")
        if self._before_work is not None:
            self._before_work()
            self._before_work = None
        with self.store.lock(key, lambda: self.observe(StageWaiting(id=node.id))):
            return self.look_up(node) or self._run(node, key)

    def _run(self, node: plan.Node, key: str) -> Done:
        started = time.monotonic()
        self.observe(StageStarted(id=node.id, resumed=self.store.checkpoints(key).exist()))

        def tell(message: wire.Message) -> None:
            if message.fraction is not None:
                self.observe(_progress(node.id, message, time.monotonic() - started))

        with self.store.workdir() as scratch:
            runner.run_stage(self._request(node, key), self.store.uri, scratch, tell)
        record = self.store.record(key)
        if record is None:
            raise ValueError(f"{node.id} ended well but left no record in {self.store.uri}")
        self.done[node.id] = Done(record, cached=False, seconds=time.monotonic() - started)
        return self.done[node.id]

    def _request(self, node: plan.Node, key: str) -> StageRequest:
        spec = self.inputs.document.spec
        places = {f: PinnedLocation(uri=p.uri, digest=p.digest) for f, p in self.inputs.locations.items()}
        return StageRequest(
            key=key,
            name=node.name,
            type=node.type,
            index=node.index,
            stage=node.stage,
            model=spec.model,
            objective=spec.objective,
            data=spec.data,
            locations=places,
            input=self._parent(node),
            original=self._original(node),
            seed=self.inputs.seed,
            hardware=node.hardware,
            threads=runner.threads_of(node.stage.resources if node.stage is not None else None),
            versions=dict(self.inputs.versions),
            key_fields=plain(self.inputs.key_fields(node, self._parent(node), self._original(node))),
        )

    def _parent(self, node: plan.Node) -> ArtifactManifest | None:
        return self.done[node.parent].record.artifact if node.parent is not None else None

    def _original(self, node: plan.Node) -> ArtifactManifest | None:
        return self.done["import"].record.artifact if node.parent is not None else None


def _progress(node: str, message: wire.Message, elapsed: float) -> StageProgress:
    fraction = message.fraction or 0.0
    eta = elapsed * (1 - fraction) / fraction if fraction > ETA_FRACTION else None
    return StageProgress(
        id=node,
        percent=100 * fraction,
        step=message.step,
        epoch=message.epoch,
        epochs=message.epochs,
        loss=message.loss,
        eta_seconds=eta,
    )
