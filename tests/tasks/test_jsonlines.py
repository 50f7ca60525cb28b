import pytest

from merging.runtime.errors import UserError
from merging.tasks import jsonlines


def write(path, *lines):
    path.write_bytes(b"".join(lines))
    return path


def test_every_fault_has_its_line_and_the_rest_is_read(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        b'\xef\xbb\xbf{"a": 1}\n',
        b"\n",
        b'{"a": 2\n',
        b'{"a": "\xff"}\n',
        b"[1]\n",
        b'{"a": "\\ud83d"}\n',
        b'{"a": "\\ud83d\\ude00"}\n',
        b"[" * 100_000 + b"\n",
        b'{"a": ' + b"9" * 5000 + b"}\n",
        b'{"a": 3}',
    )
    lines = list(jsonlines.read(path))
    assert [line.record for line in lines if line.record] == [
        {"a": 1},
        {"a": "\N{GRINNING FACE}"},
        {"a": 3},
    ]
    faults = {line.number: line.error for line in lines if line.error}
    assert faults[3].startswith("not JSON (Expecting")
    assert faults[4] == "not UTF-8 (byte 7)"
    assert faults[5] == "list, not an object"
    assert "surrogate" in faults[6]
    assert "nested too deep" in faults[8] and "number too long" in faults[9]
    assert set(faults) == {3, 4, 5, 6, 8, 9}
    assert jsonlines.count(path) == 9


def test_lines_are_found_again_at_their_places(tmp_path):
    path = write(tmp_path / "x", *(b'{"n": %d}\n' % n for n in range(5)))
    places = [line.offset for line in jsonlines.read(path)]
    assert list(jsonlines.at(path, places[::-2])) == [{"n": n} for n in (4, 2, 0)]
    path.write_bytes(b"{}")
    with pytest.raises(UserError, match="changed while it was read"):
        list(jsonlines.at(path, places))


def test_a_line_without_end_is_a_fault_and_not_a_full_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "MAX_LINE", 64)
    path = write(tmp_path / "x", b"x" * 1000, b'\n{"a": 1}\n', b"y" * 65)
    first, second, third = jsonlines.read(path)
    assert first.error == third.error == "longer than 64 bytes"
    assert (second.number, second.record) == (2, {"a": 1})
    assert list(jsonlines.at(path, [second.offset])) == [{"a": 1}]
    assert jsonlines.count(path) == 3


def test_a_missing_file_and_one_outside_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        list(jsonlines.read(tmp_path / "none"))
    with pytest.raises(UserError, match="leads out of"):
        jsonlines.inside(tmp_path / "a", "../b.jsonl")
