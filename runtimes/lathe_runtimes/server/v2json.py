"""HTTP bodies of the Open Inference Protocol V2, with the binary tensor extension.

Clients repeat themselves: the JSON before binary tensors is the same in request after request, and so is the JSON of
the answers. Both are kept, so that a repeated call costs no parsing, checking or printing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from lathe_runtimes.datatypes import Array
from lathe_runtimes.server.classification import classify
from lathe_runtimes.server.errors import RequestError
from lathe_runtimes.server.model import Model, Tensor
from lathe_runtimes.server.shared_memory import Place, Regions, class_count, place_of
from lathe_runtimes.server.tensors import MAX_DIMS, from_raw, from_values, text_tensor, to_raw

_KEPT: Final = 256
"""Request and answer headers that are kept for each model."""
_KEPT_BYTES: Final = 2048
"""Longer ones are not: they carry values."""
MAX_DEPTH: Final = 64
"""Nesting of JSON that is read; tensors of 32 dimensions fit."""
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_ALL_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What the JSON of a request says, checked against its model as far as names, datatypes and outputs go."""

    id: str
    raw: tuple[tuple[Tensor, tuple[int, ...], int], ...]
    """Inputs whose bytes lie behind the JSON, in order: tensor, shape, bytes."""
    placed: tuple[tuple[Tensor, tuple[int, ...], Place], ...]
    """Inputs whose bytes lie in shared memory."""
    values: Mapping[str, Array]
    """Inputs whose values are in the JSON."""
    outputs: tuple[int, ...]
    """Positions of the wanted outputs."""
    binary: tuple[bool, ...]
    """For each of them, whether it is sent as raw bytes behind the JSON."""
    classes: tuple[int, ...]
    """For each of them, how many classes are asked for instead of its values; 0 for none."""
    places: tuple[Place | None, ...]
    """For each of them, where in shared memory it goes."""
    plain: bool
    """Whether none of them is asked for as classes or in shared memory."""


