"""Hostile `.pt2` files are refused before torch reads them, and nothing in them runs."""

import contextlib
import functools
import io
import json
import operator
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import archives
from support.archives import CONSTANTS, INPUTS, MODEL, WEIGHTS, Entries

from lathe_optimizers.errors import InputError, UnsafeFileError
from lathe_optimizers.passes import archive
from lathe_optimizers.passes.programs import load_program, unlift

pytestmark = pytest.mark.models


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.fixture(scope="module")
def benign(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    program = torch.export.export(
        Small().eval(), (torch.rand(2, 4),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)
    )
    path = tmp_path_factory.mktemp("benign") / "benign.pt2"
    torch.export.save(program, path)
    return path


def first_weight(document: dict[str, Any]) -> dict[str, Any]:
    return next(iter(document["config"].values()))


def nodes(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["graph_module"]["graph"]["nodes"]


def in_model(edit: Callable[[dict[str, Any], Path], object]) -> Callable[[Entries, Path], Entries]:
    return lambda content, marker: archives.edited(content, MODEL, lambda document: edit(document, marker))


def with_constant(content: Entries, payload: str, data: bytes, *, use_pickle: bool = True) -> Entries:
    meta = first_weight(json.loads(content[WEIGHTS]))["tensor_meta"]
    item = {"path_name": payload, "is_param": False, "use_pickle": use_pickle, "tensor_meta": meta}
    changed = archives.edited(content, CONSTANTS, lambda d: d["config"].update(c=item))
    return changed | {f"data/constants/{payload}": data}


def pickled_weight(content: Entries, marker: Path) -> Entries:
    changed = archives.edited(content, WEIGHTS, lambda d: first_weight(d).update(use_pickle=True))
    return changed | {"data/weights/weight_0": archives.pickled(marker)}


def flat_layout(content: Entries, marker: Path) -> Entries:
    payload = archives.pickled(marker, wrap=lambda p: {"w": p})
    return {
        "version": b"8.17",
        "serialized_exported_program.json": content[MODEL],
        "serialized_state_dict.pt": payload,
        "serialized_constants.pt": payload,
        "serialized_example_inputs.pt": payload,
    }


def call(target: str, *strings: str) -> dict[str, Any]:
    arguments = [{"name": "", "arg": {"as_string": s}, "kind": 1} for s in strings]
    return {"target": target, "inputs": arguments, "outputs": [], "metadata": {}, "name": "called"}


def evaluated_size(document: dict[str, Any], marker: Path) -> None:
    replace_size(document, f"open({str(marker)!r}, 'w').close()")


def name_as_source(document: dict[str, Any], marker: Path) -> None:
    code = json.dumps(f"x=open({str(marker)!r},'w').close()")
    text = json.dumps(document).replace('"name": "x"', f'"name": {code}').replace('"x": {"dtype"', f'{code}: {{"dtype"')
    document.update(json.loads(text))


def enum_in_tree(document: dict[str, Any], _: Path) -> None:
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    tree = json.loads(signature["in_spec"])
    tree[1]["context"] = json.dumps([{"__enum__": True, "fqn": "imported_by_the_archive:Colour", "name": "RED"}])
    tree[1]["type"] = "builtins.dict"
    signature["in_spec"] = json.dumps(tree)


@dataclass(frozen=True)
class Attack:
    """A way to run code, or to reach files, by a `.pt2` file."""

    craft: Callable[[Entries, Path], Entries]
    names: str
    """What the refusal must name."""
    root: str = "archive/"
    live: bool = True
    """Whether calling what a trusting program loads from it runs the code, which proves that the payload works."""


ATTACKS = {
    "pickle in a weight": Attack(pickled_weight, "linear.weight"),
    "pickle in a constant": Attack(lambda c, m: with_constant(c, "tensor_0", archives.pickled(m)), "`c`"),
    "opaque object": Attack(
        lambda c, m: with_constant(c, "opaque_obj_0", pickle.dumps(archives.Payload(m))), "opaque_obj_0"
    ),
    "script object": Attack(lambda c, m: with_constant(c, "custom_obj_0", b"x"), "custom_obj_0", live=False),
    "pickle in the example inputs": Attack(lambda c, m: c | {INPUTS: archives.pickled(m)}, INPUTS),
    "earlier layout of weights": Attack(
        lambda c, m: c | {"data/weights/model.pt": archives.pickled(m, wrap=lambda p: {"w": p})}, "model.pt"
    ),
    "earlier layout of constants": Attack(
        lambda c, m: c | {"data/constants/model.pt": archives.pickled(m, wrap=lambda p: {"w": p})}, "model.pt"
    ),
    "flat layout": Attack(flat_layout, "root", root=""),
    "compiled library": Attack(
        lambda c, m: c | {"data/aotinductor/model/model.so": b"\x7fELF"}, "model.so", live=False
    ),
    "size that is evaluated": Attack(in_model(evaluated_size), "which is no plain arithmetic"),
    "input name that is source": Attack(in_model(name_as_source), "which is no name"),
    "call of a Python function": Attack(
        in_model(lambda d, m: nodes(d).insert(0, call("torch.serialization.os.system", f"touch {m}"))),
        "torch.serialization.os.system",
        live=False,
    ),
    "enum in a tree structure": Attack(in_model(enum_in_tree), "keys"),
    "operator that reads files": Attack(
        in_model(lambda d, m: nodes(d).insert(0, call("torch.ops.aten.from_file.default", str(m)))),
        "aten::from_file",
        live=False,
    ),
    "operator of TorchScript that writes files": Attack(
        in_model(lambda d, m: nodes(d).insert(0, call("torch.ops.aten.save.default", str(m)))),
        "aten::save",
        live=False,
    ),
    "custom operator": Attack(
        in_model(lambda d, m: nodes(d)[0].update(target="torch.ops.mylib.linear.default")), "mylib::linear", live=False
    ),
}


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that appears when code of the archive runs."""
    path = tmp_path / "marker"
    (tmp_path / "imported_by_the_archive.py").write_text(f"open({str(path)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return path


def load_carelessly(path: Path) -> None:
    """What a program does that trusts its files."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.rand(2, 4))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_archive_that_could_run_code_is_refused_and_nothing_runs(attack, benign, marker, tmp_path):
    hostile = archives.write(tmp_path / "hostile.pt2", attack.craft(archives.entries(benign), marker), attack.root)

    with pytest.raises(UnsafeFileError) as refusal:
        load_program(hostile)

    assert not marker.exists()
    assert str(hostile) in refusal.value.where
    assert attack.names in str(refusal.value)
    assert refusal.value.remedy


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS.values() if a.live], ids=[n for n, a in ATTACKS.items() if a.live]
)
def test_the_attack_is_real_where_the_file_is_trusted(attack, benign, marker, tmp_path):
    hostile = archives.write(tmp_path / "hostile.pt2", attack.craft(archives.entries(benign), marker), attack.root)

    load_carelessly(hostile)

    assert marker.exists()


