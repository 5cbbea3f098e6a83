"""The folder a run leaves behind: made aside, put in place as a whole.

::

    summary.json
    report.html
    stages/<target>/<stage>/stage.json
    targets/<target>/model.onnx
    targets/<target>/repository/<name>/…       the Triton model repository, where one was asked for
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lathe_api.manifest import StageRecord
from lathe_optimizers import files
from lathe_optimizers.errors import InputError


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else than an earlier run.

    Raises:
        InputError: it does.
    """
    if out.exists() and not out.is_dir():
        raise InputError("--out", f"{out} is a file", "Write the name of a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "summary.json").is_file():
        raise InputError("--out", f"{out} holds something else than an earlier run", "Name a new or empty folder")


@contextlib.contextmanager
def prepared(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends without an error.

    Raises:
        StoreError: no space or no permission; `out` is as it was.
    """
    with files.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        mask = os.umask(0)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)
    try:
        with files.explained(out):
            yield folder
        files.replace_folder(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def record_path(target: str, stage: str) -> str:
    """Where a stage's record is, relative to the run folder."""
    return f"stages/{target}/{stage}/stage.json"


def model_path(target: str) -> str:
    """Where a target's served file is, relative to the run folder."""
    return f"targets/{target}/model.onnx"


def write_record(folder: Path, target: str, record: StageRecord) -> None:
    """Write a stage's record into the run folder."""
    path = folder / record_path(target, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")


def copy_model(folder: Path, target: str, source: Path) -> Path:
    """Copy a target's served file into the run folder."""
    path = folder / model_path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    return path
