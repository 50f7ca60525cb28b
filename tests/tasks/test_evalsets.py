import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_suite

from merging.runtime.errors import UserError
from merging.tasks import load, load_suite, rows
from merging.tasks.registration import register, seqio


@pytest.fixture(scope="module")
def sets(toy):
    return {s.dataset: s for s in load_suite(toy, "test")}


def spelt(toy, table):
    return [toy.tokenizer.decode(row) for row in table]


def test_a_ranked_set_has_a_row_for_each_choice(toy, sets):
    rows = toy_suite.examples("phrase", "test", 0, 7)
    phrase = sets["phrase"]
    assert phrase.ranked and phrase.examples == 7 and phrase.max_new_tokens == 0
    assert spelt(toy, phrase.prompts) == [r["inputs"] for r in rows for _ in range(2)]
    assert spelt(toy, phrase.continuations) == sum((r["choices"] for r in rows), [])
    assert phrase.continuation_lengths.tolist() == [2, 3] * 7
    assert phrase.groups.tolist() == [i for i in range(7) for _ in range(2)]
    right = [ok for _, ok, *_ in phrase.targets]
    assert right == [c == r["label"] for r in rows for c in range(2)]


def test_a_generated_set_has_room_for_its_longest_target_and_the_end_mark(sets):
    rows = toy_suite.examples("retell", "test", 0, 7)
    retell = sets["retell"]
    assert not retell.ranked
    assert list(retell.targets) == [r["targets"] for r in rows]
    longest = max(len(r["targets"].split()) for r in rows)
    assert retell.continuation_lengths.max() == longest
    assert longest < retell.max_new_tokens <= longest + 8
    assert retell.max_new_tokens % 8 == 0


def test_count_takes_the_first_examples(toy, sets):
    (colour,) = load_suite(toy, "test", 3, datasets=["colour"])
    assert colour.examples == 3 and len(colour.groups) == 9
    np.testing.assert_array_equal(
        colour.prompt_lengths, sets["colour"].prompt_lengths[:9]
    )


def test_a_task_gives_what_its_suite_gives(toy, sets):
    register(toy)
    for name, ours in sets.items():
        theirs = load(toy.evaluations(name)[""], "test", dataset=name)
        assert_same(ours, theirs)


def test_from_the_cache_comes_the_same_set_without_tensorflow(toy, sets, tmp_path):
    load_suite(toy, "test", cache_dir=tmp_path)
    for kept in load_suite(toy, "test", cache_dir=tmp_path):
        assert_same(kept, sets[kept.dataset])
    program = (
        "import sys; from merging import evaluation, tasks;"
        f"m = tasks.Generated('toy_suite', **{toy.source.settings});"
        "s = tasks.Suite('toy', m);"
        "e = evaluation.requests("
        "s, 'test', context=64, vocab_size=99, cache_dir=sys.argv[1]);"
        "evaluation.prepare(e); print(len(e.sets), 'tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(toy_suite.__file__).parent), "PATH": ""},
    )
    assert result.stdout.split() == ["6", "False"]


