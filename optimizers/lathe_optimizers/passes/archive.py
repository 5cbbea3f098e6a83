"""Opening of `.pt2` files that nobody vouches for.

A `.pt2` file is a zip archive. `torch.export.load` unpickles parts of it, and evaluates others (see `program_json`), so
that loading a foreign file hands the process to its author. Pickle is reachable through (torch 2.13,
`export/pt2_archive/_package.py` and `_export/serde/serialize.py`):

- weights and constants with `use_pickle`;
- `custom_obj_*` and `opaque_obj_*` constants;
- `weights/*.pt` and `constants/*.pt` of earlier layouts, and the flat layout before those;
- example inputs, which are tried with `weights_only=True` first and without it next.

AOTInductor libraries in the archive would be loaded as machine code. All of these are refused. What remains is checked
and written into an archive of our own, and only that is given to torch: two zip readers can read one file differently,
and a file can change between two readings.
"""

import io
import json
import math
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch.export.pt2_archive._package import PT2ArchiveWriter
from torch.utils._pytree import tree_leaves

from lathe_optimizers.errors import UnsafeFileError
from lathe_optimizers.passes import program_json

_MODEL: Final = "models/model.json"
_INPUTS: Final = "data/sample_inputs/model.pt"
_CONFIGS: Final = {
    "data/weights/model_weights_config.json": re.compile(r"weight_[0-9]{1,9}"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_[0-9]{1,9}"),
}
_NEEDED: Final = frozenset({_MODEL, _INPUTS, *_CONFIGS, "archive_format", "archive_version"})
_IGNORED: Final = re.compile(r"extra/.*|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|version")
_MOST_ENTRIES: Final = 100_000
_LARGEST_JSON: Final = 1 << 26
"""Bytes of a JSON document; a node of a graph takes about 1500."""
_LARGEST_INPUTS: Final = 1 << 28
"""Bytes of the example inputs."""
_ENCRYPTED: Final = 0x1
_AGAIN: Final = "Export the model again with torch.export.save of torch 2.13, from plain tensors on the CPU."
_REAL_TENSORS: Final = (
    "Only plain tensors can be read from a file: replace tensor subclasses and objects, export again."
)
_NO_CODE: Final = "Give the exported program itself (torch.export.save), not a package of compiled code."


@contextmanager
def checked(path: Path, shown: str | None = None) -> Iterator[Path]:
    """A private archive with the content of `path` that was found harmless; it is removed afterwards.

    Args:
        path: the file.
        shown: how messages call the file; its path by default.

    Raises:
        UnsafeFileError: the file is no `.pt2` archive, is damaged, could run code when it is loaded, or could exhaust
            the memory.
    """
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        private = Path(folder) / "program.pt2"
        _copy_checked(path, private, shown or str(path))
        yield private


def _copy_checked(path: Path, private: Path, shown: str) -> None:
    if not path.is_file():
        raise UnsafeFileError(shown, "not a regular file", "Give a `.pt2` file.")
    try:
        with path.open("rb") as f, zipfile.ZipFile(f) as source:
            size = f.seek(0, io.SEEK_END)
            entries = _Entries(shown, source, size)
            with PT2ArchiveWriter(str(private)) as target:
                entries.write_to(target)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as e:
        raise UnsafeFileError(shown, f"not a whole `.pt2` archive ({e})", _AGAIN) from e


class _Entries:
    """The entries of an archive by their names below its root folder; names and sizes are checked at once."""

    def __init__(self, shown: str, source: zipfile.ZipFile, size: int) -> None:
        self.shown, self.source = shown, source
        found = source.infolist()
        if len(found) > _MOST_ENTRIES:
            self.refuse("", f"{len(found)} entries", f"At most {_MOST_ENTRIES} can be read.")
        for entry in found:
            self._check_entry(entry)
        # Stored entries cannot be larger than the file, unless several of them share the same bytes.
        total = sum(entry.file_size for entry in found)
        if total > size:
            self.refuse("", f"entries of {total} bytes in a file of {size} bytes", _AGAIN)
        roots = {entry.filename.split("/", 1)[0] for entry in found}
        if len(roots) != 1:
            self.refuse("", f"{len(roots)} root folders", _AGAIN)
        self.by_name = {entry.filename.split("/", 1)[1]: entry for entry in found if "/" in entry.filename}
        if len(self.by_name) != len(found):
            self.refuse("", "two entries of one name, or an entry outside the root folder", _AGAIN)
        self._check_layout()

    def refuse(self, entry: str, found: str, remedy: str) -> NoReturn:
        raise UnsafeFileError(self.shown + (f" ({entry})" if entry else ""), found, remedy)

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if entry.orig_filename != name or not name.isprintable() or "\\" in name:
            self.refuse(repr(entry.orig_filename), "an entry with a misleading name", _AGAIN)
        if name.startswith("/") or ":" in name or any(part in {"", ".", ".."} for part in name.split("/")):
            self.refuse(name, "a name that leads out of the archive", _AGAIN)
        if stat.S_IFMT(entry.external_attr >> 16) not in {0, stat.S_IFREG}:
            self.refuse(name, "a link or device", _AGAIN)
        if entry.flag_bits & _ENCRYPTED:
            self.refuse(name, "an encrypted entry", _AGAIN)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            self.refuse(name, "a compressed entry, which torch never writes", _AGAIN)

    def _check_layout(self) -> None:
        names = set(self.by_name)
        for name in names:
            if name.startswith(("data/aotinductor/", "data/executorch/", "data/mtia")) or name.endswith(
                (".so", ".cpp")
            ):
                self.refuse(name, "compiled code", _NO_CODE)
            if name.endswith(".pt") and name != _INPUTS:
                self.refuse(name, "tensors in pickle format, the layout of earlier torch versions", _AGAIN)
        if missing := _NEEDED - names:
            self.refuse("", f"no entry `{min(missing)}`, so that this is no exported program of torch 2.13", _AGAIN)
        payload = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]{1,9}")
        for name in names - _NEEDED - {"byteorder"}:
            if name.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")):
                self.refuse(name, "an object in pickle format", _REAL_TENSORS)
            if not payload.fullmatch(name) and not _IGNORED.fullmatch(name):
                self.refuse(name, "an entry that torch 2.13 does not write", _AGAIN)
        if "byteorder" in names and self.read("byteorder") != b"little":
            self.refuse("byteorder", "weights of a big-endian machine", _AGAIN)
        if self.read("archive_format") != b"pt2" or self.read("archive_version") != b"0":
            self.refuse("archive_version", "an unknown version of the format", _AGAIN)

    def read(self, name: str) -> bytes:
        """The bytes of an entry; a wrong checksum is an error."""
        return self.source.read(self.by_name[name])

    def read_json(self, name: str) -> dict[str, Any]:
        """An entry that must be a JSON object."""
        if self.by_name[name].file_size > _LARGEST_JSON:
            self.refuse(name, f"{self.by_name[name].file_size} bytes of JSON", f"At most {_LARGEST_JSON} can be read.")
        try:
            document = json.loads(self.read(name))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            self.refuse(name, "no JSON object", _AGAIN)
        return document

    def write_to(self, target: PT2ArchiveWriter) -> None:
        """Check the content and write what is needed of it."""
        payloads: dict[str, None] = {}
        for name, pattern in _CONFIGS.items():
            config = self.read_json(name)
            folder = name.rsplit("/", 1)[0]
            payloads.update(dict.fromkeys(f"{folder}/{p}" for p in self._check_config(name, config, pattern)))
            target.write_bytes(name, json.dumps(config).encode())
        model = program_json.cleaned(self.read_json(_MODEL), partial(self.refuse, _MODEL))
        target.write_bytes(_MODEL, json.dumps(model).encode())
        target.write_bytes(_INPUTS, self._plain_inputs())
        for name in payloads:
            target.write_bytes(name, self.read(name))

    def _check_config(self, name: str, config: dict[str, Any], pattern: re.Pattern[str]) -> list[str]:
        """Check the list of tensors against the bytes that are there; devices become `cpu`.

        Returns:
            Names of the payloads, relative to the folder of the list.
        """
        items = config.get("config")
        if not isinstance(items, dict) or set(config) != {"config"}:
            self.refuse(name, "no list of tensors", _AGAIN)
        for label, item in items.items():
            where = f"{name}, `{label}`"
            program_json.check_label(label, partial(self.refuse, where))
            if not isinstance(item, dict) or item.get("use_pickle") is not False:
                self.refuse(where, "a tensor in pickle format", _REAL_TENSORS)
            payload = item.get("path_name")
            if not isinstance(payload, str) or not pattern.fullmatch(payload):
                self.refuse(where, f"the payload {str(payload)[:80]!r}", _REAL_TENSORS)
            entry = self.by_name.get(f"{name.rsplit('/', 1)[0]}/{payload}")
            if entry is None:
                self.refuse(where, f"no entry `{payload}`", _AGAIN)
            if problem := _misfit(item.get("tensor_meta"), entry.file_size):
                self.refuse(where, problem, _AGAIN)
            item["tensor_meta"]["device"] = {"type": "cpu", "index": None}
        return [item["path_name"] for item in items.values()]

    def _plain_inputs(self) -> bytes:
        """The example inputs, read without pickle's code and written again."""
        content = self.read(_INPUTS)
        if not content:
            return content
        self._check_inner_zip(content)
        try:
            inputs = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as e:  # noqa: BLE001 - the unpickler raises whatever a hostile file provokes
            self.refuse(
                _INPUTS, f"example inputs that are not plain tensors ({str(e).splitlines()[0][:200]})", _REAL_TENSORS
            )
        match inputs:
            case (tuple() | list() as args, dict() as kwargs):
                tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            case _:
                self.refuse(_INPUTS, "something else than arguments of a call", _AGAIN)
        # A tensor may repeat its storage (stride 0), and fill the memory only when it is used.
        if any(x.layout is not torch.strided or x.numel() * x.element_size() > _LARGEST_INPUTS for x in tensors):
            self.refuse(_INPUTS, "sparse or enormous example inputs", "Export with a smaller example batch.")
        buffer = io.BytesIO()
        torch.save(inputs, buffer)
        return buffer.getvalue()

    def _check_inner_zip(self, content: bytes) -> None:
        """Example inputs are an archive within the archive; it must not unpack to more than it is."""
        if len(content) > _LARGEST_INPUTS:
            self.refuse(_INPUTS, f"{len(content)} bytes of example inputs", "Export with a smaller example batch.")
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as inner:
                found = inner.infolist()
        except zipfile.BadZipFile:
            self.refuse(_INPUTS, "example inputs that are no archive", _AGAIN)
        if any(e.compress_type != zipfile.ZIP_STORED for e in found) or sum(e.file_size for e in found) > len(content):
            self.refuse(_INPUTS, "compressed example inputs, which torch never writes", _AGAIN)


def _misfit(meta: object, payload_bytes: int) -> str | None:
    """Why a tensor does not fit into its payload, or None. torch would read, or reserve, memory outside it."""
    if not isinstance(meta, Mapping):
        return "a tensor without sizes"
    try:
        sizes, strides = ([int(s["as_int"]) for s in meta[key]] for key in ("sizes", "strides"))
        offset = int(meta["storage_offset"]["as_int"])
        width = program_json.element_bytes(meta["dtype"])
    except (KeyError, TypeError, ValueError):
        return "a tensor with unreadable sizes"
    if len(sizes) != len(strides) or min([offset, *sizes, *strides]) < 0:
        return f"a tensor of sizes {sizes}, strides {strides} and offset {offset}"
    count = math.prod(sizes)
    reach = offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) if count else 0
    if max(count, reach) * width > payload_bytes:
        return f"a tensor of sizes {sizes} in {payload_bytes} bytes"
    return None
