"""A stranger's JSON is read within bounds, or refused."""

import json
import tracemalloc

import pytest

from merging.runtime import foreign_json

MEGABYTE = b"[" + b"[]," * 350_000 + b"[]]"


@pytest.mark.parametrize("kind", [str, bytes])
def test_what_is_within_the_bounds_is_what_json_reads(kind):
    text = json.dumps({"a": [1, 2.5, None, {"b": "[,:{"}], "é": True})
    given = text if kind is str else text.encode()
    assert foreign_json.loads(given) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        (b"\xff", "decode"),
        ("[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        ("[1,2,3,4]", "more than 3 values"),
        (b'{"a": {"b": 0}}', "more than 3 values"),
    ],
)
def test_what_is_beyond_them_or_none_is_a_value_error(text, words):
    most = 3 if "3 values" in words else foreign_json.MOST_VALUES
    with pytest.raises(ValueError, match=words):
        foreign_json.loads(text, most)


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"ab":0}', b"[0]"])
def test_the_most_that_is_taken_is_a_hundred_megabytes(text):
    signs = sum(map(text.count, (b"[", b"{", b",", b":"))) + 1
    many = b"[" + b",".join([text] * (foreign_json.MOST_VALUES // signs - 1)) + b"]"
    tracemalloc.start()
    assert foreign_json.loads(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 110e6 + 2 * len(many)


def test_what_is_refused_takes_no_memory():
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1000 values"):
        foreign_json.loads(MEGABYTE, 1000)
    assert tracemalloc.get_traced_memory()[1] < 2**16
    tracemalloc.stop()
