"""Datasets whose experts learned too little are left out, and the page says which."""

import dataclasses

import pytest

from merging import report
from merging.report import verdicts
from merging.report.gate import gated
from merging.report.summaries import summarise
from merging.runtime.errors import UserError


def both(make_row, expert, base, **given):
    """Rows of a merge of one dataset, of each seed's expert."""
    return [
        make_row(seed=seed, value_of_expert=value, value_of_base=base, **given)
        for seed, value in enumerate(expert)
    ]


def test_the_margin_is_that_of_the_formula(make_row):
    # √((0.75 · 0.25 + 0.5 · 0.5) / 28) = 0.125: a gap of 0.25 is two of them.
    rows = both(make_row, [0.75], 0.5, examples=28)
    assert gated(rows, 1.99) == (rows, [])
    with pytest.raises(UserError, match=r"a0 at 1x PT: experts 0.75, base 0.50, 0.25 "):
        gated(rows, 2.0)


def test_experts_of_all_seeds_count_together(make_row):
    clear = both(make_row, [0.9, 0.9], 0.2, examples=64)
    mixed = both(make_row, [0.45, 0.95], 0.4, examples=64, dataset="b0")
    assert gated([*clear, *mixed], 2)[1] == []
    rows, why = gated([*clear, *mixed[:1]], 2)
    assert rows == clear and why == [
        "b0 at 1x PT: experts 0.45, base 0.40, 0.17 asked for"
    ]


def test_what_fails_at_one_size_is_left_out_at_all(make_row):
    def rows(size, params, expert):
        about = dict(size=size, params=params, examples=64)
        kept = both(make_row, [0.9], 0.2, dataset="a0", **about)
        return [*kept, *both(make_row, [expert], 0.2, dataset="b0", **about)]

    found, why = gated([*rows("1x", 1, 0.25), *rows("8x", 8, 0.9)], 2)
    assert {(row.size, row.dataset) for row in found} == {("1x", "a0"), ("8x", "a0")}
    assert [line.split(":")[0] for line in why] == ["b0 at 1x PT"]


def test_held_out_datasets_stay_and_one_without_scores_goes(make_row):
    kept = both(make_row, [0.9], 0.2)
    held_out = make_row(split="held_out", dataset="c", value_of_expert=None)
    unknown = make_row(dataset="d", value_of_expert=None)
    rows, why = gated([*kept, held_out, unknown], 2)
    assert rows == [*kept, held_out]
    assert why == ["d: no expert's score is known"]


def test_what_a_sweep_has_not_come_to_yet_counts_for_nothing(make_row):
    begun = make_row(size="8x", params=8, method="base", K=0, value_of_expert=None)
    rows = [*both(make_row, [0.9], 0.2), begun]
    assert gated(rows, 2) == (rows, [])


def test_scores_that_are_no_shares_have_no_variance(make_row):
    rows = both(make_row, [1.5], 0.0)
    assert gated(rows, 2) == (rows, [])


def test_an_expert_whose_dataset_is_left_out_is_still_one_of_all(run):
    weak = [
        dataclasses.replace(row, value_of_expert=row.value_of_base)
        if row.category == "skill7"
        else row
        for row in run()
    ]
    kept, why = gated(weak, 2)
    assert len(why) == 2 and not any(row.category == "skill7" for row in kept)
    notes = [n for v in verdicts.verdicts(summarise(kept)) for n in v.notes]
    assert any("Mean over methods at 64x, K=8:" in note for note in notes)


def test_a_report_says_what_it_left_out_and_its_tables_are_without_it(
    tmp_path, make_row
):
    merge = dict(K=2, subset=("skill0", "skill1"), examples=64)
    rows = [
        make_row(**merge, value=0.8, value_of_expert=0.9, value_of_base=0.1),
        make_row(
            **merge,
            dataset="b1",
            category="skill1",
            value=0.1,
            value_of_expert=0.2,
            value_of_base=0.15,
        ),
    ]
    page = report.report(rows, tmp_path / "gated", {}, gate=2)
    text = page.read_text()
    assert "their experts learned too little (--gate 2): b1 at 1x PT" in text
    scores = (tmp_path / "gated" / "tables" / "datasets.csv").read_text()
    assert "a0" in scores and "b1" not in scores
    page = report.report(rows[:1], tmp_path / "passed", {}, gate=2)
    assert "their experts learned too little (--gate 2): none" in page.read_text()
    report.report(rows, tmp_path / "all", {})
    assert "b1" in (tmp_path / "all" / "tables" / "datasets.csv").read_text()
