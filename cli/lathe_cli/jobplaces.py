"""Where a Job's pod finds things, and the document that its ModelRevision stands for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from lathe_api import wiring
from lathe_api.base import API_VERSION
from lathe_api.errors import DocumentError
from lathe_api.explain import unplaced
from lathe_api.modelrevision import ModelRevision
from lathe_api.optimizedmodel import OptimizedModel
from lathe_operator.plan.resolve import places
from lathe_optimizers.errors import InputError

ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts token and certificate authority of a pod's service account."""
PVC: Final = "pvc://"


@dataclass(frozen=True)
class Places:
    """Folders and files of a Job's pod. Each may be moved by a variable, to run a revision by hand."""

    volumes: Path = Path(wiring.VOLUMES)
    """`LATHE_VOLUMES`: holds a folder for each claim."""
    scratch: Path = Path(wiring.SCRATCH)
    """`LATHE_SCRATCH`: writable, lost with the pod."""
    account: Path = Path(ACCOUNT)
    """`LATHE_ACCOUNT`: service account of the pod."""

    def path(self, uri: str, field: str) -> str:
        """What to open for a URI of a revision.

        Raises:
            InputError: a `pvc://` URI names no place in a volume.
        """
        try:
            found = wiring.pod_path(uri)
        except ValueError as error:
            raise InputError(field, str(error), "Write pvc://claim/path") from error
        return f"{self.volumes}{found.removeprefix(wiring.VOLUMES)}" if uri.startswith(PVC) else found

    def revealed(self, text: str) -> str:
        """A message with `pvc://claim/path` in the place of the pod's paths, which nobody outside it knows."""
        return text.replace(f"{self.volumes}/", PVC)


def of_environment(environment: Mapping[str, str]) -> Places:
    """The places that the variables give."""
    return Places(
        volumes=Path(environment.get("LATHE_VOLUMES") or wiring.VOLUMES),
        scratch=Path(environment.get("LATHE_SCRATCH") or wiring.SCRATCH),
        account=Path(environment.get("LATHE_ACCOUNT") or ACCOUNT),
    )


def read_revision(path: Path) -> ModelRevision:
    """The revision that a file holds.

    Raises:
        InputError: the file cannot be read.
        DocumentError: it is no ModelRevision.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "Name the file of a ModelRevision") from error
    try:
        return ModelRevision.model_validate_json(data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise DocumentError(unplaced(error, ModelRevision, str(path))) from error


def document_of(revision: ModelRevision, where: Places) -> OptimizedModel:
    """The document to run: every place as this pod opens it.

    Raises:
        InputError: a place cannot be opened here.
    """
    spec = revision.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    for field, block in places(spec):
        block["uri"] = where.path(block["uri"], f"{field}.uri")
    value: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "OptimizedModel",
        "metadata": {"name": revision.spec.model_ref.name},
        "spec": {
            **{
                key: spec[key]
                for key in ("model", "data", "objective", "search", "gates", "targets", "seed")
                if key in spec
            },
            "recipe": {"stages": spec["stages"]},
        },
    }
    return OptimizedModel.model_validate(value, by_alias=True, by_name=False)


def sources_of(revision: ModelRevision) -> dict[str, str]:
    """URI of every file that a revision reads, as written, by field path."""
    spec = revision.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {field: str(block["uri"]) for field, block in places(spec)}


LONGEST_REASON: Final = 4096
"""Bytes that Kubernetes reads."""


def leave_reason(text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Write why this process ends to where Kubernetes reads it (`LATHE_TERMINATION_LOG`), if there is such a file."""
    path = Path(environment.get("LATHE_TERMINATION_LOG") or wiring.TERMINATION_LOG)
    try:
        # Never made: outside of a pod there is none.
        with path.open("r+b") as stream:
            stream.truncate()
            stream.write(of_environment(environment).revealed(text).encode()[:LONGEST_REASON])
    except OSError:
        return
