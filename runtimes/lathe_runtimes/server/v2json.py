"""HTTP bodies of the Open Inference Protocol V2, with the binary tensor extension.

Clients repeat themselves: the JSON before binary tensors is the same in request after request, and so is the JSON of
the answers. Both are kept, so that a repeated call costs no parsing, checking or printing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from lathe_runtimes.datatypes import Array
from lathe_runtimes.server.errors import RequestError
from lathe_runtimes.server.model import Model, Tensor
from lathe_runtimes.server.tensors import MAX_DIMS, from_raw, from_values, text_tensor, to_raw

_KEPT: Final = 256
"""Request and answer headers that are kept for each model."""
_KEPT_BYTES: Final = 2048
"""Longer ones are not: they carry values."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the JSON of a request says, checked against its model as far as names, datatypes and outputs go."""

    id: str
    raw: tuple[tuple[Tensor, tuple[int, ...], int], ...]
    """Inputs whose bytes lie behind the JSON, in order: tensor, shape, bytes."""
    values: Mapping[str, Array]
    """Inputs whose values are in the JSON."""
    outputs: tuple[int, ...]
    """Positions of the wanted outputs."""
    binary: tuple[bool, ...]
    """For each of them, whether it is sent as raw bytes behind the JSON."""


class Codec:
    """Reads requests and writes answers of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kept_plan = lru_cache(_KEPT)(self._plan)
        self._kept_head = lru_cache(_KEPT)(self._head)

    def read(self, body: memoryview, json_size: int | None) -> tuple[Plan, dict[str, Array]]:
        """Request out of a body: what it says, and its tensors by input name, as views of the body where possible.

        Args:
            body: the whole body.
            json_size: value of Inference-Header-Content-Length; None when the whole body is JSON.

        Raises:
            RequestError: the body is no valid request for this model.
        """
        at = len(body) if json_size is None else json_size
        if at > len(body):
            raise RequestError(f"Inference-Header-Content-Length is {at}, but the body has {len(body)} bytes only")
        text = bytes(body[:at])
        plan = self._kept_plan(text) if at <= _KEPT_BYTES else self._plan(text)
        arrays = dict(plan.values)
        for tensor, shape, size in plan.raw:
            if at + size > len(body):
                raise RequestError(
                    f"input {tensor.name!r} announces {size} bytes (binary_data_size), "
                    f"but {len(body) - at} are left in the body"
                )
            arrays[tensor.name] = from_raw(tensor, shape, body[at : at + size])
            at += size
        if at != len(body):
            raise RequestError(f"{len(body) - at} bytes of the body belong to no input")
        return plan, arrays

    def write(self, plan: Plan, results: Sequence[Array]) -> tuple[bytes, list[bytes | memoryview]]:
        """JSON part of an answer, and the raw tensors behind it, in order."""
        arrays = [self._model.outer(at, results[at]) for at in plan.outputs]
        blobs = [to_raw(array) for array, binary in zip(arrays, plan.binary, strict=True) if binary]
        sizes = tuple(map(len, blobs))
        shapes = tuple(array.shape for array in arrays)
        if len(blobs) == len(arrays) and not plan.id:
            return self._kept_head(plan.outputs, shapes, sizes), blobs
        values = [None if binary else _listed(array) for array, binary in zip(arrays, plan.binary, strict=True)]
        return self._head(plan.outputs, shapes, sizes, values, plan.id), blobs

    def _plan(self, text: bytes) -> Plan:
        head = read_json(text)
        inputs = _objects(head, "inputs")
        if not inputs:
            raise RequestError("the request has no 'inputs'")
        raw: list[tuple[Tensor, tuple[int, ...], int]] = []
        values: dict[str, Array] = {}
        seen: set[str] = set()
        for given in inputs:
            name = given.get("name")
            if not isinstance(name, str):
                raise RequestError("every input needs a 'name' (a string)")
            tensor = self._model.tensor(name, given.get("datatype"))
            if name in seen:
                raise RequestError(f"input {name!r} is given twice")
            seen.add(name)
            shape = _shape(name, given.get("shape"))
            size = _binary_size(name, given)
            if size is None:
                values[name] = _from_json(tensor, shape, given.get("data"))
            else:
                raw.append((tensor, shape, size))
        identity = head.get("id", "")
        if not isinstance(identity, str):
            raise RequestError("'id' must be a string")
        return Plan(identity, tuple(raw), values, *self._outputs(head))

    def _outputs(self, head: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        default = _parameters(head, "the request").get("binary_data_output", False) is True
        entries = _objects(head, "outputs")
        positions = self._model.wanted([str(entry.get("name")) for entry in entries])
        if not entries:
            return positions, (default,) * len(positions)
        return positions, tuple(
            _parameters(entry, f"output {entry.get('name')!r}").get("binary_data", default) is True for entry in entries
        )

    def _head(
        self,
        outputs: tuple[int, ...],
        shapes: tuple[tuple[int, ...], ...],
        sizes: tuple[int, ...],
        values: Sequence[list[Any] | None] = (),
        identity: str = "",
    ) -> bytes:
        model = self._model
        entries = []
        left = iter(sizes)
        for number, (at, shape) in enumerate(zip(outputs, shapes, strict=True)):
            tensor = model.outputs[at]
            entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype.name, "shape": shape}
            data = values[number] if values else None
            entry |= {"parameters": {"binary_data_size": next(left)}} if data is None else {"data": data}
            entries.append(entry)
        head: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": entries}
        if identity:
            head["id"] = identity
        return json.dumps(head, separators=(",", ":")).encode()


def _listed(array: Array) -> list[Any]:
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in array.ravel().tolist()]


def read_json(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: it is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError; depth ends in a RecursionError
        raise RequestError(f"the request is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the request must be a JSON object; found {type(found).__name__}")
    return found


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
    return text_tensor(tensor.name, shape, flat)


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