def test_guards_of_a_file_are_never_run(benign, marker, tmp_path):
    content = archives.edited(
        archives.entries(benign), MODEL, lambda d: d.update(guards_code=[f"open({str(marker)!r}, 'w') is not None"])
    )
    hostile = archives.write(tmp_path / "hostile.pt2", content)

    loaded = load_program(hostile)
    loaded.module()(torch.rand(2, 4))

    assert not marker.exists()


def test_what_is_loaded_is_what_was_checked(benign, tmp_path):
    path = archives.write(tmp_path / "model.pt2", archives.entries(benign))

    with archive.checked(path) as private:
        path.write_bytes(b"exchanged after the check")
        program = torch.export.load(private)

    assert torch.equal(program.state_dict["linear.weight"], torch.export.load(benign).state_dict["linear.weight"])
    assert not private.exists()


def test_a_program_from_a_gpu_is_read_onto_the_cpu(benign, tmp_path):
    content = {
        name: data.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')
        for name, data in archives.entries(benign).items()
    }
    assert b"cuda" in content[MODEL]
    assert b"cuda" in content[WEIGHTS]

    program = load_program(archives.write(tmp_path / "gpu.pt2", content))

    assert {t.device.type for t in program.state_dict.values()} == {"cpu"}


def sizes(*numbers: int) -> Callable[[dict[str, Any]], None]:
    return lambda d: first_weight(d)["tensor_meta"].update(sizes=[{"as_int": n} for n in numbers])


def far_offset(document: dict[str, Any]) -> None:
    first_weight(document)["tensor_meta"]["storage_offset"] = {"as_int": 1000}


def wrong_path(document: dict[str, Any]) -> None:
    first_weight(document)["path_name"] = "../sample_inputs/model.pt"


def on_meta(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["tensor_values"]["x"]["device"] = {"type": "meta", "index": None}


def replace_size(document: dict[str, Any], expression: str) -> None:
    for size in document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]:
        if "as_expr" in size:
            size["as_expr"]["expr_str"] = expression


