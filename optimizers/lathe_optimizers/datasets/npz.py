"""npz files: arrays by name, never pickled objects."""

import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from lathe_api.data import DataSource
from lathe_optimizers.context import Array
from lathe_optimizers.datasets.sources import ArrayDataset
from lathe_optimizers.errors import InputError, UnsafeFileError

MAX_RATIO: Final = 200
"""Largest compression ratio of an entry past `SMALL` bytes; deflate cannot do better than about 1000."""
SMALL: Final = 1 << 26


def open_npz(field: str, source: DataSource, path: Path) -> ArrayDataset:
    """The declared arrays of a file.

    Raises:
        InputError: an array is missing, or the file is no npz.
        UnsafeFileError: an array holds Python objects, or unpacks to far more than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.file_size > max(SMALL, MAX_RATIO * entry.compress_size):
                    raise UnsafeFileError(
                        field,
                        f"{path.name}: {entry.filename} unpacks from {entry.compress_size} to {entry.file_size} bytes",
                        "Write the file by numpy.savez",
                    )
        with np.load(path, allow_pickle=False) as file:
            wanted = [*((f"inputs[{i}].field", item.field) for i, item in enumerate(source.inputs))]
            for place, name in [*wanted, ("target", source.target)]:
                if name not in file.files:
                    raise InputError(
                        f"{field}.{place}",
                        f"{path.name} has no array {name!r}",
                        f"Write one of its arrays: {', '.join(sorted(file.files)) or 'there are none'}",
                    )
            arrays: dict[str, Array] = {item.name: file[item.field] for item in source.inputs}
            return ArrayDataset(field, arrays, file[source.target])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, MemoryError) as error:
        raise InputError(field, f"{path.name} is no npz file ({error})", "Write the file by numpy.savez") from error
    except ValueError as error:
        raise UnsafeFileError(
            field, f"{path.name} holds Python objects or is damaged ({error})", "Write plain arrays by numpy.savez"
        ) from error
