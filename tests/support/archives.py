"""Crafting of `.pt2` files: take a benign one apart, change it, put it together again."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
INPUTS = "data/sample_inputs/model.pt"

Entries = dict[str, bytes]


def entries(path: Path) -> Entries:
    """Content of every entry, by its name below the archive's root folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Mapping[str, bytes], root: str = "archive/") -> Path:
    """Write an archive as torch does, uncompressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(root + name, data)
    return path


def edited(content: Entries, name: str, edit: Callable[[dict[str, Any]], object]) -> Entries:
    """The same entries with one JSON document changed in place by `edit`."""
    document = json.loads(content[name])
    edit(document)
    return content | {name: json.dumps(document).encode()}


class Payload:
    """When unpickled, creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def pickled(marker: Path, *, wrap: Callable[[Payload], object] = lambda p: (p,)) -> bytes:
    """What torch.save writes of a payload."""
    buffer = io.BytesIO()
    torch.save(wrap(Payload(marker)), buffer)
    return buffer.getvalue()
