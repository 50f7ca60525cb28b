"""Any bytes are a checkpoint, or refused in our own words; never anything else."""

import json
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merging import UserError, checkpoints
from merging.checkpoints import gguf_header
from merging.checkpoints import safetensors_header as headers
from merging.checkpoints.gguf import GgufFile
from merging.checkpoints.safetensors import INDEX, SINGLE

EXAMPLES = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONGEST_MESSAGE = 10_000

NAMES = st.sampled_from(["a", "b.weight", "", "\0", "\ud800", "a/b", "../x", "é"])
NUMBERS = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), NAMES)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*headers.DTYPES, "F8_E4M3", "\x1b[1m"]) | SCALARS,
        "shape": st.lists(NUMBERS, max_size=4) | SCALARS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | SCALARS,
        "more": VALUES,
    },
)
HEADERS = st.dictionaries(NAMES | st.just("__metadata__"), ENTRIES | VALUES, max_size=4)


def refused(work):
    """Return what `work` does, or None if it is refused; nothing else may happen."""
    try:
        return work()
    except UserError as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE
        assert str(error).replace("\n", "").isprintable()
        return None


def changed(whole, edits, length):
    """Return bytes with single ones replaced, cut at a length."""
    found = bytearray(whole)
    for place, value in edits:
        found[place % len(found)] = value
    return bytes(found[: length % (len(found) + 1)])


EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4)
LENGTHS = st.just(-1) | st.integers(0, 2**16)


def read_everything(folder):
    source = checkpoints.open_checkpoint(folder)
    for path, leaf in source.abstract.items():
        source.read_into(path, 0, np.empty(leaf.shape, leaf.dtype).reshape(-1))
    return source.abstract


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def opened(folder, content, name=SINGLE):
    (folder / name).write_bytes(content)
    return refused(lambda: read_everything(folder))


