"""The classification extension: the largest values of an output as `value:index` or `value:index:label`."""

from collections.abc import Sequence

import numpy as np

from lathe_runtimes.datatypes import Array
from lathe_runtimes.server.errors import RequestError


def classify(array: Array, count: int, labels: Sequence[str], *, batched: bool) -> Array:
    """Largest values first, of each sample where the model batches, else of the whole tensor.

    Args:
        array: an output.
        count: how many; all where there are fewer.
        labels: names of the classes; may be empty or too short.
        batched: whether the first dimension counts samples.

    Returns:
        Strings of shape (samples, count) or (count,), as Triton writes them.

    Raises:
        RequestError: the output holds no numbers.
    """
    if array.dtype.kind not in "iuf":
        raise RequestError(f"classification of {array.dtype} is not possible: ask for it on an output of numbers")
    rows = array.reshape(len(array), -1) if batched else array.reshape(1, -1)
    count = min(count, rows.shape[1])
    found = np.empty((len(rows), count), np.object_)
    for number, row in enumerate(rows):
        # Reversed twice, so that of equal values the first comes first, and unsigned numbers need no minus.
        order = (row.size - 1 - np.argsort(row[::-1], kind="stable"))[::-1][:count]
        found[number] = [_text(row[at], int(at), labels) for at in order]
    return found if batched else found.reshape(-1)


def _text(value: np.generic, at: int, labels: Sequence[str]) -> str:
    shown = f"{value:.6f}" if value.dtype.kind == "f" else str(value)
    return f"{shown}:{at}:{labels[at]}" if at < len(labels) and labels[at] else f"{shown}:{at}"
