"""What Quantize stages are called with."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lathe_api.manifest import Role
from lathe_optimizers.context import Artifact, PassContext, PassOutput
from lathe_optimizers.passes import onnx_files
from lathe_optimizers.passes.programs import save_program
from support import networks
from support.passing import artifact, context, images


@functools.cache
def _given(network: Callable[[], nn.Module]) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        start = made_now(Path(folder), network)
        return start.files[Role.PROGRAM].read_bytes(), start.files[Role.ONNX].read_bytes()


def given(folder: Path, network: Callable[[], nn.Module]) -> Artifact:
    """A trained-looking network as the import leaves it; made once for all tests."""
    program, onnx_file = folder / "given.pt2", folder / "given.onnx"
    program.write_bytes(_given(network)[0])
    onnx_file.write_bytes(_given(network)[1])
    return artifact(PassOutput(program=program, onnx=onnx_file))


def made_now(folder: Path, build: Callable[[], nn.Module]) -> Artifact:
    torch.manual_seed(0)
    network = build().train()
    for _ in range(3):  # running statistics that are not those of a fresh network
        network(torch.rand(32, 1, 16, 16))
    program = networks.export_program(network, torch.rand(2, 1, 16, 16))
    pt2, onnx_file = folder / "given.pt2", folder / "given.onnx"
    save_program(program, pt2)
    onnx_files.to_onnx(program, onnx_file, opset=20, input_names=["image"])
    return artifact(PassOutput(program=pt2, onnx=onnx_file))


def stage_context(folder: Path, start: Artifact, samples: int = 100, **settings) -> PassContext:
    data = images(samples)
    stage = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"} | settings}
    made = context(folder, images(40, seed=1), stage=stage, given=start, train=data)
    return dataclasses.replace(made, data=dataclasses.replace(made.data, calibration=data))


def only_onnx(start: Artifact) -> Artifact:
    return dataclasses.replace(start, files={Role.ONNX: start.files[Role.ONNX]})
