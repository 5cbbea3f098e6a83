"""Mutated documents and model files by seed, and a process that reads such files one after the other."""

import copy
import random
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    None, "", " ", "x", "-1", "0", "1", "1e309", "nan", "2:4", "../../etc", "file:///", "a" * 300, "\u0000", "日本",
    -1, 0, 1, 2**31, 2**63, 1.5, float("inf"), True, [], {}, [[]], {"x": {}}, ["Static"], "Static", "Distill",
)  # fmt: skip
"""What people, templates and scripts write where something else belongs."""
BYTES: Final = (0x00, 0x01, 0x7F, 0x80, 0xFF)


def mutated_tree(tree: Any, choose: random.Random) -> Any:
    """A copy of a document with one to four places changed, dropped, doubled, renamed or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(choose.randint(1, 4)):
        parent, key = choose.choice(list(_places(tree)))
        match choose.randrange(6):
            case 0:
                del parent[key]
            case 1 | 2:
                parent[key] = copy.deepcopy(choose.choice(ODD))
            case 3:
                other, name = choose.choice(list(_places(tree)))
                parent[key] = copy.deepcopy(other[name])
            case 4 if isinstance(parent, dict):
                parent[f"{key}{choose.choice('xS_')}"] = parent.pop(key)
            case 4 | 5 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case _:
                parent[key] = str(parent[key])
        if not list(_places(tree)):
            break
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def mutated_bytes(data: bytes, choose: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, overwritten or moved, in one to eight places."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, 8)):
        at = choose.randrange(len(changed) or 1)
        length = min(choose.randint(1, 64), len(changed) - at)
        match choose.randrange(5):
            case 0 | 1:
                changed[at : at + 1] = bytes([choose.choice(BYTES) if choose.random() < 0.5 else choose.randrange(256)])
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case _:
                origin = choose.randrange(len(changed) or 1)
                changed[at : at + length] = changed[origin : origin + length]
    return bytes(changed)


def mutated_archive(path: Path, out: Path, choose: random.Random) -> None:
    """An archive with one entry mutated but sums that fit, or with the file itself mutated."""
    if choose.random() < 0.25:
        out.write_bytes(mutated_bytes(path.read_bytes(), choose))
        return
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        names = given.namelist()
        victim = choose.choice(names)
        for name in names:
            data = given.read(name)
            if name == victim:
                data = mutated_bytes(data, choose) if data else b"\0"
            made.writestr(name, data)


def _read_all(files: list[Path]) -> None:
    """Say of each file what it led to; a crash ends the process after the name of the file that made it."""
    from lathe_optimizers.errors import LatheError
    from lathe_optimizers.passes import onnx_import
    from lathe_optimizers.passes.programs import load_program, unlift

    for path in files:
        print(f"reading {path.name}", flush=True)  # noqa: T201 - to the process that asks
        try:
            if path.suffix == ".pt2":
                unlift(load_program(path, path.name))
            else:
                onnx_import.read(path, path.name)
                onnx_import.require_runnable(path, path.name)
            said = "result"
        except LatheError as error:
            said = f"refused {' '.join(str(error).split())}"
        except Exception as error:  # noqa: BLE001 - what must not happen is told too
            said = f"unclear {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(said, flush=True)  # noqa: T201 - likewise


if __name__ == "__main__":
    _read_all([Path(name) for name in sys.stdin.read().splitlines()])
