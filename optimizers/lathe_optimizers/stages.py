"""Does the stages of a plan: looks each up in the store, or runs it in a process of its own."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lathe_api.canonical import digest_of, plain
from lathe_api.events import Event, StageProgress, StageStarted, StageWaiting
from lathe_api.gates import Gate
from lathe_api.manifest import ArtifactManifest, StageRecord
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.searchresult import TrialCheck
from lathe_optimizers import plan, runner, wire
from lathe_optimizers.locations import Location, digests
from lathe_optimizers.request import PinnedLocation, Purpose, StageRequest, TrialChecks
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
class Attempt:
    """A stage of a trial."""

    done: Done | None
    """None where it was made only, or stopped."""
    stopped: wire.Stopped | None
    spent: Mapping[TrialCheck, float]
    """Seconds on each check."""
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
        self._made: dict[str, ArtifactManifest] = {}
        self._before_work: Callable[[], None] | None = before_work

    def key(self, node: plan.Node) -> str | None:
        """The node's key; None while its parent is not done."""
        if node.parent is not None and node.parent not in self.done and node.parent not in self._made:
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
        key = self._needed_key(node)
        with self.store.lock(key, lambda: self.observe(StageWaiting(id=node.id))):
            return self.look_up(node) or self._run(node, key)

    def attempt(self, node: plan.Node, gates: tuple[Gate, ...], *, measured: bool) -> Attempt:
        """The node as a trial of a search does it: made only, or given up at the first check that fails.

        Args:
            node: its parents are done or attempted, the import is done.
            gates: that speak after it.
            measured: whether it is measured, by the checks of a trial; else it is made only.

        Raises:
            LatheError: see `runner.run_stage`.
        """
        started = time.monotonic()
        found = self.look_up(node)
        if found is not None:
            return Attempt(found, None, {}, found.seconds)
        key = self._needed_key(node)
        if not measured and self._take_made(node, key):
            return Attempt(None, None, {}, time.monotonic() - started)
        checks = self._checks(node, gates) if measured else None
        said: list[wire.Message] = []
        with self.store.lock(key, lambda: self.observe(StageWaiting(id=node.id))):
            if self.look_up(node) is None and (measured or not self._take_made(node, key)):
                purpose = Purpose.TRY if measured else Purpose.MAKE
                self._start(node, self._request(node, key, purpose, checks), said.append)
                if not measured and not self._take_made(node, key):
                    raise ValueError(f"{node.id} ended well but left nothing in {self.store.uri}")
        stopped = next((m.stopped for m in said if m.stopped is not None), None)
        spent = next((m.spent for m in said if m.spent is not None), {})
        done = self.look_up(node) if measured else None
        if measured and done is None and stopped is None:
            raise ValueError(f"{node.id} ended well but left no record in {self.store.uri}")
        return Attempt(done, stopped, spent, time.monotonic() - started)

    def _take_made(self, node: plan.Node, key: str) -> bool:
        made = self.store.made(key)
        if made is not None:
            self._made[node.id] = made.artifact
        return made is not None

    def _checks(self, node: plan.Node, gates: tuple[Gate, ...]) -> TrialChecks:
        previous = self.done.get(node.parent or "")
        return TrialChecks(
            target=node.targets[0].name,
            gates=gates,
            original=self.done["import"].record.key,
            previous=None if previous is None else previous.record.key,
        )

    def _needed_key(self, node: plan.Node) -> str:
        """The key of a stage that is about to be done."""
        key = self.key(node)
        if key is None:
            raise ValueError(f"{node.id} comes before its parent {node.parent}")
        if self._before_work is not None:
            self._before_work()
            self._before_work = None
        return key

    def _start(self, node: plan.Node, request: StageRequest, told: Callable[[wire.Message], None]) -> None:
        started = time.monotonic()
        self.observe(StageStarted(id=node.id, resumed=self.store.checkpoints(request.key).exist()))

        def tell(message: wire.Message) -> None:
            told(message)
            if message.fraction is not None:
                self.observe(_progress(node.id, message, time.monotonic() - started))

        with self.store.workdir() as scratch:
            runner.run_stage(request, self.store.uri, scratch, tell)

    def _run(self, node: plan.Node, key: str) -> Done:
        started = time.monotonic()
        self._start(node, self._request(node, key), lambda _: None)
        record = self.store.record(key)
        if record is None:
            raise ValueError(f"{node.id} ended well but left no record in {self.store.uri}")
        self.done[node.id] = Done(record, cached=False, seconds=time.monotonic() - started)
        return self.done[node.id]

    def _request(
        self, node: plan.Node, key: str, purpose: Purpose = Purpose.FINISH, checks: TrialChecks | None = None
    ) -> StageRequest:
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
            purpose=purpose,
            checks=checks,
            key_fields=plain(self.inputs.key_fields(node, self._parent(node), self._original(node))),
        )

    def _parent(self, node: plan.Node) -> ArtifactManifest | None:
        if node.parent is None:
            return None
        done = self.done.get(node.parent)
        return done.record.artifact if done is not None else self._made[node.parent]

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
