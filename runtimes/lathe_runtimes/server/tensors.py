"""Tensors of requests and answers: raw bytes and lists of values to arrays, and back."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from lathe_runtimes.datatypes import Array, Datatype, decode_bytes, encode_bytes
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.model import Tensor

MAX_DIMS: Final = 32
VIEW_BYTES: Final = 1 << 16
"""Smaller outputs are copied: several small writes cost more than one copy."""
_KINDS: Final = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "O": "OUS"}
"""Kinds of numpy arrays that the values of a datatype may come in."""


def from_raw(tensor: Tensor, shape: tuple[int, ...], data: memoryview) -> Array:
    """Tensor as a view of raw bytes (little-endian, row-major).

    Raises:
        RequestError: the number of bytes does not fit the shape.
    """
    datatype = tensor.datatype
    count = math.prod(shape)
    if datatype.name == "BYTES":
        try:
            elements = decode_bytes(data)
        except ValueError as error:
            raise RequestError(f"input {tensor.name!r}: {error}") from error
        return text_tensor(tensor.name, shape, elements)
    dtype = _dtype(datatype)
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            f"input {tensor.name!r} has {len(data)} bytes, but the shape {list(shape)} of {datatype.name} "
            f"needs {count * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def from_values(tensor: Tensor, shape: tuple[int, ...], values: Any) -> Array:
    """Tensor out of a (nested) list of numbers.

    Raises:
        RequestError: values are of the wrong kind, out of range, or too few or many.
    """
    datatype = tensor.datatype
    dtype = _dtype(datatype)
    try:
        # Without the hint numpy turns unsigned numbers above 2**63 into floats, and rounds them.
        found = np.asarray(values, np.object_ if dtype == np.uint64 else None)
        if dtype == np.uint64 and all(type(value) is int for value in found.flat):
            found = found.astype(np.uint64)
        if not found.size:  # an empty list has no kind of its own
            found = found.astype(dtype)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"input {tensor.name!r}: 'data' is no regular list of values: {error}") from error
    if found.dtype.kind not in _KINDS[dtype.kind]:
        raise RequestError(f"input {tensor.name!r}: 'data' does not hold {datatype.name} values")
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        if found.min() < limits.min or found.max() > limits.max:
            raise RequestError(f"input {tensor.name!r}: a value is out of the range of {datatype.name}")
    if found.size != math.prod(shape):
        raise RequestError(f"input {tensor.name!r} has {found.size} values, but its shape is {list(shape)}")
    with np.errstate(over="ignore"):  # too large for the type becomes infinite, as in C
        return np.ascontiguousarray(found.reshape(shape), dtype)


def text_tensor(name: str, shape: tuple[int, ...], elements: Sequence[str]) -> Array:
    """BYTES tensor: an object array of str.

    Raises:
        RequestError: there are too few or too many.
    """
    if len(elements) != math.prod(shape):
        raise RequestError(f"input {name!r} has {len(elements)} elements, but its shape is {list(shape)}")
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def to_raw(array: Array) -> bytes | memoryview:
    """Elements in row-major order, little-endian; a view where a copy would cost."""
    if array.dtype.kind == "O":
        return encode_bytes(array.ravel())
    if array.nbytes < VIEW_BYTES or not array.flags.c_contiguous:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def _dtype(datatype: Datatype) -> np.dtype[Any]:
    if datatype.dtype is None:  # such models are refused when they are loaded
        raise RequestError(f"datatype {datatype.name} is not served", Kind.UNSUPPORTED)
    return datatype.dtype
