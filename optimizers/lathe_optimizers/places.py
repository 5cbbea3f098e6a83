"""Where a store keeps its files: a local folder, or a prefix of an object store."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
from typing_extensions import override

from lathe_optimizers import files, remote
from lathe_optimizers.errors import StoreError


class Place(Protocol):
    """The few file operations the store needs."""

    def read(self, name: str) -> bytes | None:
        """Content of a file, or None."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file as a whole."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Copy a local file in, as a whole."""
        ...

    def local(self, name: str, digest: str) -> Path | None:
        """A local, verified copy of a file, or None where it is missing or its bytes do not have `digest`."""
        ...

    def has(self, name: str, digest: str, size: int) -> bool:
        """Whether a file is there and whole, as far as the place can tell without moving it."""
        ...

    def names(self, folder: str) -> tuple[str, ...]:
        """File names directly under a folder; none when it does not exist."""
        ...

    def drop(self, folder: str) -> None:
        """Remove a folder, if it is there."""
        ...

    def lock(self, name: str, waiting: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Hold the named lock; `waiting` is called once when somebody else holds it."""
        ...


class LocalPlace(Place):
    """A folder on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @override
    def read(self, name: str) -> bytes | None:
        path = self.root / name
        with files.explained(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    @override
    def write(self, name: str, data: bytes) -> None:
        files.write_file(self.root / name, data)

    @override
    def put(self, source: Path, name: str) -> None:
        with source.open("rb") as stream, files.written_aside(self.root / name) as target:
            files.copy_stream(stream, target)

    @override
    def local(self, name: str, digest: str) -> Path | None:
        path = self.root / name
        return path if path.is_file() and files.sha256_file(path) == digest else None

    @override
    def has(self, name: str, digest: str, size: int) -> bool:
        path = self.root / name
        return path.is_file() and path.stat().st_size == size and files.sha256_file(path) == digest

    @override
    def names(self, folder: str) -> tuple[str, ...]:
        path = self.root / folder
        return tuple(sorted(p.name for p in path.iterdir() if not p.name.startswith("."))) if path.is_dir() else ()

    @override
    def drop(self, folder: str) -> None:
        path = self.root / folder
        for name in self.names(folder):
            (path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.rmdir()

    @override
    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        path = self.root / name
        with files.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            # flock belongs to the open file: the kernel releases it when its holder dies, however it dies.
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class RemotePlace(Place):
    """A prefix of an object store, through fsspec. Writes are whole or absent, as object stores promise.

    Every operation raises StoreError where the object store refuses or does not answer.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        self.fs: Any
        # Other processes write to the same place: a listing that is kept would hide what they did.
        self.fs, self.prefix = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        self.uri = uri
        self.cache = cache

    def _path(self, name: str) -> str:
        return f"{self.prefix.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """The path to write to."""
        path = self._path(name)
        with remote.explained(self.uri):
            if not remote.is_object_store(self.fs):
                self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                yield path
            except FileNotFoundError as error:
                raise StoreError(f"{self.uri}: there is no such bucket. Make it, or write another store") from error

    @override
    def read(self, name: str) -> bytes | None:
        try:
            with remote.explained(self.uri):
                return bytes(self.fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    @override
    def write(self, name: str, data: bytes) -> None:
        with self._writing(name) as path:
            self.fs.pipe_file(path, data)

    @override
    def put(self, source: Path, name: str) -> None:
        with self._writing(name) as path:
            self.fs.put_file(str(source), path)

    @override
    def local(self, name: str, digest: str) -> Path | None:
        path = self.cache / digest.removeprefix("sha256:")
        if path.is_file() and files.sha256_file(path) == digest:
            return path
        try:
            with (
                remote.explained(self.uri),
                self.fs.open(self._path(name), "rb") as source,
                files.written_aside(path) as target,
            ):
                found = files.copy_stream(source, target)
        except FileNotFoundError:
            return None
        return path if found == digest else None

    @override
    def has(self, name: str, digest: str, size: int) -> bool:
        del digest  # verified when the file is fetched
        try:
            with remote.explained(self.uri):
                return bool(self.fs.info(self._path(name))["size"] == size)
        except FileNotFoundError:
            return False

    @override
    def names(self, folder: str) -> tuple[str, ...]:
        try:
            with remote.explained(self.uri):
                found = self.fs.ls(self._path(folder), detail=False)
            return tuple(sorted(str(p).rpartition("/")[2] for p in found))
        except FileNotFoundError:
            return ()

    @override
    def drop(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError), remote.explained(self.uri):
            self.fs.rm(self._path(folder), recursive=True)

    @override
    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        del name, waiting
        yield
