"""Result rows are written whole and read without trust."""

import dataclasses
import errno
import gzip
import json
import os

import pytest

from merging.runtime import results
from merging.runtime.errors import UserError
from merging.runtime.results import Row

ROW = Row(
    suite="miniworld",
    family="tiny",
    size="1x",
    params=16_000,
    base="it",
    method="ties",
    parameters={"scale": 0.4, "density": 0.2, "scale_at_edge": False},
    K=2,
    subset=("qa", "topic"),
    seed=0,
    dataset="qa_1",
    category="qa",
    split="held_in",
    metric="accuracy",
    chance=0.25,
    merged=True,
    value=0.6,
    value_of_expert=0.8,
    value_of_base=0.2,
    normalised=0.75,
    examples=256,
    wall_seconds=0.5,
    git_revision="unknown",
    config_hash="c0ffee",
)
OTHER = dataclasses.replace(ROW, seed=1, dataset="qa_2")


def line(**changes) -> str:
    return json.dumps(dataclasses.asdict(ROW) | changes)


def reading(tmp_path, text: str | bytes) -> str:
    """The message with which `read` refuses a file of this content."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        results.read(path)
    return str(error.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_what_was_written_is_read(tmp_path, name):
    path = results.write(tmp_path / "new" / name, [OTHER, ROW])
    assert results.read(path) == [ROW, OTHER]
    assert path.read_bytes()[:2] == (b"\x1f\x8b" if name.endswith("gz") else b'{"')


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_bytes_depend_on_the_rows_only(tmp_path, name):
    first = results.write(tmp_path / "1" / name, [ROW, OTHER]).read_bytes()
    assert results.write(tmp_path / "2" / name, [OTHER, ROW]).read_bytes() == first


def test_several_files_and_directories_are_joined_in_order(tmp_path):
    results.write(tmp_path / "a" / results.FILE, [OTHER])
    results.write(tmp_path / "b" / (results.FILE + ".gz"), [ROW])
    assert results.read([tmp_path / "a", tmp_path / "b"]) == [ROW, OTHER]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = results.write(tmp_path / "rows.jsonl", [ROW])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(UserError, match="rows.jsonl: No space left on device"):
        results.write(path, [OTHER])
    assert results.read(path) == [ROW]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize(
    "changes", [{"value": float("nan")}, {"size": "<b>"}, {"K": 3}, {"subset": ()}]
)
def test_a_row_that_could_not_be_read_is_not_written(tmp_path, changes):
    with pytest.raises(ValueError, match="not a valid result row"):
        results.write(tmp_path / "r.jsonl", [dataclasses.replace(ROW, **changes)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": "0.5"}, "value must be a finite number, not '0.5'"),
        ({"value": True}, "value must be a finite number"),
        ({"value": 1e300}, "value must be a finite number"),
        ({"value": 10**400}, "value must be a finite number"),
        ({"params": 1.5}, "params must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"base": "xx"}, "base must be one of pt, it"),
        ({"split": ["held_in"]}, "split must be one of"),
        ({"merged": 1}, "merged must be true or false"),
        ({"dataset": "<script>"}, "dataset must be a plain name"),
        ({"dataset": "=1+1"}, "dataset must be a plain name"),
        ({"dataset": "a" * 121}, "dataset must be a plain name"),
        ({"dataset": "a\n"}, "dataset must be a plain name"),
        ({"subset": ["qa", "qa"]}, "subset must be a list of distinct"),
        ({"subset": [["qa"], "topic"]}, "subset must be a list of distinct"),
        ({"parameters": {"scale": {"deep": 1}}}, "parameters must be an object"),
        ({"parameters": []}, "parameters must be an object"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"K": 3}, "K is 3 but subset has 2"),
        ({"merged": False}, "merged contradicts"),
        ({"normalised": 0.7}, "normalised is 0.7, value / denominator is 0.7"),
        ({"value_of_expert": None}, "value / denominator is None"),
    ],
)
def test_a_bad_field_is_named_with_file_and_line(tmp_path, changes, reason):
    message = reading(tmp_path, f"{line()}\n{line(**changes)}\n")
    assert "rows.jsonl:2: " in message and reason in message
    assert "rows.jsonl:1" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line()[:-20], "not JSON"),
        ("\n", "not JSON"),
        ("[1, 2]\n", "not a JSON object"),
        ('{"suite": "a"}\n', "missing family, size"),
        (line()[:-1] + ', "K": 2}\n', "a key occurs twice"),
        (line(value=float("nan")) + "\n", "NaN is not a number"),
        (line(value=float("-inf")) + "\n", "-Infinity is not a number"),
        ("[" * 60_000 + "\n", "nested too deeply"),
        ('"' + "a" * 70_000 + '"\n', "longer than 65536 bytes"),
        (b"\xff\xfe\n", "not UTF-8"),
        ("1" * 5_000 + "\n", "Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_row_is_refused(tmp_path, text, reason):
    message = reading(tmp_path, text)
    assert "rows.jsonl:1: " in message and reason in message


def test_all_bad_lines_are_listed_up_to_ten(tmp_path):
    assert reading(tmp_path, "x\n" + line() + "\ny\n").count("rows.jsonl:") == 2
    message = reading(tmp_path, "x\n" * 50)
    assert message.count("rows.jsonl:") == 10 and "stopped there" in message


def test_a_cut_archive_is_refused(tmp_path):
    data = gzip.compress((line() + "\n").encode() * 100)
    assert "cut or damaged" in reading(tmp_path, data[: len(data) // 2])


@pytest.mark.parametrize("path", ["nowhere.jsonl", ".", os.devnull])
def test_what_is_not_a_file_is_refused(tmp_path, path):
    with pytest.raises(UserError, match="cannot read result rows"):
        results.read(tmp_path / path)


def test_normalise_has_no_value_without_a_denominator():
    assert results.normalise(0.6, 0.8) == pytest.approx(0.75)
    assert results.normalise(0.6, 0.0) is None
    assert results.normalise(0.6, None) is None


def test_rows_from_before_there_were_targets_are_read(tmp_path):
    old = dataclasses.asdict(ROW)
    del old["target_log_p"], old["target_tokens"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(old) + "\n")
    assert results.read(path) == [ROW] and ROW.cross_entropy is None
    new = dataclasses.replace(ROW, target_log_p=-3.0, target_tokens=4)
    results.write(path, [new])
    assert results.read(path) == [new] and new.cross_entropy == 0.75
