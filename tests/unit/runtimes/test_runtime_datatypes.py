"""BYTES on the wire."""

import pytest

from lathe_runtimes.datatypes import BY_CONFIG, DATATYPES, decode_bytes, encode_bytes


@pytest.mark.parametrize("elements", [[], [""], ["a", "", "äöü", "x" * 300], ["\x00"]])
def test_bytes_come_back(elements):
    assert decode_bytes(memoryview(encode_bytes(elements))) == elements


@pytest.mark.parametrize(
    "data",
    [b"\x01", b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xff", b"\x00\x00\x00\x00\x00"],
    ids=["length cut off", "element cut off", "length of 4 GB", "no UTF-8", "rest behind the last element"],
)
def test_damaged_bytes_are_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 the message is for people
        decode_bytes(memoryview(data))


def test_every_datatype_has_one_number_of_the_configuration():
    assert len(BY_CONFIG) == len(DATATYPES) == 14