class Codec:
    """Reads requests and writes answers of one model."""

    def __init__(self, model: Model, regions: Regions) -> None:
        self._model = model
        self._regions = regions
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
        for tensor, shape, place in plan.placed:
            arrays[tensor.name] = from_raw(tensor, shape, self._regions.read(place))
        for target in plan.places:
            if target is not None:
                self._regions.check(target)
        if at != len(body):
            raise RequestError(f"{len(body) - at} bytes of the body belong to no input")
        return plan, arrays

    def write(self, plan: Plan, results: Sequence[Array]) -> tuple[bytes, list[bytes | memoryview]]:
        """JSON part of an answer, and the raw tensors behind it, in order."""
        arrays = [self._model.outer(at, results[at]) for at in plan.outputs]
        if not plan.plain:
            return self._write_special(plan, arrays)
        blobs = [to_raw(array) for array, binary in zip(arrays, plan.binary, strict=True) if binary]
        sizes = tuple(map(len, blobs))
        shapes = tuple(array.shape for array in arrays)
        if len(blobs) == len(arrays) and not plan.id:
            return self._kept_head(plan.outputs, shapes, sizes), blobs
        values = [None if binary else _listed(array) for array, binary in zip(arrays, plan.binary, strict=True)]
        return self._head(plan.outputs, shapes, sizes, values, plan.id), blobs

    def _write_special(self, plan: Plan, arrays: Sequence[Array]) -> tuple[bytes, list[bytes | memoryview]]:
        entries = []
        blobs: list[bytes | memoryview] = []
        for at, given, count, binary, place in zip(
            plan.outputs, arrays, plan.classes, plan.binary, plan.places, strict=True
        ):
            name, array = self._model.outputs[at].name, given
            entry: dict[str, Any] = {"name": name, "datatype": self._model.outputs[at].datatype.name}
            if count:
                array = classify_output(self._model, at, given, count)
                entry["datatype"] = "BYTES"
            entry["shape"] = array.shape
            if place is not None:
                raw = to_raw(array)
                self._regions.write(place, name, raw)
                entry["parameters"] = {
                    "shared_memory_region": place.region,
                    "shared_memory_offset": place.offset,
                    "shared_memory_byte_size": len(raw),
                }
            elif binary:
                blobs.append(to_raw(array))
                entry["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                entry["data"] = _listed(array)
            entries.append(entry)
        return self._printed(entries, plan.id), blobs

    def _plan(self, text: bytes) -> Plan:
        head = read_json(text)
        inputs = _objects(head, "inputs")
        if not inputs:
            raise RequestError("the request has no 'inputs'")
        raw: list[tuple[Tensor, tuple[int, ...], int]] = []
        values: dict[str, Array] = {}
        placed: list[tuple[Tensor, tuple[int, ...], Place]] = []
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
            place = place_of(given.get("parameters", {}), f"input {name!r}")
            if place is not None:
                if size is not None or "data" in given:
                    raise RequestError(f"input {name!r} has values besides its shared memory region")
                placed.append((tensor, shape, place))
            elif size is None:
                values[name] = _from_json(tensor, shape, given.get("data"))
            else:
                raw.append((tensor, shape, size))
        identity = head.get("id", "")
        if not isinstance(identity, str):
            raise RequestError("'id' must be a string")
        common = _parameters(head, "the request")
        _check_request(common)
        default = common.get("binary_data_output", False) is True
        return Plan(identity, tuple(raw), tuple(placed), values, *self._outputs(head, default=default))

    def _outputs(
        self, head: Mapping[str, Any], *, default: bool
    ) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...], tuple[Place | None, ...], bool]:
        entries = _objects(head, "outputs")
        positions = self._model.wanted([str(entry.get("name")) for entry in entries])
        if not entries:
            none: tuple[Place | None, ...] = (None,) * len(positions)
            return positions, (default,) * len(positions), (0,) * len(positions), none, True
        places, classes, binary = [], [], []
        for entry in entries:
            where = f"output {entry.get('name')!r}"
            given = _parameters(entry, where)
            places.append(place_of(given, where))
            classes.append(class_count(given, where))
            binary.append(given.get("binary_data", default) is True)
            if places[-1] is not None and classes[-1]:
                raise RequestError(f"{where}: classes cannot be put into shared memory")
        plain = not any(classes) and not any(places)
        return positions, tuple(binary), tuple(classes), tuple(places), plain

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
        return self._printed(entries, identity)

    def _printed(self, entries: list[dict[str, Any]], identity: str) -> bytes:
        model = self._model
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
    if _too_deep(data):
        raise RequestError(f"the request nests its JSON deeper than {MAX_DEPTH}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError; depth ends in a RecursionError
        raise RequestError(f"the request is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the request must be a JSON object; found {type(found).__name__}")
    return found


def _too_deep(data: bytes) -> bool:
    """Whether brackets nest deeper than allowed; found without recursion, in time linear in the size."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", data).translate(_ALL_SQUARE, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):  # each pass takes the innermost level away
        if not brackets:
            return False
        left = brackets.replace(b"[]", b"")
        if len(left) == len(brackets):  # unbalanced: the parser says where
            return brackets.count(b"[") > MAX_DEPTH
        brackets = left
    return bool(brackets)


def classify_output(model: Model, at: int, array: Array, count: int) -> Array:
    """Classes of output number `at`.

    Raises:
        RequestError: it holds no numbers.
    """
    return classify(array, count, model.labels.get(model.outputs[at].name, ()), batched=model.max_batch_size > 0)


def _check_request(parameters: Mapping[str, Any]) -> None:
    for name in ("priority", "timeout", "sequence_id"):
        value = parameters.get(name, 0)
        if name == "sequence_id" and isinstance(value, str):
            continue
        if type(value) is not int or value < 0:
            raise RequestError(f"request parameter {name!r}: write a whole number of 0 or more; found {value!r:.80}")
    for name, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            raise RequestError(
                f"parameter {name!r:.80} has invalid type. It should be either 'int', 'bool', or 'string'."
            )


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
