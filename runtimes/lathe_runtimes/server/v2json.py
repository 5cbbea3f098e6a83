"""HTTP bodies of the Open Inference Protocol V2, with the binary tensor extension."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lathe_runtimes.datatypes import Array, Datatype, decode_bytes, encode_bytes
from lathe_runtimes.server.errors import Kind, RequestError
from lathe_runtimes.server.model import Model, Tensor

MAX_DIMS: Final = 32
VIEW_BYTES: Final = 1 << 16
"""Smaller outputs are copied: several small writes cost more than one copy."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request, checked against its model as far as names, datatypes and sizes go."""

    id: str
    arrays: Mapping[str, Array]
    """Tensors by input name; views of the body wherever the datatype allows."""
    outputs: tuple[int, ...]
    """Positions of the wanted outputs."""
    binary: tuple[bool, ...]
    """For each of them, whether it is sent as raw bytes behind the JSON."""


def read_request(model: Model, body: memoryview, json_size: int | None) -> InferRequest:
    """Request out of a body.

    Args:
        model: the model that is asked.
        body: the body; tensors become views of it.
        json_size: value of Inference-Header-Content-Length; None when the whole body is JSON.

    Raises:
        RequestError: the body is no valid request for this model.
    """
    if json_size is not None and json_size > len(body):
        raise RequestError(f"Inference-Header-Content-Length is {json_size}, but the body has {len(body)} bytes only")
    head = read_json(body if json_size is None else body[:json_size])
    inputs = _objects(head, "inputs")
    if not inputs:
        raise RequestError("the request has no 'inputs'")
    at = len(body) if json_size is None else json_size
    arrays: dict[str, Array] = {}
    for given in inputs:
        name = given.get("name")
        if not isinstance(name, str):
            raise RequestError("every input needs a 'name' (a string)")
        tensor = model.tensor(name, given.get("datatype"))
        if name in arrays:
            raise RequestError(f"input {name!r} is given twice")
        shape = _shape(name, given.get("shape"))
        size = _binary_size(name, given)
        if size is None:
            arrays[name] = _from_json(tensor, shape, given.get("data"))
            continue
        if at + size > len(body):
            raise RequestError(
                f"input {name!r} announces {size} bytes (binary_data_size), but {len(body) - at} are left in the body"
            )
        arrays[name] = from_raw(tensor, shape, body[at : at + size])
        at += size
    if at != len(body):
        raise RequestError(f"{len(body) - at} bytes of the body belong to no input")
    return _with_outputs(model, head, arrays)


def read_json(data: memoryview) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: it is none.
    """
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError; depth ends in a RecursionError
        raise RequestError(f"the request is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the request must be a JSON object; found {type(found).__name__}")
    return found


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
        return _text(tensor.name, shape, elements)
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


def _dtype(datatype: Datatype) -> np.dtype[Any]:
    if datatype.dtype is None:  # such models are refused when they are loaded
        raise RequestError(f"datatype {datatype.name} is not served", Kind.UNSUPPORTED)
    return datatype.dtype


_KINDS: Final = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "O": "OUS"}


def text_tensor(name: str, shape: tuple[int, ...], elements: Sequence[str]) -> Array:
    """BYTES tensor: an object array of str."""
    return _text(name, shape, elements)


def _text(name: str, shape: tuple[int, ...], elements: Sequence[str]) -> Array:
    if len(elements) != math.prod(shape):
        raise RequestError(f"input {name!r} has {len(elements)} elements, but its shape is {list(shape)}")
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _from_json(tensor: Tensor, shape: tuple[int, ...], data: Any) -> Array:
    if not isinstance(data, list):
        raise RequestError(
            f"input {tensor.name!r} needs 'data' (a list), or 'parameters': {{'binary_data_size': N}} and its bytes "
            "behind the JSON"
        )
    if tensor.datatype.name != "BYTES":
        return from_values(tensor, shape, data)
    flat: list[str] = []
    pending = [iter(data)]
    while pending:  # no recursion: depth is the client's choice
        for element in pending[-1]:
            if isinstance(element, list):
                pending.append(iter(element))
                break
            if not isinstance(element, str):
                raise RequestError(f"input {tensor.name!r}: BYTES data are strings; found {element!r:.80}")
            flat.append(element)
        else:
            pending.pop()
    return _text(tensor.name, shape, flat)


def _objects(head: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = head.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise RequestError(f"{key!r} must be a list of objects")
    return found


def _parameters(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = given.get("parameters", {})
    if not isinstance(found, dict):
        raise RequestError(f"'parameters' of {where} must be an object")
    for key in ("shared_memory_region", "classification"):
        if key in found:
            raise RequestError(f"{where}: parameter {key!r} is not supported by this server")
    return found


def _shape(name: str, found: Any) -> tuple[int, ...]:
    if (
        not isinstance(found, list)
        or len(found) > MAX_DIMS
        or not all(type(size) is int and 0 <= size < 2**31 for size in found)
    ):
        raise RequestError(f"input {name!r}: 'shape' must be a list of at most {MAX_DIMS} whole numbers of 0 or more")
    return tuple(found)


def _binary_size(name: str, given: Mapping[str, Any]) -> int | None:
    size = _parameters(given, f"input {name!r}").get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(f"input {name!r}: 'binary_data_size' must be a whole number; found {size!r:.80}")
    if size is not None and "data" in given:
        raise RequestError(f"input {name!r} has both 'data' and 'binary_data_size'")
    return size


def _with_outputs(model: Model, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> InferRequest:
    identity = head.get("id", "")
    if not isinstance(identity, str):
        raise RequestError("'id' must be a string")
    default = _parameters(head, "the request").get("binary_data_output", False) is True
    outputs = _objects(head, "outputs")
    if not outputs:
        positions = model.wanted(())
        return InferRequest(identity, arrays, positions, (default,) * len(positions))
    names = [str(entry.get("name")) for entry in outputs]
    binary = tuple(
        _parameters(entry, f"output {name!r}").get("binary_data", default) is True
        for name, entry in zip(names, outputs, strict=True)
    )
    return InferRequest(identity, arrays, model.wanted(names), binary)


def write_response(model: Model, request: InferRequest, results: Sequence[Array]) -> tuple[bytes, list[Any]]:
    """JSON part of an answer, and the raw tensors behind it (buffers, in order)."""
    outputs: list[dict[str, Any]] = []
    blobs: list[Any] = []
    for at, binary in zip(request.outputs, request.binary, strict=True):
        tensor = model.outputs[at]
        array = model.outer(at, results[at])
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype.name, "shape": array.shape}
        if binary:
            blob = to_raw(array)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = [
                item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in array.ravel().tolist()
            ]
        outputs.append(entry)
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.id:
        head["id"] = request.id
    return json.dumps(head, separators=(",", ":")).encode(), blobs


def to_raw(array: Array) -> bytes | memoryview:
    """Elements in row-major order, little-endian; a view where a copy would cost."""
    if array.dtype.kind == "O":
        return encode_bytes(array.ravel())
    if array.nbytes < VIEW_BYTES or not array.flags.c_contiguous:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def model_metadata(model: Model, versions: Sequence[str]) -> dict[str, Any]:
    """Answer of GET /v2/models/NAME; `properties` carries the digest of the artifact."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": model.config.platform,
        "inputs": [_described(tensor) for tensor in model.inputs.values()],
        "outputs": [_described(tensor) for tensor in model.outputs],
        "properties": {"lathe.digest": model.digest} if model.digest else {},
    }


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype.name, "shape": list(tensor.shape)}
