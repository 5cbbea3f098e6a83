"""Exported programs (`.pt2`): load, save, train and eval mode, re-export.

A program that comes from a file has no Python class: its network is an ATen graph, and every change to it is a change
to that graph. `unlift` gives a graph that can be edited, `reexport` turns it into a program again.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.export.pt2_archive._package import load_pt2
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from lathe_api.manifest import Role
from lathe_optimizers.context import Artifact
from lathe_optimizers.errors import InputError, LatheError
from lathe_optimizers.files import write_file
from lathe_optimizers.passes import archive
from lathe_optimizers.passes.training_mode import ATEN, Switched, set_training

__all__ = [
    "ATEN",
    "Switched",
    "count_parameters",
    "dynamic_shapes",
    "example_inputs",
    "load_program",
    "module_path",
    "quiet_torch",
    "reexport",
    "require_program",
    "save_program",
    "set_training",
    "unlift",
]

_TALKATIVE: Final = (
    "torch._export",
    "torch._subclasses.fake_tensor",
    "torch.export",
    "torch.fx.experimental.sym_node",
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx",
    "torch.utils._pytree",
    "torchao",
    "onnxscript",
)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence what torch, its exporter and torchao log and warn beside their results; errors are raised as ever."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.export", "torch._export", "torch.onnx", "torch.utils._pytree", "torchao", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|torchao|copyreg")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


with quiet_torch():
    # Registers the operators of the `quantized_decomposed` namespace, which quantised programs are made of.
    import torch.ao.quantization.fx._decomposed

_KEPT_METADATA: Final = ("val", "nn_module_stack")


def load_program(path: Path, shown: str | None = None) -> ExportedProgram:
    """The program in a `.pt2` file.

    The file is checked first, and what is loaded is the checked content, so that nothing in it can run code.

    Args:
        path: the file.
        shown: how messages call the file, such as the URI that it was copied from; its path by default.

    Raises:
        UnsafeFileError: the file was refused before it was loaded.
        InputError: torch cannot read the file.
    """
    with archive.checked(path, shown) as private, quiet_torch():
        try:
            # Not torch.export.load: it falls back to earlier layouts when this one fails.
            program: ExportedProgram = load_pt2(str(private)).exported_programs["model"]
            _ = program.call_spec, program.graph_signature.user_inputs  # fail here where they are inconsistent
        except Exception as e:
            first = (str(e).splitlines() or [""])[0][:300]
            raise InputError(
                shown or str(path),
                f"torch {torch.__version__} cannot load this program ({type(e).__name__}: {first})",
                "Export the model again with torch.export.save and the same torch version.",
            ) from e
    return program


def save_program(ep: ExportedProgram, path: Path) -> None:
    """Write `ep` so that the same program gives the same bytes in every process, and no source path is in the file.

    Module paths (`nn_module_stack`) are kept: they are the names by which people know the layers. The file appears
    whole or not at all.

    Raises:
        StoreError: no space or no permission.
    """
    # A buffer, not the file: torch would name the archive's root folder after the file.
    content = io.BytesIO()
    with quiet_torch(), _only_kept_metadata(ep):
        torch.export.save(ep, content)
    write_file(path, content.getvalue())


@contextmanager
def _only_kept_metadata(ep: ExportedProgram) -> Iterator[None]:
    """Hide stack traces and source locations of the nodes from the serialiser; the program itself stays as it is."""
    graphs = (m.graph for m in ep.graph_module.modules() if isinstance(m, fx.GraphModule))
    before = {node: node.meta for graph in graphs for node in graph.nodes}
    for node, meta in before.items():
        node.meta = {key: meta[key] for key in _KEPT_METADATA if key in meta}
    try:
        yield
    finally:
        for node, meta in before.items():
            node.meta = meta


def require_program(artifact: Artifact | None, stage_field: str) -> Path:
    """The `.pt2` file of an artifact, for a stage that works on the graph.

    Args:
        artifact: what the stage before left.
        stage_field: field path of the stage that needs the program, such as `spec.recipe.stages[1]`.

    Raises:
        InputError: the model came as ONNX only.
    """
    if artifact is None or Role.PROGRAM not in artifact.files:
        raise InputError(
            stage_field,
            "this stage needs an exported program, but the model was given as ONNX",
            "Give the model as `.pt2` (torch.export.save) with format Pt2, or remove the stage.",
        )
    return artifact.files[Role.PROGRAM]


def dynamic_shapes(ep: ExportedProgram) -> tuple[dict[int, Any], ...]:
    """The varying dimensions of each user input, as `torch.export.export` takes them."""
    users = set(ep.graph_signature.user_inputs)
    return tuple(
        # A symbol that turned out to have one value only is still a SymInt.
        {i: Dim.AUTO for i, size in enumerate(node.meta["val"].shape) if not is_concrete_int(size)}
        for node in ep.graph.nodes
        if node.op == "placeholder" and node.name in users
    )


def example_inputs(ep: ExportedProgram) -> tuple[Tensor, ...]:
    """Example inputs for a re-export.

    A varying batch whose example has one sample is doubled: torch takes a size of one for a constant.

    Raises:
        InputError: there are none, or they are not positional tensors.
    """
    remedy = "Export the model with positional tensor inputs only: torch.export.export(model, (x,))."
    if ep.example_inputs is None:
        raise InputError("spec.model.uri", "the program carries no example inputs", remedy)
    args, kwargs = ep.example_inputs
    if kwargs or not args or not all(isinstance(x, Tensor) for x in args):
        kinds = [type(x).__name__ for x in args] + [f"{k}=" for k in kwargs]
        raise InputError("spec.model.uri", f"the program takes {', '.join(kinds) or 'no input'}", remedy)
    return tuple(
        torch.cat([x, x]) if 0 in dims and len(x) == 1 else x for x, dims in zip(args, dynamic_shapes(ep), strict=True)
    )


def unlift(ep: ExportedProgram) -> fx.GraphModule:
    """An independent, editable graph module: weights are attributes, and the input guards are gone.

    The guards return with `reexport`. `train()` and `eval()` of the result are refused by torch: use `set_training`.
    """
    with quiet_torch():
        gm = copy.deepcopy(ep).module(check_guards=False)
    assert isinstance(gm, fx.GraphModule)  # noqa: S101 - narrows torch's annotation
    for node in list(gm.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def reexport(gm: fx.GraphModule, like: ExportedProgram) -> ExportedProgram:
    """Export an edited graph with the example inputs and varying dimensions of `like`.

    Raises:
        LatheError: a dimension that varies in `like` no longer does. torch fixes it without a word.
    """
    gm.graph.lint()
    gm.recompile()
    wanted = dynamic_shapes(like)
    with quiet_torch():
        program = torch.export.export(gm, example_inputs(like), dynamic_shapes=wanted, strict=False)
    found = dynamic_shapes(program)
    lost = [(i, d) for i, dims in enumerate(wanted) for d in dims if d not in found[i]]
    if lost:
        where = ", ".join(f"dimension {d} of input {i}" for i, d in lost)
        raise LatheError(f"the changed network computes with a fixed size in place of {where}")
    return program


def count_parameters(ep: ExportedProgram) -> int:
    """Elements of the trainable weights; buffers are not counted, shared weights once."""
    return sum(p.numel() for p in {id(p): p for p in ep.parameters()}.values())


def module_path(node: fx.Node) -> str:
    """Path of the innermost `nn.Module` that a node came from (`layers.0.conv1`), else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return str(paths[-1]) if paths else node.name
