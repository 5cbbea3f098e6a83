"""Puts what a Job made where servers and people find it: model repositories and the report, in the store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lathe_api.manifest import StageRecord
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.summary import TargetResult, TargetState
from lathe_api.targets import ServingRuntime, Target
from lathe_api.wiring import REPOSITORIES
from lathe_cli.provenance import signing
from lathe_optimizers.errors import InputError
from lathe_optimizers.store import Store, local_path
from lathe_runtimes.modelconfig import Profile
from lathe_runtimes.provenance import Signer
from lathe_runtimes.repository import CONFIG, write_repository

REPORTS: Final = "reports"
"""Folder of the store: `reports/<revision>/report.html` and `summary.json`."""
BACKEND: Final = "LATHE_TRITON_BACKEND"
"""Variable: the backend of the Triton image, `onnxruntime` (the default), or `python` where it has no other."""


class Publisher:
    """Writes what belongs to a revision into its store.

    Args:
        store: as this process opens it.
        uri: of the store, as the revision names it.
        revision: name of the revision.
        document: what was asked for; its name is what clients call the model.
        backend: of the Triton image.
        signer: key that repositories are signed with, if any.
    """

    def __init__(
        self, store: str, uri: str, revision: str, document: OptimizedModel, backend: Profile, signer: Signer | None
    ) -> None:
        self._store = store
        self._uri = uri.rstrip("/")
        self._revision = revision
        self._document = document
        self._name = document.metadata.name
        self._signer = signer
        self._backend = backend
        self.repositories: dict[str, str] = {}
        """URI of the repository by target; each is complete."""

    def __call__(self, folder: Path, target: Target, result: TargetResult, record: StageRecord) -> TargetResult:
        """Write the repository of a built target; a `lathe_optimizers.run.Publish`.

        Raises:
            LatheRuntimeError, LatheError: the store refuses, or the model cannot be served that way.
        """
        if result.state is not TargetState.BUILT or result.artifact is None or result.model_file is None:
            return result
        place = f"{REPOSITORIES}/{self._revision}/{target.name}"
        path = local_path(self._store)
        root = path / place if path is not None else folder / "repositories" / target.name
        triton = target.serving.runtime is ServingRuntime.TRITON
        model = write_repository(
            root,
            name=self._name,
            onnx=folder / result.model_file,
            signature=record.artifact.signature,
            serving=target.serving,
            hardware=target.hardware,
            digest=result.artifact,
            profile=self._backend if triton else Profile.ONNXRUNTIME,
            sign=signing(self._signer, self._document, folder, target, result, record),
        )
        if path is None:
            self._upload(model, f"{place}/{self._name}")
        self.repositories[target.name] = f"{self._uri}/{place}"
        return result.model_copy(update={"repository": self.repositories[target.name]})

    def report(self, out: Path) -> str:
        """Keep the report of a run folder; its URI."""
        place = f"{REPORTS}/{self._revision}"
        store = Store(self._store)
        for name in ("summary.json", "report.html"):
            store.place.put(out / name, f"{place}/{name}")
        return f"{self._uri}/{place}/report.html"

    def _upload(self, model: Path, place: str) -> None:
        store = Store(self._store)
        # The configuration last: a model folder without one is no model yet.
        for path in sorted((p for p in model.rglob("*") if p.is_file()), key=lambda p: (p.name == CONFIG, p)):
            store.place.put(path, f"{place}/{path.relative_to(model).as_posix()}")


def backend_of(environment: Mapping[str, str]) -> Profile:
    """The backend of the Triton image.

    Raises:
        InputError: the variable names no backend.
    """
    given = environment.get(BACKEND) or Profile.ONNXRUNTIME.value
    try:
        return Profile(given)
    except ValueError as error:
        raise InputError(BACKEND, repr(given), f"Write one of {', '.join(Profile)}") from error
