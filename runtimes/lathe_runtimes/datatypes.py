"""Tensor datatypes under their three names: Open Inference Protocol, Triton configuration, numpy.

Names and sizes follow the tensor data section of the Open Inference Protocol V2; BYTES elements are a little-endian
uint32 length followed by the bytes.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

Array = NDArray[Any]


@dataclass(frozen=True)
class Datatype:
    """One element type."""

    name: str
    """In the protocol: FP32, INT64, BYTES, …"""
    config: int
    """Number of Triton's `TYPE_…` in `config.pbtxt`."""
    dtype: np.dtype[Any] | None
    """In numpy; object (of str) for BYTES; None where numpy has no such type."""
    contents: str | None
    """Field of a gRPC `InferTensorContents`; None where values travel as raw bytes only."""


def _row(name: str, config: str, dtype: Any, contents: str | None) -> Datatype:
    number = model_config_pb2.DataType.Value(config)
    return Datatype(name, number, None if dtype is None else np.dtype(dtype), contents)


_ROWS: Final = (
    _row("BOOL", "TYPE_BOOL", np.bool_, "bool_contents"),
    _row("UINT8", "TYPE_UINT8", np.uint8, "uint_contents"),
    _row("UINT16", "TYPE_UINT16", np.uint16, "uint_contents"),
    _row("UINT32", "TYPE_UINT32", np.uint32, "uint_contents"),
    _row("UINT64", "TYPE_UINT64", np.uint64, "uint64_contents"),
    _row("INT8", "TYPE_INT8", np.int8, "int_contents"),
    _row("INT16", "TYPE_INT16", np.int16, "int_contents"),
    _row("INT32", "TYPE_INT32", np.int32, "int_contents"),
    _row("INT64", "TYPE_INT64", np.int64, "int64_contents"),
    _row("FP16", "TYPE_FP16", np.float16, None),
    _row("FP32", "TYPE_FP32", np.float32, "fp32_contents"),
    _row("FP64", "TYPE_FP64", np.float64, "fp64_contents"),
    _row("BYTES", "TYPE_STRING", np.object_, "bytes_contents"),
    _row("BF16", "TYPE_BF16", None, None),
)
DATATYPES: Final = {row.name: row for row in _ROWS}
BY_CONFIG: Final = {row.config: row for row in _ROWS}

_LENGTH: Final = struct.Struct("<I")


def encode_bytes(elements: Iterable[object]) -> bytes:
    """BYTES tensor as sent: every element (str or bytes) behind its length."""
    parts: list[bytes] = []
    for element in elements:
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def decode_bytes(data: memoryview) -> list[str]:
    """Elements of a BYTES tensor as text.

    Raises:
        ValueError: a length points past the end, or an element is no UTF-8 (ONNX strings are UTF-8).
    """
    elements: list[str] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError(f"{len(data) - at} bytes are left where a 4-byte length is due")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            raise ValueError(f"an element of {size} bytes is announced, {len(data) - at} are left")
        elements.append(str(data[at : at + size], "utf-8"))
        at += size
    return elements
