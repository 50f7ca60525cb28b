"""The one maker of result rows: what a value is held against."""

import dataclasses

import pytest

from merging.evaluation import DatasetScore, ModelLabels, Record, TemplateScore, rows
from merging.evaluation.rows import Reference, require_comparable
from merging.runtime.errors import UserError

FACTS = dict(suite="s", family="f", size="1x", params=9, base="pt", parameters={})
HELD_IN = DatasetScore("nli", "logic", "held_in", "accuracy", 0.5, 0.6, 10)
HELD_OUT = DatasetScore("qa", "reading", "held_out", "f1", 0.0, 0.3, 10)


def made(score, method, subset, base=0.5, expert=0.8):
    labels = dict(method=method, K=len(subset), subset=subset, seed=0)
    known = {"base": {score.dataset: base}, "expert": {score.dataset: expert}}
    records = [Record(score, 1.5, "r")]
    (row,) = rows(records, ModelLabels(**FACTS, **labels), **known, config_hash="c")
    assert (row.wall_seconds, row.git_revision, row.config_hash) == (1.5, "r", "c")
    assert (row.dataset, row.value) == (score.dataset, score.value)
    return row


def against(one):
    return one.merged, one.value_of_base, one.value_of_expert, one.normalised


def test_held_in_is_held_against_the_expert_and_held_out_against_the_base():
    merge = ("ties", ("logic", "reading"))
    assert against(made(HELD_IN, *merge)) == (True, 0.5, 0.8, 0.6 / 0.8)
    assert against(made(HELD_OUT, *merge)) == (False, 0.5, None, 0.3 / 0.5)
    assert against(made(HELD_IN, "ties", ("reading",))) == (False, 0.5, 0.8, 0.6 / 0.8)


def test_what_is_not_known_normalises_nothing():
    merge = ("ties", ("logic",))
    alone, lost = made(HELD_IN, *merge, expert=None), made(HELD_OUT, *merge, base=None)
    assert against(alone) == (True, 0.5, None, None)
    assert against(lost) == (False, None, None, None)


def test_a_base_is_its_own_base_and_an_expert_its_own_expert():
    assert against(made(HELD_OUT, "base", ())) == (False, 0.3, None, 1)
    assert against(made(HELD_IN, "base", ())) == (False, 0.6, 0.8, 0.6 / 0.8)
    assert against(made(HELD_IN, "expert", ("logic",))) == (True, 0.5, 0.6, 1)
    other = made(HELD_IN, "expert", ("reading",))
    assert against(other) == (False, 0.5, 0.8, 0.6 / 0.8)


def test_values_on_other_examples_are_refused_all_of_them():
    scores = [HELD_IN, HELD_OUT]
    same = {score.dataset: made(score, "base", ()) for score in scores}
    fewer = {name: dataclasses.replace(row, examples=9) for name, row in same.items()}
    same, fewer = Reference(same, {}), Reference(fewer, {})
    require_comparable(scores, same, same)
    require_comparable([HELD_OUT], same, fewer)
    with pytest.raises(UserError) as refused:
        require_comparable(scores, fewer, fewer)
    assert str(refused.value).splitlines()[1:] == [
        "nli: the base's value is accuracy on 9 examples, this one accuracy on 10",
        "nli: the expert's value is accuracy on 9 examples, this one accuracy on 10",
        "qa: the base's value is f1 on 9 examples, this one f1 on 10",
    ]


def test_as_many_other_examples_are_refused_where_they_are_known():
    def answering(answers):
        template = TemplateScore(10, 0, answers, {"accuracy": 0.6}, {})
        return dataclasses.replace(HELD_IN, templates={"": template})

    ours = answering("ours")
    row = {"nli": made(HELD_IN, "base", ())}
    none = Reference({}, {})
    require_comparable([ours], Reference(row, {"nli": answering("ours")}), none)
    require_comparable([ours], Reference(row, {}), none)  # nobody knows
    with pytest.raises(UserError, match="nli: the base's value is of other examples"):
        require_comparable([ours], Reference(row, {"nli": answering("others")}), none)
