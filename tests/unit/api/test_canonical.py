"""The same content has one spelling and one digest."""

import hashlib
import json
import subprocess
import sys
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.yaml_documents import document

from lathe_api.canonical import canonical_json, digest_of
from lathe_api.documents import load_text
from lathe_api.gates import Gate, GateMetric


class Word(StrEnum):
    ONE = "One"


PLAIN = {
    "keys are sorted": ({"b": 1, "a": [2, 3]}, '{"a":[2,3],"b":1}'),
    "tuples are lists": ({"a": (1, (2,))}, '{"a":[1,[2]]}'),
    "enums are their values": ({Word.ONE: Word.ONE}, '{"One":"One"}'),
    "text is UTF-8": ("π", '"π"'),
    "numbers and nothing": ([1, 1.5, True, None], "[1,1.5,true,null]"),
}


@pytest.mark.parametrize(("value", "text"), PLAIN.values(), ids=PLAIN)
def test_a_value_has_one_spelling(value, text):
    assert canonical_json(value) == text.encode()
    assert digest_of(value) == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_a_model_is_written_with_its_defaults_and_without_what_is_absent():
    gate = Gate(name="size", metric=GateMetric.SIZE_RATIO, min="3.5")
    assert json.loads(canonical_json(gate)) == {
        "name": "size",
        "metric": "sizeRatio",
        "baseline": "Original",
        "min": "3.5",
        "dropType": "Absolute",
        "confidence": "0.95",
        "minSamples": 100,
        "stages": [],
        "onFail": "Stop",
        "onInconclusive": "Stop",
    }


def test_spelling_a_default_out_changes_no_digest():
    [short] = load_text(document({"gates": '[{name: g, metric: sizeRatio, min: "3"}]'}))
    [long] = load_text(
        document({"gates": '[{onFail: Stop, name: g, min: "3", metric: sizeRatio, stages: []}]', "seed": "0"})
    )
    assert digest_of(short) == digest_of(long)


def test_a_changed_value_changes_the_digest():
    [one] = load_text(document({"seed": "1"}))
    [two] = load_text(document({"seed": "2"}))
    assert digest_of(one) != digest_of(two)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
def test_the_order_of_keys_does_not_matter(value):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("value", [b"a", {1, 2}, {1: 2}, object()], ids=["bytes", "set", "number as key", "object"])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(TypeError):
        canonical_json({"a": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_the_digest_is_the_same_in_every_process():
    program = "from lathe_api.canonical import digest_of; print(digest_of({w: w for w in ('one', 'two', 'three')}))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {digest_of({"three": "three", "two": "two", "one": "one"})}