def safetensors(header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WHOLE, _ = headers.build(
    {"a": np.zeros((2, 3), np.float32), "b": np.zeros((0, 2), np.int8)}
)
WHOLE += b"\1" * 24


@EXAMPLES
@given(content=st.binary(max_size=64) | st.binary(max_size=64).map(safetensors))
@example(content=safetensors(b"[" * 10_000))
@example(content=safetensors(b'{"a":' * 5_000))
@example(content=safetensors(b'{"__metadata__":' + b"[" * 100_000 + b"}"))
@example(content=safetensors(b'{"__metadata__":"' + b"\\" * 100_001))
def test_any_bytes_as_a_safetensors_file(folder, content):
    opened(folder, content)


@EXAMPLES
@given(header=HEADERS, size=st.integers(0, 16))
def test_any_json_as_a_safetensors_header(folder, header, size):
    opened(folder, safetensors(header, b"\0" * size))


@EXAMPLES
@given(edits=EDITS, length=LENGTHS)
def test_any_change_of_a_safetensors_file(folder, edits, length):
    found = opened(folder, changed(WHOLE, edits, length))
    if not edits and length == -1:
        assert found is not None and found["a"].shape == (2, 3)


@EXAMPLES
@given(
    content=st.binary(max_size=64)
    | VALUES.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(
        st.sampled_from(["weight_map", "metadata", "x"]),
        st.dictionaries(NAMES, st.sampled_from(["x.safetensors", "y"]) | VALUES),
    ).map(lambda v: json.dumps(v).encode())
)
@example(content=b'{"weight_map": ' + b"[" * 100_000)
@example(content=json.dumps({"weight_map": {"a": "x.safetensors"}}).encode())
def test_any_bytes_as_an_index(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("index")
    (folder / "x.safetensors").write_bytes(WHOLE)
    opened(folder, content, INDEX)


def gguf(values=(), tensors=(), tail=b"\0" * 64, version=3):
    """Return a file of (name, kind, bytes) and (name, shape, type, offset)."""

    def text(name):
        return struct.pack("<Q", len(name)) + name

    found = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for name, kind, content in values:
        found += text(name) + struct.pack("<I", kind) + content
    for name, shape, kind, offset in tensors:
        found += text(name) + struct.pack("<I", len(shape))
        found += struct.pack(f"<{len(shape)}Q", *shape)
        found += struct.pack("<IQ", kind, offset)
    return found + b"\0" * (-len(found) % 32) + tail


U64 = st.integers(0, 9) | st.sampled_from([2**31, 2**40, 2**63, 2**64 - 1])
GGUF_NAMES = st.sampled_from([b"a", b"general.alignment", b"\xff", b"", b"t\n"])
GGUF_VALUES = st.tuples(
    GGUF_NAMES,
    st.integers(0, 14),
    st.binary(max_size=12)
    | st.builds(lambda k, n: struct.pack("<IQ", k, n), st.integers(0, 13), U64),
)
GGUF_TENSORS = st.tuples(GGUF_NAMES, st.lists(U64, max_size=5), st.integers(0, 45), U64)
LLAMA = gguf(
    [(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama")],
    [(b"token_embd.weight", (4, 4), 0, 0)],
)


def read_gguf(path):
    file = GgufFile(path)
    for name in file.shapes:
        if not file.unreadable([name]):
            file.rows(name, np.arange(1))
    return file


@EXAMPLES
@given(
    content=st.binary(max_size=64).map(lambda b: b"GGUF\3\0\0\0" + b)
    | st.builds(
        gguf, st.lists(GGUF_VALUES, max_size=2), st.lists(GGUF_TENSORS, max_size=2)
    )
)
@example(content=gguf([(b"a", 9, struct.pack("<IQ", 4, 2**40))]))
@example(content=gguf([(b"a", 9, struct.pack("<IQ", 9, 2**40))]))
@example(content=b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
def test_any_bytes_as_a_gguf_file(folder, content):
    (folder / "x.gguf").write_bytes(content)
    refused(lambda: read_gguf(folder / "x.gguf"))


@EXAMPLES
@given(edits=EDITS, length=LENGTHS)
def test_any_change_of_a_gguf_file(folder, edits, length):
    (folder / "x.gguf").write_bytes(changed(LLAMA, edits, length))
    found = refused(lambda: read_gguf(folder / "x.gguf"))
    if not edits and length == -1:
        assert found.shapes == {"token_embd.weight": (4, 4)}


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":[' + b"[]," * 50_000 + b"[]]}",
        b'{"a":{"shape":[' + b"[]," * 50_000 + b"[]]}}",
        b'{"__metadata__":{"a":[' + b"{}," * 50_000 + b"{}]}}",
        b'{"__metadata__":{"a":"' + b"\\n" * 90_000 + b'"}}',
        b"{" + b'"a":{},' * 100_000 + b'"a":{}}',
    ],
)
def test_a_header_takes_a_few_times_its_bytes_of_memory(text):
    tracemalloc.start()
    refused(lambda: headers.parse("x", b"12345678", text, 8 + len(text)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(text) + 2**20


def test_a_gguf_array_takes_no_more_than_the_file_has_bytes_for():
    content = gguf([(b"a", 9, struct.pack("<IQ", 8, 2**22))])
    tracemalloc.start()
    with pytest.raises(ValueError, match="a text of|ends within its header"):
        gguf_header.parse(lambda at, length: content[at : at + length])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_gguf_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(LLAMA)
    file = GgufFile(path)
    assert not file.rows("token_embd.weight", np.arange(2)).any()
    with open(path, "r+b") as written:
        written.seek(-16, os.SEEK_END)
        written.write(b"\1")
    os.utime(path, ns=(1, 1))  # a clock may not have ticked since
    with pytest.raises(UserError, match="x.gguf was changed while it was being read"):
        file.rows("token_embd.weight", np.arange(2))


def test_a_name_that_is_given_twice_is_found_at_once():
    entry = json.dumps({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
    names = [f'"n{i}": {entry}' for i in range(20_000)]
    text = ("{" + ", ".join([*names, names[7]]) + "}").encode()
    with pytest.raises(UserError, match="'n7' given twice"):
        headers.parse("x", b"12345678", text, 8 + len(text))
