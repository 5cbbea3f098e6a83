"""Whatever a file holds, reading it ends in documents or in problems that say where."""

import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.yaml_documents import document

from lathe_api import yamltree
from lathe_api.documents import inspect_file, inspect_text, load_file, load_text
from lathe_api.errors import DocumentError

HERE = Path(__file__).parent
HEAD = "apiVersion: lathe.dev/v1alpha1\nkind: OptimizedModel\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
REFUSED = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", (3, 1), "a", "the key a a second time (first in line 1)", "keep one"),
    "a key twice deep down": (f"{HEAD}spec:\n  - {{x: 1, x: 2}}\n", (4, 12), "spec[0].x", "second time", "keep one"),
    "an anchor": ("a: &top 1\n", (1, 4), "", "the anchor &top", "anchors and aliases are not read"),
    "an alias bomb": (BOMB, (1, 4), "", "the anchor &a", "not read"),
    "an alias": ("a: *b\n", (1, 4), "", "the alias *b", "write the value out"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]\n", (1, 4), "", "the tag", "tags are not read"),
    "a tag of one's own": ("a: !secret b\n", (1, 4), "", "the tag !secret", "remove it"),
    "a truth value as a key": ("on: 1\n", (1, 1), "on", "the key on (a boolean)", 'write it in quotes: "on"'),
    "a number as a key": ("5: 1\n", (1, 1), "['5']", "the key 5 (a number)", 'write it in quotes: "5"'),
    "an empty key": ("? \n: 1\n", (1, 2), "['']", "the key nothing", "write a name"),
    "a list as a key": ("? [a]\n: 1\n", (1, 3), "", "a list of 0 as a key", "write a name"),
    "a tab for indentation": ("a:\n\tb: 1\n", (2, 1), "", "no YAML", "correct the indentation"),
    "an open bracket": ("a: [1, 2\n", (2, 1), "", "no YAML", "brackets"),
    "an open quote": ('a: "b\n', (2, 1), "", "no YAML", "quotes"),
    "a control character": ("a: \x07\n", (1, 1), "", "control characters", "UTF-8 text"),
    "a key of several lines": ('{"a\\nb": 1, "a\\nb": 2}\n', (1, 13), r"['a\nb']", r"the key a\nb a second", "keep"),
    "too deep": ("[" * 200, (1, 33), "", "more than 32 levels", "that deep"),
    "too many values": ("[" + "x," * 60_000 + "]", (1, 100_000), "", "more than 50000 values", "split the file"),
    "too many documents": ("--- x\n" * 200, (101, 5), "", "more than 100 documents", "split"),
    "too many bytes": ("#" * (1 << 20) + "\n", (1, 1), "", "1048577 bytes", "below 1048576 bytes"),
    "nothing": ("# only a comment\n", (1, 1), "", "no document", "beginning with apiVersion"),
    "a list": ("- a\n", (1, 1), "", "a list of 1", "write a mapping"),
    "a text": ("teacher.pt2\n", (1, 1), "", '"teacher.pt2"', "write a mapping"),
    "another kind of object": ("apiVersion: v1\nkind: Secret\n", (1, 13), "apiVersion", '"v1"', "keep other objects"),
    "no kind": ("apiVersion: lathe.dev/v1alpha1\n", (1, 1), "kind", "nothing", "write one of OptimizedModel"),
    "a misspelt kind": (
        HEAD.replace("izedM", "isedM"),
        (2, 7),
        "kind",
        '"OptimisedModel"',
        "did you mean OptimizedModel",
    ),
    "an old version": (HEAD.replace("v1alpha1", "v1"), (1, 13), "apiVersion", '"lathe.dev/v1"', "lathe.dev/v1alpha1"),
}


@pytest.mark.parametrize(("text", "place", "path", "found", "remedy"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_its_place(text, place, path, found, remedy):
    with pytest.raises(DocumentError) as refused:
        load_text(text, "model.yaml")
    problem = next(p for p in refused.value.problems if found in p.found)
    assert (problem.file, problem.line, problem.column) == ("model.yaml", *place)
    assert problem.path == path
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"a: \xff\xfe", "no UTF-8"), ("a: 1".encode("utf-16"), "no UTF-8"), (b"\x00", "control characters")],
    ids=["bytes", "UTF-16", "zero"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, data, found):
    (tmp_path / "model.yaml").write_bytes(data)
    assert found in inspect_file(tmp_path / "model.yaml").problems[0].found


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "model.yaml").write_bytes(b"\xef\xbb\xbf" + document({}).encode())
    assert len(load_file(tmp_path / "model.yaml")) == 1


