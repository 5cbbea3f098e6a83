"""Exported programs keep their meaning, and files of them say nothing about the machine they were made on."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import archives, networks

from lathe_api.manifest import ArtifactManifest, Role, Signature
from lathe_optimizers.context import Artifact
from lathe_optimizers.errors import InputError, LatheError, StoreError
from lathe_optimizers.passes import programs

pytestmark = pytest.mark.models

NETWORKS = ("residual_cnn", "plain_cnn", "mlp", "encoder")


def program_of(name: str, **options) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return networks.export_program(getattr(networks, name)(), torch.rand(2, 1, 16, 16), **options)


def answers(program: torch.export.ExportedProgram, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return programs.unlift(program)(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_and_loaded_program_answers_the_same(name, tmp_path):
    program, x = program_of(name), torch.rand(5, 1, 16, 16)

    programs.save_program(program, tmp_path / "model.pt2")

    assert torch.equal(answers(programs.load_program(tmp_path / "model.pt2"), x), answers(program, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_re_exported_program_answers_the_same_for_any_batch(name):
    program = program_of(name)

    again = programs.reexport(programs.unlift(program), program)

    for batch in (1, 2, 7):
        x = torch.rand(batch, 1, 16, 16)
        assert torch.equal(answers(again, x), answers(program, x))


def test_a_re_export_that_fixes_the_batch_is_an_error():
    class Flat(torch.nn.Module):
        def forward(self, image):
            return image.reshape(image.shape[0], 256)

    program = networks.export_program(Flat(), torch.rand(2, 1, 16, 16))
    graph = programs.unlift(program)
    reshape = next(n for n in graph.graph.nodes if n.target == torch.ops.aten.reshape.default)
    reshape.args = (reshape.args[0], [2, 256])

    with pytest.raises(LatheError, match="fixed size in place of dimension 0 of input 0"):
        programs.reexport(graph, program)


def test_unlift_gives_a_copy_of_its_own():
    program = program_of("mlp")
    graph = programs.unlift(program)

    with torch.no_grad():
        for p in graph.parameters():
            p.zero_()

    assert all(p.abs().sum() > 0 for n, p in program.named_parameters() if n.endswith("0.weight"))


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_training_an_eval_export_gives_the_weights_that_training_the_module_gives(decomposed):
    torch.manual_seed(0)
    module = networks.residual_cnn()
    program = networks.export_program(module, torch.rand(2, 1, 16, 16))
    if decomposed:
        with programs.quiet_torch():
            program = program.run_decompositions()
    graph = programs.unlift(program)

    found = programs.set_training(graph, on=True)

    module.train()
    for network in (module, graph):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.rand(8, 1, 16, 16, generator=generator)).square().mean().backward()
            optimizer.step()
    trained = graph.state_dict()
    assert found.batch_norm == sum(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())
    assert found.frozen_statistics == 0
    for name, wanted in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(trained[name], wanted, atol=1e-6), name


def test_dropout_is_switched_on_and_off():
    graph, x = programs.unlift(program_of("plain_cnn")), torch.rand(4, 1, 16, 16)

    assert programs.set_training(graph, on=True).dropout == 1
    assert not torch.equal(graph(x), graph(x))
    programs.set_training(graph, on=False)
    assert torch.equal(graph(x), graph(x))


def test_batch_norm_without_momentum_is_reported_as_frozen():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4, momentum=None))
    program = networks.export_program(module, torch.rand(2, 4), "input")

    assert programs.set_training(programs.unlift(program), on=False).frozen_statistics == 1


def test_a_decomposed_training_export_is_refused_with_the_remedy():
    with programs.quiet_torch():
        program = program_of("residual_cnn", training=True).run_decompositions()

    with pytest.raises(InputError, match="do not call run_decompositions"):
        programs.set_training(programs.unlift(program), on=False)


def test_an_example_of_one_sample_is_doubled_so_that_the_batch_stays_free():
    program = program_of("mlp")
    program.example_inputs = ((torch.rand(1, 1, 16, 16),), {})

    again = programs.reexport(programs.unlift(program), program)

    assert 0 in programs.dynamic_shapes(again)[0]


def test_parameters_are_counted_without_buffers_and_shared_ones_once():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.register_buffer("shift", torch.zeros(4))

        def forward(self, image):
            return self.second(self.first(image)) + self.shift

    assert programs.count_parameters(networks.export_program(Tied(), torch.rand(2, 4))) == 16


def test_nodes_are_named_by_their_modules():
    program = program_of("mlp")

    linear = [n for n in program.graph.nodes if n.target == torch.ops.aten.linear.default]

    paths = {name for name, m in networks.mlp().named_modules() if isinstance(m, torch.nn.Linear)}
    assert {programs.module_path(n) for n in linear} == paths


def test_a_file_tells_nothing_about_where_it_was_made(tmp_path):
    program = program_of("residual_cnn")
    assert any("stack_trace" in n.meta for n in program.graph.nodes), "or the test proves nothing"

    programs.save_program(program, tmp_path / "model.pt2")

    for name, content in archives.entries(tmp_path / "model.pt2").items():
        for trace in (b"stack_trace", b".py", str(Path(__file__).parents[2]).encode(), str(tmp_path).encode()):
            assert trace not in content, f"{trace!r} in {name}"
    assert any("stack_trace" in n.meta for n in program.graph.nodes), "saving changes the file, not the program"


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from support import networks
from lathe_optimizers.passes import onnx_files, programs
import torchao.quantization.pt2e
torch.manual_seed(0)
program = networks.export_program(networks.encoder(), torch.rand(2, 1, 16, 16))
out = Path(sys.argv[2])
programs.save_program(program, out / "model.pt2")
loaded = programs.load_program(out / "model.pt2")
programs.save_program(programs.reexport(programs.unlift(loaded), loaded), out / "again.pt2")
onnx_files.to_onnx(loaded, out / "model.onnx", opset=20, input_names=["image"])
"""


def test_the_same_program_gives_the_same_bytes_in_every_process(tmp_path):
    digests = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        out.mkdir()
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-W",
                "ignore:invalid escape sequence",
                "-c",
                SCRIPT,
                str(Path(__file__).parents[1]),
                str(out),
            ],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            cwd=out,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout + done.stderr == "", "a stage's own output stays clean"
        names = ("model.pt2", "again.pt2", "model.onnx")
        digests.append([hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names])

    assert digests[0] == digests[1]


def test_a_file_of_another_kind_is_explained(tmp_path):
    path = tmp_path / "weights.pt2"
    torch.save({"w": torch.zeros(2)}, path)

    with pytest.raises(InputError, match=r"weights\.pt2.*torch\.export\.save"):
        programs.load_program(path)


def test_a_stage_that_needs_a_program_says_so(tmp_path):
    onnx_only = Artifact(
        ArtifactManifest(files={}, signature=Signature(inputs=(), outputs=())), {Role.ONNX: tmp_path / "model.onnx"}
    )

    with pytest.raises(InputError, match=r"spec\.recipe\.stages\[1\].*ONNX"):
        programs.require_program(onnx_only, "spec.recipe.stages[1]")


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    program = program_of("mlp")
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StoreError, match="no space"):
        programs.save_program(program, tmp_path / "model.pt2")

    assert list(tmp_path.iterdir()) == []
