"""Loading and unloading models while requests are answered: Triton's explicit model control, with a memory budget.

A model is loaded, warmed up and measured on a thread of its own while the versions it replaces go on answering; the
exchange itself happens between two requests. One load at a time, so that what a model takes can be measured.
"""

import asyncio
import ctypes
import gc
import logging
import os
from pathlib import Path
from typing import Final

from lathe_runtimes.errors import LatheRuntimeError
from lathe_runtimes.provenance import Verifier
from lathe_runtimes.repository import StoredModel, check_name, model_names, read_model
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.model import Model
from lathe_runtimes.server.registry import Registry

log = logging.getLogger(__name__)

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
UNLOADED: Final = "unloaded"


class ModelControl:
    """Loads and unloads the models of a repository.

    Args:
        root: the repository.
        registry: what is served.
        threads: cores that a model may use.
        explicit: whether clients may load and unload.
        verifier: serve only models whose provenance is signed with this key.
        budget: bytes that the models may take together; 0 for no limit. The least recently used idle ones make room.
    """

    def __init__(
        self,
        root: Path,
        registry: Registry,
        *,
        threads: int,
        explicit: bool = False,
        budget: int = 0,
        verifier: Verifier | None = None,
    ) -> None:
        self._root = root
        self._registry = registry
        self._threads = threads
        self._explicit = explicit
        self._budget = budget
        self._verifier = verifier
        self._one = asyncio.Lock()
        self._reasons: dict[tuple[str, str], str] = {}

    async def load(self, name: str) -> None:
        """Serve what the repository holds of a model now; what is served unchanged stays as it is.

        Raises:
            RequestError: clients may not load here, there is no such model, it cannot be served (the versions that
                were served before go on), or memory does not suffice.
        """
        self._permit()
        async with self._one:
            await self._load(name)

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests that are queued are answered. A model that is not served is no error.

        Raises:
            RequestError: clients may not unload here.
        """
        self._permit()
        async with self._one:
            self._retire(name, UNLOADED)
            await asyncio.to_thread(trim)

    async def start(self, stored: StoredModel) -> None:
        """Load one model at the start of the server.

        Raises:
            ModelLoadError: it cannot be served.
            RequestError: memory does not suffice.
        """
        async with self._one:
            await self._bring(stored)

    def index(self, *, ready: bool) -> list[dict[str, str]]:
        """What the repository holds and what of it is served, as Triton's index; or only what is served."""
        served = {(model.name, model.version) for model in self._registry.all()}
        rows = [{"name": name, "version": version, "state": "READY"} for name, version in served]
        if not ready:
            gone = {key: reason for key, reason in self._reasons.items() if key not in served}
            rows += [
                {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason}
                for (name, version), reason in gone.items()
            ]
            known = {row["name"] for row in rows}
            rows += [{"name": name} for name in model_names(self._root) if name not in known]
        return sorted(rows, key=lambda row: (row["name"], int(row.get("version", 0))))

    def _permit(self) -> None:
        if not self._explicit:
            raise RequestError(
                "explicit model load / unload is not allowed: start the server with --model-control explicit",
                Kind.UNAVAILABLE,
            )

    async def _load(self, name: str) -> None:
        try:
            check_name(name)
            stored = await asyncio.to_thread(read_model, self._root, name, self._verifier)
        except LatheRuntimeError as error:
            raise RequestError(f"failed to load {name[:200]!r}: {error}", Kind.INTERNAL) from error
        try:
            await self._bring(stored)
        except LatheRuntimeError as error:
            for version in stored.versions:
                self._reasons[name, str(version)] = str(error)
            raise RequestError(f"load failed for model {name!r}: {error}") from error

    async def _bring(self, stored: StoredModel) -> None:
        name = stored.config.name
        served = {model.version: model for model in self._registry.of(name)}
        models: list[Model] = []
        fresh: list[Model] = []
        loop = asyncio.get_running_loop()
        try:
            for version in stored.versions:
                kept = served.get(str(version))
                if kept is not None and await asyncio.to_thread(kept.same, stored, version):
                    models.append(kept)
                    continue
                made = await self._measured(stored, version, loop, keep={name})
                fresh.append(made)
                models.append(made)
        except BaseException:
            for model in fresh:
                model.engine.close()
            raise
        gone = set(served) - {model.version for model in models}
        self._reasons |= {(name, version): UNLOADED for version in gone}
        self._registry.replace(name, models)
        if gone or fresh:
            await asyncio.to_thread(trim)

    async def _measured(
        self, stored: StoredModel, version: int, loop: asyncio.AbstractEventLoop, keep: set[str]
    ) -> Model:
        await self._make_room(stored.size(version), keep, stored.config.name)
        before = resident_bytes()
        model = await asyncio.to_thread(Model, stored, version, threads=self._threads, loop=loop)
        # Other work may free memory meanwhile: a model takes at least its file, once for each session.
        model.footprint = max(resident_bytes() - before, stored.size(version))
        try:
            await self._make_room(model.footprint, keep, model.name)
        except RequestError:
            model.engine.close()
            raise
        return model

    async def _make_room(self, size: int, keep: set[str], name: str) -> None:
        if not self._budget:
            return
        while self.used_bytes() + size > self._budget:
            idle = [model for model in self._registry.all() if not model.engine.pending and model.name not in keep]
            if not idle:
                raise RequestError(
                    f"model {name!r} needs {size} bytes; the models in use take {self.used_bytes()} of the budget of "
                    f"{self._budget}. Unload one, or raise --memory-mib",
                    Kind.UNAVAILABLE,
                )
            oldest = min(idle, key=lambda model: model.engine.used)
            log.info("model %s version %s is unloaded to make room for %s", oldest.name, oldest.version, name)
            self._reasons[oldest.name, oldest.version] = "unloaded to make room in memory"
            left = [model for model in self._registry.of(oldest.name) if model is not oldest]
            self._registry.replace(oldest.name, left)
            await asyncio.to_thread(trim)

    def used_bytes(self) -> int:
        """What the served models were measured to take."""
        return sum(model.footprint for model in self._registry.all())

    def _retire(self, name: str, reason: str) -> None:
        for model in self._registry.of(name):
            self._reasons[name, model.version] = reason
        self._registry.replace(name, ())


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
