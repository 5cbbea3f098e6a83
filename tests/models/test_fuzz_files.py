"""2 000 damaged model files: each is read or refused with a reason; none ends the process or leaves files behind."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import fuzzing
from support.networks import export_program
from torch import nn

from lathe_optimizers.passes import onnx_files
from lathe_optimizers.passes.programs import save_program

pytestmark = pytest.mark.models
FILES = 1000
"""Of each kind."""
TOO_LONG = 300
"""Seconds for all of a kind; reading one takes milliseconds."""


class Small(nn.Module):
    """A convolution, a normalisation and a product: the kinds of weights that programs have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def given(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    program = export_program(Small().eval(), torch.rand(2, 1, 8, 8))
    path = folder / f"given.{kind}"
    if kind == "pt2":
        save_program(program, path)
    else:
        onnx_files.to_onnx(program, path, opset=20, input_names=["image"])
    return path


def outcomes(paths: list[Path], folder: Path) -> dict[str, str]:
    """What each file led to, read in processes that are started again where one ends early."""
    found: dict[str, str] = {}
    left = paths
    while left:
        done = subprocess.run(
            [sys.executable, fuzzing.__file__],
            input="\n".join(map(str, left)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
            timeout=TOO_LONG,
            check=False,
        )
        lines = done.stdout.splitlines()
        for name, said in zip(lines[::2], [*lines[1::2], f"ended by {done.returncode}"], strict=False):
            found[name.removeprefix("reading ")] = said
        left = [p for p in left if p.name not in found]
    return found


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_every_damaged_file_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    choose = random.Random(0)  # noqa: S311 - the same files in every run
    source = given(kind, tmp_path)
    files, work = tmp_path / "files", tmp_path / "work"
    for folder in (files, work, work / "tmp"):
        folder.mkdir()
    paths = [files / f"{number}.{kind}" for number in range(FILES)]
    for path in paths:
        if kind == "pt2":
            fuzzing.mutated_archive(source, path, choose)
        else:
            path.write_bytes(fuzzing.mutated_bytes(source.read_bytes(), choose))
    assert outcomes([source], work) == {source.name: "result"}
    usual = sorted(p.name for p in (work / "tmp").iterdir())
    found = outcomes(paths, work)
    assert len(found) == FILES
    unclear = {name: said for name, said in found.items() if not said.startswith(("result", "refused "))}
    assert not unclear, f"{len(unclear)}: {list(unclear.items())[:8]}"
    assert {said.split()[0] for said in found.values()} == {"result", "refused"}
    assert sorted(p.name for p in (work / "tmp").iterdir()) == usual
    assert sorted(p.name for p in work.iterdir()) == ["tmp"]
