"""A suite of one's own files."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from test_tokenizers import byte_level

from merging import tasks
from merging.runtime.errors import UserError
from merging.tasks.jsonl import OwnFiles

TIDES = {"dataset": "tides", "category": "sea", "split": "held_in"}
BELLS = {"dataset": "bells", "category": "town", "split": "held_out"}


def tide(number, **change):
    row = {
        "inputs": f"Tide {number}?",
        "choices": ["noon", "dusk"],
        "label": number % 2,
    }
    return TIDES | row | change


def bell(number, **change):
    return BELLS | {"inputs": f"Bell {number}", "target": f"tone {number}"} | change


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer") / "m")


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("own")
    parts = [tide(n, part=p) for p in ("train", "validation", "test") for n in range(4)]
    named = [tide(9, part="train")]
    del named[0]["label"]
    named[0]["target"] = "dusk"
    files = (
        write(folder / "a.jsonl", parts[:8]),
        write(folder / "b.jsonl", [*named, bell(1), *parts[8:], bell(2)]),
    )
    return tasks.suite("jsonl", files=files, tokenizer=tokenizer)


def test_the_facts_come_from_the_lines(suite):
    assert suite.datasets == (
        ("tides", "sea", "held_in", "accuracy", 0.5),
        ("bells", "town", "held_out", "exact_match", 0.0),
    )
    assert suite.categories == ("sea",) and suite.prefix == "jsonl"
    assert suite.evaluations("tides") == {"": "jsonl_tides_score_eval"}
    assert pickle.loads(pickle.dumps(suite)) == suite


def test_lines_are_trained_on_and_evaluated(suite):
    tides, bells = tasks.load_suite(suite, "test")
    assert (tides.ranked, tides.examples) == (True, 4)
    right = [target[1] for target in tides.targets[:4]]
    assert right == [True, False, False, True]
    assert (bells.ranked, bells.targets) == (False, ("tone 1", "tone 2"))
    tokens, weights = tasks.materialise(suite, "sea", "train", 32)
    texts = [suite.tokenizer.decode(row[row > 0]) for row in tokens]
    assert texts == [
        f"Tide {n}? {a}"
        for n, a in zip(
            (0, 1, 2, 3, 9), ("noon", "dusk", "noon", "dusk", "dusk"), strict=True
        )
    ]
    assert suite.tokenizer.decode(tokens[4][weights[4]]) == " dusk"
    assert tasks.materialise(suite, "multitask", "train", 32).tokens.shape[0] == 5


def test_lines_without_a_part_are_dealt_by_their_inputs(tmp_path):
    rows = [tide(n) for n in range(100)] + [tide(n, label=1) for n in range(100)]
    own = OwnFiles(write(tmp_path / "x", [*rows, bell(0)]))
    places = own._piles["tides"].places
    sizes = {part: len(found) for part, found in places.items()}
    assert sizes == {"train": 180, "validation": 10, "test": 10}
    inputs = {p: {r["inputs"] for r in own._read(found)} for p, found in places.items()}
    assert len(inputs["test"] | inputs["validation"] | inputs["train"]) == 100
    assert sum(map(len, inputs.values())) == 100
    assert list(own._piles["bells"].places) == ["test"]
    reordered = OwnFiles(write(tmp_path / "y", [*rows[::-1], bell(0)]))
    again = reordered._read(reordered._piles["tides"].places["test"])
    assert {row["inputs"] for row in again} == inputs["test"]


def test_where_nothing_is_trained_the_lines_are_dealt_in_halves(tmp_path, tokenizer):
    rows = [*map(tide, range(20)), bell(0)]
    path = write(tmp_path / "x", rows)
    suite = tasks.suite("jsonl", files=path, tokenizer=tokenizer, train=False)
    places = suite.source._piles["tides"].places
    assert {part: len(of) for part, of in places.items()} == {
        "test": 10,
        "validation": 10,
    }
    trained = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    assert suite.digest != trained.digest
    only_dev = [tide(n, part=part) for n, part in enumerate(("validation", "test"))]
    assert OwnFiles(write(tmp_path / "y", only_dev), train=False)
    with pytest.raises(UserError, match="none of its 2 lines is for train"):
        OwnFiles(write(tmp_path / "z", only_dev))


def test_the_digest_follows_the_files_bytes_and_not_their_names(tmp_path, tokenizer):
    def digest(name, rows):
        path = write(tmp_path / name, rows)
        return tasks.suite("jsonl", files=(path,), tokenizer=tokenizer).digest

    assert digest("a", [bell(1)]) == digest("b", [bell(1)]) != digest("c", [bell(2)])


def test_a_file_that_is_written_anew_is_read_anew(tmp_path, tokenizer):
    path = write(tmp_path / "x", [bell(1)])
    before = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    cache = {"cache_dir": tmp_path / "cache"}
    (old,) = tasks.load_suite(before, "test", **cache)
    write(tmp_path / "x", [bell(2), bell(3)])
    after = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    assert after != before and after.digest != before.digest
    (new,) = tasks.load_suite(after, "test", **cache)
    assert (old.targets, new.targets) == (("tone 1",), ("tone 2", "tone 3"))


def test_a_file_that_changes_under_a_suite_is_not_read(tmp_path, tokenizer):
    path = write(tmp_path / "x", [bell(1)])
    suite = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    write(tmp_path / "x", [bell(2)])
    with pytest.raises(UserError, match="x: changed since they were checked"):
        suite.source._read(suite.source._piles["bells"].places["test"])


def test_what_is_held_out_is_trained_on_only_if_it_says_so(tmp_path, tokenizer):
    path = write(tmp_path / "x", [tide(n) for n in range(3)] + [bell(1)])
    suite = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    with pytest.raises(UserError, match="unknown split of bells 'train'.*Valid: test"):
        tasks.materialise(suite, "bells", "train", 32)


FAULTS = [
    (tide(0, choices=["noon"], label=0), "1 choices, a rank task needs 2 or more"),
    (tide(0, choices=["noon", " "]), "a choice is empty"),
    (tide(0, choices=["noon", "noon"]), "two choices are the same"),
    (tide(0, choices="noon"), "choices must be a list of texts"),
    (tide(0, label=2), "no choice is the right one: label 2 of 2 choices"),
    (tide(0, label=-1), "no choice is the right one: label -1 of 2"),
    (tide(0, label=True), "no choice is the right one: label True of 2"),
    (tide(0, label=[]), "no choice is the right one: label list of 2"),
    (
        tide(0, target="noon"),
        "choices need a label (the right one's number) or a target",
    ),
    (bell(0, choices=["a", "b"]), "no choice is the right one: none equals the target"),
    (bell(0, target=" "), "target must be a text, or there must be choices"),
    (bell(0, label=0), "a label needs choices"),
    (bell(0, inputs=""), "inputs must be a text"),
    (bell(0, inputs=3), "inputs must be a text"),
    (bell(0, dataset="../x"), "dataset '../x' must be a short name"),
    (bell(0, dataset="category_x"), "dataset 'category_x' must be a short name"),
    (bell(0, category="b" * 65), f"category {'b' * 65!r} must be a short name"),
    (bell(0, split="held"), "split must be held_in or held_out, not 'held'"),
    (bell(0, part=["test"]), "part must be one of train, validation, test"),
    (bell(0, metric="f2"), "unknown metric 'f2': did you mean f1"),
    (bell(0, metric=["f1"]), "unknown metric 'list'"),
    (bell(0, metric="accuracy"), "accuracy is no metric for a text that is generated"),
    (tide(0, metric="f1"), "f1 is no metric for an example with choices"),
    (bell(0, imputs="x"), "unknown key 'imputs': did you mean inputs"),
    (bell(0, stop="x"), "stop must be a list of at most 16 texts"),
    (bell(0, stop=[""]), "stop must be a list of at most 16 texts"),
    (bell(0, stop=["x"] * 17), "stop must be a list of at most 16 texts"),
    (
        bell(0, max_new_tokens=0),
        "max_new_tokens must be a whole number from 1 to 65536",
    ),
    (bell(0, max_new_tokens=1e3), "max_new_tokens must be a whole number from 1"),
    (bell(0, max_new_tokens=True), "max_new_tokens must be a whole number from 1"),
    (tide(0, stop=["x"]), "stop is for a text"),
    (
        bell(0, stop=["x"]),
        "bells was town, held_out, exact_match until here, and now is town, held_out,"
        " exact_match, stop ['x']",
    ),
    (bell(0, category="sea"), "bells was town, held_out, exact_match until here"),
]


@pytest.mark.parametrize(("row", "said"), FAULTS, ids=range(len(FAULTS)))
def test_a_faulty_line_is_named_by_file_and_number(tmp_path, row, said):
    path = write(tmp_path / "own.jsonl", [bell(1), row, bell(2)])
    with pytest.raises(UserError) as caught:
        OwnFiles((path,))
    assert f"{path}:2: {said}" in str(caught.value)


def test_a_text_goes_as_far_as_its_lines_say(tmp_path, tokenizer):
    how = {"stop": ["\n", " and"], "max_new_tokens": 5}
    other = {"dataset": "free", "target": "a tone that goes on and on"}
    rows = [bell(1, **how), bell(2, **how), bell(3, **other)]
    suite = tasks.suite("jsonl", files=write(tmp_path / "x", rows), tokenizer=tokenizer)
    bells, free = tasks.load_suite(suite, "test")
    said = " tone 1 and tone 2\nBell 3"
    assert bells.postprocess(0, said) == "tone 1"
    assert bells.postprocess(0, "\ntone 1") == ""  # as every other program has it
    assert bells.targets == ("tone 1", "tone 2") and bells.max_new_tokens == 5
    assert free.postprocess(0, said) == said.strip()
    assert free.targets == ("a tone that goes on and on",)
    assert free.max_new_tokens > free.continuation_lengths.max()


def test_all_faults_are_counted_and_ten_shown(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"dataset"\n' * 11 + b"\xff\n" * 2)
    with pytest.raises(UserError, match="own.jsonl:10: not JSON.*; and 3 more$"):
        OwnFiles((str(path),))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "suite 'jsonl' has no examples: .*x"),
        (
            [tide(0), tide(1)],
            "tides: none of its 2 lines is for train: say of some .part.: .train., or"
            ".*, or train=False if none is trained on",
        ),
        ([tide(0, part="train")], "tides: none of its 1 lines is for test"),
        ([bell(0, part="train")], "bells: none of its 1 lines is for test"),
        (
            [bell(0, dataset="town")],
            "town has the name of a category, or one of pretrain",
        ),
        ([bell(0, category="instruct")], "no category may be called instruct"),
    ],
)
def test_what_cannot_be_a_suite_is_refused_whole(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        OwnFiles((write(tmp_path / "x", rows),))


def test_files_are_needed_and_a_tokenizer(tmp_path):
    for none in ({}, {"files": ()}, {"files": ("",)}):
        with pytest.raises(UserError, match="has no examples: give files"):
            tasks.suite("jsonl", **none)
    with pytest.raises(UserError, match="none: No such file"):
        tasks.suite("jsonl", files=(str(tmp_path / "none"),))
    os.mkfifo(tmp_path / "pipe")
    for odd in ("pipe", "."):
        with pytest.raises(UserError, match="no regular file"):
            tasks.suite("jsonl", files=(str(tmp_path / odd),))
    path = write(tmp_path / "x", [bell(0)])
    with pytest.raises(UserError, match="suite 'jsonl' needs a model's tokenizer"):
        tasks.suite("jsonl", files=path)


def test_a_suite_may_be_there_to_evaluate_only(tmp_path, tokenizer):
    path = write(tmp_path / "x", [bell(0), bell(1)])
    suite = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    (bells,) = tasks.load_suite(suite, "test")
    assert bells.targets == ("tone 0", "tone 1") and suite.categories == ()
    with pytest.raises(UserError, match="no held-in dataset to train on"):
        tasks.materialise(suite, "multitask", "train", 32)


def test_the_facts_need_no_tensorflow(tmp_path, tokenizer):
    path = write(tmp_path / "x", [bell(0)])
    code = (
        "import sys; from merging import tasks\n"
        f"s = tasks.suite('jsonl', files={path!r}, tokenizer={tokenizer!r})\n"
        "print(s.datasets[0].name, len(s.digest), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["bells", "16", "False"]


def test_the_first_of_each_dataset_may_be_enough(tmp_path, tokenizer):
    parts = ("train", "validation", "test")
    rows = [tide(n, part=p) for p in parts for n in range(6)]
    path = write(tmp_path / "x", [*rows, *map(bell, range(6))])
    whole = tasks.suite("jsonl", files=path, tokenizer=tokenizer)
    few = tasks.suite(
        "jsonl", files=path, tokenizer=tokenizer, validation_examples=2, test_examples=4
    )
    for suite, sizes in ((whole, (6, 6, 6)), (few, (6, 2, 4))):
        places = suite.source._piles["tides"].places
        assert tuple(len(places[part]) for part in parts) == sizes
    assert len(few.source._piles["bells"].places["test"]) == 4
    tides, bells = tasks.load_suite(few, "test")
    assert (tides.examples, bells.targets) == (
        4,
        ("tone 0", "tone 1", "tone 2", "tone 3"),
    )
    # A sweep weighs its steps by these.
    assert [few.examples(part) for part in parts] == [6, 2, 4]
    assert (
        tasks.suite(
            "jsonl", files=write(tmp_path / "y", [*rows, bell(0)]), tokenizer=tokenizer
        ).examples("test")
        is None
    )
    assert few.digest != whole.digest
    with pytest.raises(UserError, match="test_examples = -1"):
        OwnFiles(path, test_examples=-1)
