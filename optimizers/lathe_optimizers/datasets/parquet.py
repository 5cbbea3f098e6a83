"""Parquet files: numeric columns, and lists of equal length as tensors."""

from pathlib import Path
from typing import Any

import numpy as np

from lathe_api.data import DataSource
from lathe_optimizers.context import Array
from lathe_optimizers.datasets.sources import ArrayDataset
from lathe_optimizers.errors import InputError


def open_parquet(field: str, source: DataSource, path: Path) -> ArrayDataset:
    """The declared columns of a file.

    Raises:
        InputError: a column is missing, has empty values, or is not numeric; or pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(field, "reading Parquet needs pyarrow", 'Install "lathe-platform[data]"') from error
    names = {item.name: (f"inputs[{i}].field", item.field) for i, item in enumerate(source.inputs)}
    try:
        file = parquet.ParquetFile(path)
        known = set(file.schema_arrow.names)
        for place, column in [*names.values(), ("target", source.target)]:
            if column not in known:
                raise InputError(
                    f"{field}.{place}",
                    f"{path.name} has no column {column!r}",
                    f"Write one of its columns: {', '.join(sorted(known))}",
                )
        table = file.read(columns=sorted({column for _, column in names.values()} | {source.target}))
    except (ArrowException, OSError) as error:
        raise InputError(field, f"{path.name} is no Parquet file ({error})", "Check the file") from error
    inputs = {name: _tensor(f"{field}.{place}", table[column]) for name, (place, column) in names.items()}
    return ArrayDataset(field, inputs, _tensor(f"{field}.target", table[source.target]))


def _tensor(field: str, column: Any) -> Array:
    """A column as an array: numbers (rows,), or nested lists of equal length (rows, …)."""
    from pyarrow import types

    if column.null_count:
        raise InputError(field, f"{column.null_count} rows are empty", "Fill or drop them")
    shape, values = [len(column)], column.combine_chunks()
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        flat = values.flatten()
        rows = max(len(values), 1)
        lengths = {len(flat) // rows} if types.is_fixed_size_list(values.type) else set(np.diff(values.offsets))
        if len(lengths) > 1:
            raise InputError(field, f"its lists have {len(lengths)} different lengths", "Pad them to one length")
        shape.append(int(lengths.pop()) if lengths else 0)
        values = flat
    if not (types.is_integer(values.type) or types.is_floating(values.type) or types.is_boolean(values.type)):
        raise InputError(field, f"its values are {values.type}", "Give numbers, or lists of numbers of equal length")
    array: Array = values.to_numpy(zero_copy_only=False).reshape(shape)
    return array
