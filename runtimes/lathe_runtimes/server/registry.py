"""The models that are served, by name and version. Names of requests are looked up here, never used as paths."""

from collections.abc import Callable, Iterable, Sequence

from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.model import Model


class Registry:
    """What is served now. All methods are called on the event loop; each takes effect between two requests."""

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        self._watchers: list[Callable[[Model], None]] = []
        for model in models:
            self._models.setdefault(model.name, {})[model.version] = model

    def find(self, name: str, version: str = "") -> Model:
        """The model; without a version the newest that is served.

        Raises:
            RequestError: unknown model or version.
        """
        versions = self._models.get(name)
        if versions is None:
            raise RequestError(f"Request for unknown model: {name!r} is not found", Kind.NOT_FOUND)
        if not version:
            return next(reversed(versions.values()))
        check_version(version)
        model = versions.get(version)
        if model is None:
            raise RequestError(f"Request for unknown model: {name!r} version {version} is not found", Kind.NOT_FOUND)
        return model

    def versions(self, name: str) -> tuple[str, ...]:
        """Versions that are served, ascending."""
        return tuple(self._models.get(name, ()))

    def all(self) -> tuple[Model, ...]:
        """Every version of every model."""
        return tuple(model for versions in self._models.values() for model in versions.values())

    def of(self, name: str) -> tuple[Model, ...]:
        """Every version of one model, ascending; empty when none is served."""
        return tuple(self._models.get(name, {}).values())

    def watch(self, retired: Callable[[Model], None]) -> None:
        """Have every model that is no longer served told to `retired`."""
        self._watchers.append(retired)

    def replace(self, name: str, models: Sequence[Model]) -> None:
        """Serve exactly these versions of a model, ascending; the others answer what they have queued, and close."""
        old = self.of(name)
        if models:
            self._models[name] = {model.version: model for model in models}
        else:
            self._models.pop(name, None)
        for model in old:
            if model not in models:
                for retired in self._watchers:
                    retired(model)
                model.engine.close()


def check_version(version: str) -> None:
    """Refuse what is no number.

    Raises:
        RequestError: as said.
    """
    if not (version.isascii() and version.isdigit()):
        raise RequestError(f"model version {version[:40]!r} is no number")
