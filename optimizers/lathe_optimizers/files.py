"""Writing files so that a reader never sees half of one, on a local disk or any fsspec file system."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from lathe_optimizers.errors import StoreError

CHUNK: Final = 1 << 20
_ELSEWHERE: Final = "choose another place (--store or --out; in a cluster `spec.store.uri`)"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


@contextlib.contextmanager
def explained(path: object) -> Iterator[None]:
    """Turn a full disk or missing permission into a `StoreError` that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreError(f"{path}: no space left on the device. Free some space, or {_ELSEWHERE}") from error
        if error.errno in _REFUSED:
            why = f"{path}: not writable ({error.strerror})"
            raise StoreError(f"{why}. Let the user with the id {os.getuid()} write there, or {_ELSEWHERE}") from error
        raise


def sha256_file(path: Path) -> str:
    """`sha256:…` of a file's bytes, read in constant memory."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def copy_stream(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy and return `sha256:…` of what was copied."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        target.write(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content appears at `path` as a whole, on disk, or not at all.

    Raises:
        StoreError: no space or no permission; nothing is left behind.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
            fsync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, as a whole.

    Raises:
        StoreError: no space or no permission.
    """
    with written_aside(path) as stream:
        stream.write(data)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of `path`; the old content goes once the new one is there.

    Safe against another process that does the same at the same time: the last one stays.
    """
    with explained(path):
        while True:
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
            with contextlib.suppress(FileNotFoundError):
                path.rename(old)
            try:
                new.rename(path)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
            else:
                fsync_folder(path.parent)
                return
            finally:
                shutil.rmtree(old, ignore_errors=True)
