"""Finds the files a document names, and pins them by digest."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec

from lathe_api.data import DataSource
from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.recipe import Distill, Stage
from lathe_optimizers import files, remote
from lathe_optimizers.errors import InputError
from lathe_optimizers.store import Store, local_path

MODEL: Final = "spec.model"
TRAIN: Final = "spec.data.train"
CALIBRATION: Final = "spec.data.calibration.source"
EVALUATION: Final = "spec.data.evaluation"


@dataclass(frozen=True)
class Location:
    """One input of a run, by content."""

    uri: str
    """Absolute local path, or a URI."""
    digest: str
    """sha256 of the file; of a folder, sha256 over the sorted lines `<sha256> <relative path>`."""


def locate(document: OptimizedModel, stages: tuple[Stage, ...], base: Path, store: Store) -> dict[str, Location]:
    """All files that a document names, by field path, each hashed and checked against a digest that is given.

    Raises:
        InputError: a file is missing or has another digest than the document says.
    """
    wanted: dict[str, tuple[str, str | None]] = {MODEL: (document.spec.model.uri, document.spec.model.digest)}
    for field, source in data_sources(document).items():
        wanted[field] = (source.uri, source.digest)
    for index, stage in enumerate(stages):
        if isinstance(stage.config, Distill) and stage.config.student.uri is not None:
            student = stage.config.student
            wanted[f"spec.recipe.stages[{index}].distill.student"] = (student.uri or "", student.digest)
    return {field: _pin(field, uri, digest, base, store) for field, (uri, digest) in wanted.items()}


def data_sources(document: OptimizedModel) -> dict[str, DataSource]:
    """The stored data sets of a document, by field path."""
    data = document.spec.data
    found = {TRAIN: data.train, CALIBRATION: data.calibration.source, EVALUATION: data.evaluation}
    return {field: source for field, source in found.items() if source is not None}


def absolute(uri: str, base: Path) -> str:
    """`uri` with a relative path taken from the folder of its document."""
    path = local_path(uri)
    return uri if path is None else str((base / path.expanduser()).resolve())


def fetch(location: Location, field: str, store: Store) -> Path:
    """A local path with the pinned content.

    Raises:
        InputError: the content is gone or is not what it was when the run started.
    """
    path = _local(location.uri, field, store)
    found = digest_of_path(path)
    if found != location.digest:
        raise InputError(
            field, f"{location.uri} changed while the run was using it ({found}, was {location.digest})", "Run again"
        )
    return path


def digest_of_path(path: Path) -> str:
    """Digest of a file, or of a folder by its sorted content (hidden files left out)."""
    if path.is_file():
        return files.sha256_file(path)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            total.update(f"{files.sha256_file(file).removeprefix('sha256:')} {name.as_posix()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def digests(locations: Mapping[str, Location]) -> dict[str, str]:
    """Digest by field."""
    return {field: location.digest for field, location in sorted(locations.items())}


def _pin(field: str, uri: str, digest: str | None, base: Path, store: Store) -> Location:
    full = absolute(uri, base)
    found = digest_of_path(_local(full, f"{field}.uri", store))
    if digest is not None and digest != found:
        raise InputError(
            f"{field}.digest",
            f"{full} has {found}, the document says {digest}",
            "Check that it is the right file, then write its digest, or leave the field out to record it",
        )
    return Location(full, found)


def _local(uri: str, field: str, store: Store) -> Path:
    path = local_path(uri)
    if path is None:
        return _download(uri, field, store)
    if not path.exists():
        raise InputError(field, f"there is nothing at {path}", "Write the path of an existing file")
    return path


def _download(uri: str, field: str, store: Store) -> Path:
    """A local copy, kept by the object's own version where the file system tells one."""
    try:
        fs: Any
        fs, name = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        with remote.explained(f"{field}: {uri}"):
            info = fs.info(name)
    except FileNotFoundError as error:
        raise InputError(field, f"there is nothing at {uri}", "Write the URI of an existing object") from error
    except (ImportError, ValueError) as error:
        raise InputError(field, f"{uri} cannot be read: {error}", "Install what the message names") from error
    version = next((str(info[k]) for k in ("ETag", "etag", "md5", "LastModified", "mtime") if info.get(k)), "")
    slot = hashlib.sha256(f"{uri}\n{version}\n{info.get('size')}".encode()).hexdigest()
    target = store.scratch / "inputs" / slot / Path(name).name
    if version and target.exists():
        return target
    with files.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.part")
        with remote.explained(f"{field}: {uri}"):
            fs.get(name, str(aside), recursive=info.get("type") == "directory")
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        aside.rename(target)
    return target
