"""One spelling of a value: the same content gives the same bytes, on every machine and in every process."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum

from pydantic import BaseModel, JsonValue


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no white space.

    Models are written with their wire names and all defaults, without the fields that are absent (None), so that a
    default that is spelt out changes nothing. Models, enums, tuples and string-keyed mappings may be nested at will.

    Raises:
        TypeError: `value` holds something that JSON cannot express, such as bytes, a set or a non-string key.
        ValueError: `value` holds NaN or infinity.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: object) -> str:
    """`sha256:` and 64 hexadecimal digits over `canonical_json(value)`. Raises as that does."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def plain(value: Mapping[str, object]) -> dict[str, JsonValue]:
    """What `canonical_json` writes, as values. Raises as that does."""
    found: dict[str, JsonValue] = json.loads(canonical_json(value))
    return found


def _plain(value: object) -> JsonValue:
    match value:
        case BaseModel():
            return _plain(value.model_dump(mode="json", by_alias=True, exclude_none=True))
        case Enum():
            return _plain(value.value)
        case None | str() | bool() | int() | float():
            return value
        case bytes() | bytearray() | AbstractSet():
            raise TypeError(f"no canonical JSON for {type(value).__name__}")
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"keys must be strings; found {key!r}")
            return {str(_plain(key)): _plain(item) for key, item in value.items()}
        case Sequence():
            return [_plain(item) for item in value]
        case _:
            raise TypeError(f"no canonical JSON for {type(value).__name__}")