CONTENTS = {
    "tensor larger than its payload": (WEIGHTS, sizes(1 << 20, 1 << 20), "linear.weight"),
    "negative size": (WEIGHTS, sizes(-3, 4), "linear.weight"),
    "sizes without strides": (WEIGHTS, sizes(3), "linear.weight"),
    "offset outside the payload": (WEIGHTS, far_offset, "linear.weight"),
    "payload outside its folder": (WEIGHTS, wrong_path, "linear.weight"),
    "unknown element type": (WEIGHTS, lambda d: first_weight(d)["tensor_meta"].update(dtype=99), "linear.weight"),
    "unknown fields": (WEIGHTS, lambda d: d.update(more=1), "no list of tensors"),
    "tensor without values": (MODEL, on_meta, "meta"),
    "symbol that torch would count up to": (
        MODEL,
        lambda d: d["range_constraints"].update(u999999999999={"min_val": 0, "max_val": 4}),
        "no symbol",
    ),
    "power that fills the memory": (
        MODEL,
        lambda d: replace_size(d, "Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
        "no plain",
    ),
    "weight name with a quote": (WEIGHTS, lambda d: d["config"].update({'a"b': first_weight(d)}), "the name"),
    "no graph": (MODEL, lambda d: d.pop("graph_module"), "graph_module"),
    "enormous number": (MODEL, lambda d: nodes(d)[0]["inputs"][0].update(kind=10**30), "the number"),
}


@pytest.mark.parametrize(("entry", "edit", "named"), CONTENTS.values(), ids=CONTENTS)
def test_content_that_does_not_fit_is_refused(entry, edit, named, benign, tmp_path):
    damaged = archives.write(tmp_path / "damaged.pt2", archives.edited(archives.entries(benign), entry, edit))

    with pytest.raises(UnsafeFileError, match=r"damaged\.pt2") as refusal:
        load_program(damaged)

    assert named in str(refusal.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a JSON document."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


STRANGE = (None, True, -1, 10**17, 1.5, "", "a b", [], {}, [1], {"as_int": 3}, {"name": "x"}, "Symbol('s0')")


def test_any_change_of_a_file_is_harmless_or_explained(benign, tmp_path):
    choose = random.Random(0)  # noqa: S311 - the same changes in every run
    content, outcomes = archives.entries(benign), set()
    for _ in range(80):
        entry = choose.choice((MODEL, MODEL, WEIGHTS))
        document = json.loads(content[entry])
        *parents, last = choose.choice(list(places(document)))
        place = functools.reduce(operator.getitem, parents, document)
        place[last] = choose.choice(STRANGE)
        changed = archives.write(tmp_path / "changed.pt2", content | {entry: json.dumps(document).encode()})
        try:
            load_program(changed)
            outcomes.add("loaded")
        except InputError as e:
            outcomes.add(type(e).__name__)

    assert outcomes == {"loaded", "InputError", "UnsafeFileError"}


def bomb(path: Path, content: Entries) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in content.items():
            z.writestr(f"archive/{name}", data)
        z.writestr("archive/extra/zeros", bytes(1 << 24))


def overlapping(path: Path, content: Entries) -> None:
    """Many directory entries that share one payload, so that little data unpacks to much."""
    with zipfile.ZipFile(path, "w") as z:
        for name, data in content.items():
            z.writestr(f"archive/{name}", data)
        z.writestr("archive/extra/0", bytes(1 << 16))
        shared = z.infolist()[-1]
        for i in range(1, 20):
            copy = zipfile.ZipInfo(f"archive/extra/{i}")
            copy.file_size, copy.compress_size, copy.CRC = shared.file_size, shared.compress_size, shared.CRC
            copy.header_offset = shared.header_offset
            z.filelist.append(copy)
            z.NameToInfo[copy.filename] = copy


def unusual_inputs(inputs: object) -> Callable[[Path, Entries], None]:
    def craft(path: Path, content: Entries) -> None:
        buffer = io.BytesIO()
        torch.save(inputs, buffer)
        archives.write(path, content | {INPUTS: buffer.getvalue()})

    return craft


def inner_bomb(path: Path, content: Entries) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", bytes(1 << 24))
    archives.write(path, content | {INPUTS: buffer.getvalue()})


def extra(name: str, **attributes: int) -> Callable[[Path, Entries], None]:
    def craft(path: Path, content: Entries) -> None:
        archives.write(path, content)
        with zipfile.ZipFile(path, "a") as z, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # zipfile's own about duplicates
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            z.writestr(info, b"content")

    return craft


def encrypted(path: Path, content: Entries) -> None:
    archives.write(path, content)
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[-6:-2], "little")  # where the end record says that it begins
    data[directory + 8] |= 1
    path.write_bytes(data)


def damaged_weight(path: Path, content: Entries) -> None:
    archives.write(path, content)
    data = path.read_bytes()
    weight = content["data/weights/weight_0"]
    path.write_bytes(data.replace(weight, bytes(len(weight)), 1))


CONTAINERS = {
    "zip bomb": (bomb, "compressed"),
    "overlapping entries": (overlapping, ""),
    "zip bomb in the example inputs": (inner_bomb, "compressed"),
    "example inputs that repeat their storage": (
        unusual_inputs(((torch.zeros(1).expand(1 << 40),), {})),
        "enormous",
    ),
    "example inputs that are no arguments": (unusual_inputs([1, 2]), "something else"),
    "name that leads up": (extra("archive/../../up"), "leads out"),
    "absolute name": (extra("/etc/passwd"), "leads out"),
    "drive letter": (extra("C:/x"), "leads out"),
    "backslash": (extra("archive\\up"), "misleading"),
    "control character": (extra("archive/a\nb"), "misleading"),
    "duplicate entry": (extra("archive/models/model.json"), "two entries of one name"),
    "second root": (extra("other/extra/x"), "root folders"),
    "symbolic link": (extra("archive/extra/link", create_system=3, external_attr=0o120777 << 16), "link"),
    "unknown entry": (extra("archive/data/other/x"), "does not write"),
    "second model": (extra("archive/models/other.json"), "does not write"),
    "encrypted entry": (encrypted, "encrypted"),
    "wrong checksum": (damaged_weight, "not a whole"),
    "truncated": (lambda p, c: p.write_bytes(archives.write(p, c).read_bytes()[:-500]), ""),
    "not a zip": (lambda p, c: p.write_bytes(b"\x80\x04pickle"), "not a whole"),
    "empty": (lambda p, c: p.write_bytes(b""), "not a whole"),
    "folder": (lambda p, c: p.mkdir(), "not a regular file"),
    "no model": (lambda p, c: archives.write(p, {n: d for n, d in c.items() if n != MODEL}), MODEL),
    "other version": (lambda p, c: archives.write(p, c | {"archive_version": b"1"}), "version"),
    "big-endian weights": (lambda p, c: archives.write(p, c | {"byteorder": b"big"}), "big-endian"),
    "JSON that is too deep": (lambda p, c: archives.write(p, c | {MODEL: b'{"a":' * 100_000}), "no JSON object"),
    "example inputs that are no archive": (lambda p, c: archives.write(p, c | {INPUTS: b"\x80\x02N."}), "no archive"),
}


@pytest.mark.parametrize(("craft", "named"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_that_torch_does_not_write_is_refused(craft, named, benign, tmp_path):
    path = tmp_path / "hostile.pt2"
    craft(path, archives.entries(benign))

    with pytest.raises(UnsafeFileError, match=r"hostile\.pt2") as refusal:
        load_program(path)

    assert named in str(refusal.value)


class Flattened(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3, stride=2, padding=1)

    def forward(self, x):
        y = self.conv(torch.nn.functional.pad(x, (0, 1, 1, 0)))
        with torch.no_grad():
            shift = y.mean()
        return (y[:, :, ::2] - shift).flatten(1), torch.nn.functional.max_pool2d(y, 2).sum((1, 2, 3))


class FakeQuantised(torch.nn.Module):
    def forward(self, x):
        q = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 3, 0, 255, torch.uint8)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(q, 0.1, 3, 0, 255, torch.uint8)


FREE = torch.export.Dim.DYNAMIC
BENIGN = {
    "linear": (Small, (3, 4), {0: FREE}),
    "fixed batch": (Small, (3, 4), {}),
    "sizes that are computed, no_grad, several outputs": (Flattened, (3, 1, 16, 20), {0: FREE, 2: FREE, 3: FREE}),
    "quantised operators": (FakeQuantised, (3, 4), {0: FREE}),
    "recurrent layer": (lambda: torch.nn.LSTM(4, 5, batch_first=True), (3, 7, 4), {0: FREE}),
    "attention": (lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 5, 8), {0: FREE}),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # of the export of an LSTM
@pytest.mark.parametrize(("make", "shape", "free"), BENIGN.values(), ids=BENIGN)
def test_a_benign_archive_loads_and_answers_as_before(make, shape, free, tmp_path):
    torch.manual_seed(0)
    network, x = make().eval(), torch.rand(shape)
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=(free,)), path)

    answers = torch.utils._pytree.tree_leaves(unlift(load_program(path))(x))

    expected = torch.utils._pytree.tree_leaves(network(x))
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert torch.allclose(answer, wanted, atol=1e-6)