def assert_same(a, b):
    for field in ("prompts", "prompt_lengths", "continuations", "groups"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert a.targets == b.targets
    assert a.metrics == b.metrics
    assert (a.dataset, a.ranked, a.end_ids) == (b.dataset, b.ranked, b.end_ids)
    assert a.max_new_tokens == b.max_new_tokens
    assert a.decode([3, 4, 1, 5]) == b.decode([3, 4, 1, 5])
    assert a.postprocess(0, "red") == b.postprocess(0, "red")


@pytest.mark.parametrize(
    ("dataset", "change", "said"),
    [
        ("colour", {"choices": ["red"], "label": 0}, "example 2: 1 choices"),
        ("colour", {"choices": [], "label": 0}, "example 2: 0 choices"),
        ("colour", {"label": 3}, "example 2: label 3 of 3 choices"),
        ("colour", {"label": -1}, "example 2: label -1 of 3"),
        ("colour", {"choices": ["red", " "], "label": 0}, "example 2: a choice with"),
        ("colour", {"choices": ["red", "pink"], "label": 0}, "example 2: .*'pink'"),
        ("bag", {"targets": ""}, "example 2: a target without a token"),
        ("bag", {"inputs": "the lynx"}, "example 2: the word 'lynx'"),
    ],
)
def test_a_faulty_example_is_named(toy, monkeypatch, dataset, change, said):
    monkeypatch.setattr(
        toy_suite, "tamper", lambda d, i, row: row | change if i == 2 else row
    )
    with pytest.raises(UserError, match=f"dataset {dataset}.*: {said}"):
        load_suite(toy, "test", datasets=[dataset])


def test_all_faulty_examples_are_counted_and_ten_shown(toy, monkeypatch):
    monkeypatch.setattr(toy_suite, "tamper", lambda d, i, row: row | {"label": 9})
    monkeypatch.setattr(toy_suite, "_draw", lambda d, rng: dict(ROW))
    with pytest.raises(UserError, match="example 9: label 9.*; and 2 more$"):
        load_suite(toy, "train", datasets=["colour"])


ROW = dict(inputs="the cat", targets="red", choices=["red", "blue"], label=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(split="tset"), "did you mean test"),
        (dict(split="test", count=8), "8 examples asked for, it has 7"),
        (dict(split="test", count=0), "0 examples asked for"),
        (dict(split="test", datasets=["colours"]), "did you mean colour"),
        (
            dict(split="test", max_length=9, datasets=["copy"]),
            r"dataset copy: example \d: \d+ tokens with its answer, more than the 9",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(toy, arguments, said):
    with pytest.raises(UserError, match=said):
        load_suite(toy, **arguments)


def test_an_empty_dataset_and_an_unknown_task_are_refused(toy, monkeypatch):
    register(toy)
    with pytest.raises(UserError, match="unknown task 'toy_0_bags'.*toy_0_bag"):
        load("toy_0_bags", "test")
    monkeypatch.setattr(toy_suite, "examples", lambda *_: [])
    with pytest.raises(UserError, match=r"toy_0_bag \(test\) is empty"):
        load("toy_0_bag", "test")


def test_a_score_task_without_choice_indices_is_refused(toy):
    register(toy)
    task = seqio.TaskRegistry.get("toy_0_copy")

    def mean(targets, scores):
        return {"mean": float(np.mean(scores))}

    seqio.TaskRegistry.add(
        "toy_0_unranked",
        source=task.source,
        preprocessors=task.preprocessors,
        output_features=task.output_features,
        metric_fns=[mean],
    )
    try:
        with pytest.raises(UserError, match=r"no \['idx', 'is_correct'\]"):
            load("toy_0_unranked", "test")
    finally:
        seqio.TaskRegistry.remove("toy_0_unranked")


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda row: row | {"is_correct": row["idx"][0] != 1}, "3 right choices"),
        (lambda row: row | {"is_correct": False}, "example 1: 0 right choices, needs"),
        (lambda row: row if row["idx"][1] == 0 else None, "example 1: 1 choice, need"),
    ],
)
def test_choices_that_another_preprocessor_spoilt_are_named(
    toy, monkeypatch, tamper, said
):
    """A Task that is not ours has not been through our checks of its source."""
    register(toy)
    read = rows.of_task

    def spoilt(*arguments):
        made = [tamper(row) for row in read(*arguments)]
        return [row for row in made if row is not None]

    monkeypatch.setattr(rows, "of_task", spoilt)
    with pytest.raises(UserError, match=f"dataset toy_0_colour_score_eval: .*{said}"):
        load("toy_0_colour_score_eval", "test")


def test_registering_other_settings_takes_the_place_of_the_first(toy):
    import dataclasses

    register(toy)
    fewer = dataclasses.replace(toy.source, test_examples=4)
    register(dataclasses.replace(toy, source=fewer))
    try:
        assert load("toy_0_bag", "test").examples == 4
    finally:
        register(toy)
    assert load("toy_0_bag", "test").examples == 7
