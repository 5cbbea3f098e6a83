"""Object stores, as fsspec reaches them: what sets them apart from folders, and what their refusals mean."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, Final

from lathe_optimizers.errors import LatheError, StoreError

OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"})
"""Protocols without folders: asked to make one, their clients would make a bucket."""


def is_object_store(fs: Any) -> bool:
    """Whether a file system of fsspec has buckets and keys in the place of folders and files."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not OBJECT_STORES.isdisjoint(protocols)


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a refusal or a missing answer into a StoreError that says what to do.

    FileNotFoundError passes, and so does what the local disk refuses.

    Raises:
        StoreError: as said.
    """
    try:
        yield
    except (LatheError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise StoreError(
            f"{uri}: access is denied ({_words(error)}). Check the keys in the Secret of `spec.store.credentials` or "
            "in the environment, and that they may list, read and write"
        ) from error
    except Exception as error:  # the clients of object stores have no common class of errors
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise
        if type(error).__name__ in _NO_KEYS:
            raise StoreError(
                f"{uri}: there are no credentials. Name a Secret with them in `spec.store.credentials`, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        raise StoreError(
            f"{uri}: the object store does not answer as it should ({_words(error)}). Check its address "
            "(AWS_ENDPOINT_URL), and that it can be reached from here"
        ) from error


_LOCAL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_NO_KEYS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError"})


def _words(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
