"""Content-addressed store of blobs and stage records at any fsspec URI.

::

    blobs/sha256/ab/ab12…        files named by their own digest
    stages/<key>/request.json    what was asked for
    stages/<key>/made.json       what a stage made for a trial of a search, before it was measured
    stages/<key>/stage.json      the record; written last, so that its presence proves that its blobs are whole
    searches/<key>/journal.log   the trials of a search
    checkpoints/<key>/<slot>     state of a stage that trains, between epochs
    locks/<key>                  held while a stage is done (local stores only)

Any number of processes may use one store at once. A local store makes a second process wait for the first one's
result. Object stores have no locks: there both do the work and write the same names, which is harmless because blobs
are named by content and a record replaces an equal one.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lathe_api.manifest import ArtifactManifest, Blob, MadeRecord, StageRecord
from lathe_optimizers import files
from lathe_optimizers.errors import InputError, StoreError
from lathe_optimizers.places import LocalPlace, Place, RemotePlace

STALE_SECONDS: Final = 24 * 3600.0


def _blob_name(digest: str) -> str:
    value = digest.removeprefix("sha256:")
    return f"blobs/sha256/{value[:2]}/{value}"


def _key(key: str) -> str:
    return key.removeprefix("sha256:")


class Store:
    """Blobs, stage records, checkpoints and locks of one store.

    Args:
        uri: a local path, `file://…`, or any URI that fsspec knows.
        cache: where a remote store's blobs are kept locally.
    """

    def __init__(self, uri: str, cache: Path | None = None) -> None:
        self.uri = uri
        path = local_path(uri)
        self.place: Place
        if path is not None:
            self.place = LocalPlace(path)
            self.scratch = path / "tmp"
        else:
            self.scratch = cache or Path(tempfile.gettempdir()) / f"lathe-cache-{os.getuid()}"
            try:
                self.place = RemotePlace(uri, self.scratch / "blobs")
            except (ImportError, ValueError) as error:
                raise InputError(
                    "--store", f"{uri} cannot be opened ({error})", "Write a folder or a known URI"
                ) from error

    def check(self) -> None:
        """Find out before the work whether its result can be kept.

        Raises:
            StoreError: a remote store refuses to write or does not answer.
        """
        if isinstance(self.place, RemotePlace):
            name = f"probes/{uuid.uuid4().hex}"
            self.place.write(f"{name}/empty", b"")
            self.place.drop(name)

    def put(self, source: Path) -> Blob:
        """Take a file in; the same bytes are kept once.

        Raises:
            StoreError: the store is full or not writable.
        """
        blob = Blob(digest=files.sha256_file(source), size=source.stat().st_size)
        name = _blob_name(blob.digest)
        if not self.place.has(name, blob.digest, blob.size):
            self.place.put(source, name)
        return blob

    def find(self, blob: Blob) -> Path | None:
        """A local path with exactly the blob's bytes, or None where the store has lost or damaged it."""
        return self.place.local(_blob_name(blob.digest), blob.digest)

    def get(self, blob: Blob) -> Path:
        """As `find`.

        Raises:
            StoreError: the blob is missing or damaged.
        """
        path = self.find(blob)
        if path is None:
            raise StoreError(f"store {self.uri}: {blob.digest} is missing or damaged. Run again to make it anew")
        return path

    def record(self, key: str) -> StageRecord | None:
        """The record of a finished stage, if it and every file it lists are whole."""
        record = self.peek(key)
        if record is None:
            return None
        return record if self._is_whole(record.artifact) and record.key == key else None

    def peek(self, key: str) -> StageRecord | None:
        """The record of a finished stage, whatever has become of the files that it lists."""
        data = self.place.read(f"stages/{_key(key)}/stage.json")
        if data is None:
            return None
        try:
            return StageRecord.model_validate_json(data)
        except ValidationError:
            return None  # written by another version, or damaged: the stage is done again

    def made(self, key: str) -> MadeRecord | None:
        """What a stage made that was not measured to the end, if every file of it is whole."""
        data = self.place.read(f"stages/{_key(key)}/made.json")
        if data is None:
            return None
        try:
            made = MadeRecord.model_validate_json(data)
        except ValidationError:
            return None
        return made if self._is_whole(made.artifact) else None

    def write_made(self, key: str, made: MadeRecord) -> None:
        """Keep what a stage made; its blobs must be there. Its checkpoints are dropped."""
        self.place.write(f"stages/{_key(key)}/made.json", made.model_dump_json(by_alias=True, indent=2).encode())
        self.place.drop(f"checkpoints/{_key(key)}")

    def _is_whole(self, artifact: ArtifactManifest) -> bool:
        blobs = artifact.files.values()
        return all(self.place.has(_blob_name(b.digest), b.digest, b.size) for b in blobs)

    def stages(self) -> tuple[str, ...]:
        """Keys of all stages that have left something."""
        return tuple(f"sha256:{name}" for name in self.place.names("stages"))

    def publish(self, record: StageRecord) -> None:
        """Write a stage's record; its blobs must be there. Its checkpoints are dropped."""
        text = record.model_dump_json(by_alias=True, indent=2)
        self.place.write(f"stages/{_key(record.key)}/stage.json", text.encode())
        self.place.drop(f"checkpoints/{_key(record.key)}")

    def write_request(self, key: str, text: str) -> None:
        """Keep what a stage was asked for, so that it can be done again."""
        self.place.write(f"stages/{_key(key)}/request.json", text.encode())

    def read_request(self, key: str) -> str | None:
        """What a stage was asked for, or None."""
        data = self.place.read(f"stages/{_key(key)}/request.json")
        return None if data is None else data.decode()

    def checkpoints(self, key: str) -> "StoredCheckpoints":
        """The checkpoint slots of a stage."""
        return StoredCheckpoints(self.place, f"checkpoints/{_key(key)}")

    def lock(self, key: str, waiting: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Held by the process that does a stage."""
        return self.place.lock(f"locks/{_key(key)}", waiting)

    @contextlib.contextmanager
    def workdir(self) -> Iterator[Path]:
        """A scratch folder on the store's disk, removed afterwards; leftovers of killed processes go after a day."""
        with files.explained(self.scratch):
            self.scratch.mkdir(parents=True, exist_ok=True)
            _sweep(self.scratch)
            folder = tempfile.TemporaryDirectory(prefix="work-", dir=self.scratch, ignore_cleanup_errors=True)
        with folder as path:
            yield Path(path)


class StoredCheckpoints:
    """Checkpoint slots in a store; see `lathe_optimizers.context.Checkpoints`."""

    def __init__(self, place: Place, folder: str) -> None:
        self.place = place
        self.folder = folder

    def save(self, name: str, data: bytes) -> None:
        """Replace a slot as a whole."""
        self.place.write(f"{self.folder}/{name}", data)

    def load(self, name: str) -> bytes | None:
        """Content of a slot, or None."""
        return self.place.read(f"{self.folder}/{name}")

    def exist(self) -> bool:
        """Whether an earlier, unfinished try left any."""
        return bool(self.place.names(self.folder))


def local_path(uri: str) -> Path | None:
    """The path that a URI without scheme, `file:path` or `file:///path` names; None for any other scheme."""
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    if uri.startswith("file:"):
        return Path(uri.removeprefix("file:"))
    return None if "://" in uri else Path(uri)


def _sweep(scratch: Path) -> None:
    limit = time.time() - STALE_SECONDS
    for path in scratch.glob("work-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)


def to_json(value: object) -> str:
    """Readable JSON with sorted keys, as records in a run folder are written."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