@pytest.mark.parametrize(
    ("name", "found"),
    [("nothing.yaml", "no such file"), (".", "is a directory")],
    ids=["missing", "folder"],
)
def test_a_path_that_is_no_file_is_named(tmp_path, name, found):
    with pytest.raises(DocumentError) as refused:
        load_file(tmp_path / name)
    [problem] = refused.value.problems
    assert found in problem.found
    assert str(problem).startswith(f"{tmp_path / name}: found")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_an_endless_file_is_read_to_the_bound_only():
    assert "bytes" in inspect_file(Path("/dev/zero")).problems[0].found


def test_a_problem_in_one_document_does_not_hide_the_others():
    found = inspect_text(f"{document({'seed': 'x'})}---\n{document({})}---\n{HEAD}")
    assert len(found.documents) == 1
    assert [p.path for p in found.problems] == ["spec.seed", "metadata", "spec"]


def test_a_plain_y_is_read_as_a_text_and_warned_of():
    found = inspect_text((HERE / "design.yaml").read_text())
    assert found.problems == ()
    assert {(w.path, w.remedy) for w in found.warnings} == {
        ("spec.data.train.target", 'write it in quotes: "y"'),
        ("spec.data.evaluation.target", 'write it in quotes: "y"'),
    }


SCALARS = {
    "12": 12,
    "-3": -3,
    "+4": 4,
    "0": 0,
    "true": True,
    "Off": False,
    "~": None,
    "''": "",
    "'12'": "12",
    '"true"': "true",
    "1.2.3": "1.2.3",
    "12ab": "12ab",
    "nano": "nano",
    "2026-01-31": "2026-01-31",
    "a: b": {"a": "b"},
    "{a: , b: 1}": {"b": 1},
    "[~]": [None],
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items(), ids=SCALARS)
def test_scalars_mean_what_they_mean_to_kubectl(text, value):
    trees, problems = yamltree.read(text.encode(), "text")
    assert problems == []
    assert [yamltree.to_json(t) for t in trees] == ([value] if value is not None else [])


@pytest.mark.parametrize(
    "text",
    ["0.5", "1.", ".5", "1e3", "-1.5E-3", "0x1F", "0b101", "0o17", "017", "1_000", ".inf", "-.Inf", ".nan", "9" * 5000],
)
def test_numbers_that_are_no_plain_integer_are_told_apart(text):
    [tree], _ = yamltree.read(text.encode(), "text")
    assert tree.kind == "number"
    assert len(tree.describe()) < 80


BASE = document({"gates": '[{name: size, metric: sizeRatio, min: "3"}]'})
YAML_TEXT = st.text(
    alphabet=string.ascii_letters + string.digits + " \n\t:-{}[],'\"&*!#%@`|>?~.\\$é\u2028\x00", max_size=60
)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(BASE)), length=st.integers(0, 20), put=YAML_TEXT)
def test_a_damaged_document_loads_or_is_refused_with_problems(at, length, put):
    assert_documents_or_problems(BASE[:at] + put + BASE[at + length :])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_loads_or_is_refused_with_problems(text):
    assert_documents_or_problems(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused_with_problems(data):
    trees, problems = yamltree.read(data, "file")
    assert all(p.line >= 1 and p.column >= 1 for p in problems)
    assert isinstance(trees, list)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = ["model", "data", "objective", "recipe", "gates", "targets", "rollout", "learning", "monitoring", "status"]


@settings(max_examples=200, deadline=None)
@given(section=st.sampled_from(SECTIONS), value=VALUES)
def test_any_value_in_any_section_loads_or_is_refused_with_problems(section, value):
    import yaml

    content = yaml.safe_load(BASE)
    content["spec"][section] = value
    assert_documents_or_problems(yaml.safe_dump(content))


def assert_documents_or_problems(text: str) -> None:
    found = inspect_text(text, "file")
    assert found.documents or found.problems
    assert all(p.line >= 1 and p.column >= 1 and p.found and p.remedy for p in found.problems)
    assert all("\n" not in str(p) for p in found.problems)
