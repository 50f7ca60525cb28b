"""Datasets whose experts learned too little are left out, and the page says which."""

import pytest

from merging import report
from merging.report.gate import gated
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
    assert why == ["d at 1x PT: no score of an expert and a base"]


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
    assert "their experts learned too little: b1 at 1x PT" in text
    scores = (tmp_path / "gated" / "tables" / "datasets.csv").read_text()
    assert "a0" in scores and "b1" not in scores
    report.report(rows, tmp_path / "all", {})
    assert "b1" in (tmp_path / "all" / "tables" / "datasets.csv").read_text()
