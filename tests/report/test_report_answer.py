"""The three sentences at the top, and the means that they tell."""

import statistics

import pytest

from merging.report.answer import answer
from merging.report.summaries import across_methods, of_category, summarise


def test_the_answer_tells_experts_size_and_held_out_with_numbers(run):
    grid = summarise(run(("1x", "64x"), ("it",), ("average", "ties"), (2, 8), seeds=2))
    experts, size, held_out = answer(grid)
    few, many = (
        across_methods(grid, "64x", ("it",), K, "normalised_gain") for K in (2, 8)
    )
    assert f"2 experts at 64x recovers {few.mean:.2f} ({few.low:.2f} to" in experts
    assert f"one of 8 recovers {many.mean:.2f}" in experts
    small = across_methods(grid, "1x", ("it",), 8, "normalised_gain")
    assert f"from {small.mean:.2f} to {many.mean:.2f} with 8 experts" in size
    # The synthetic merges spill over to held-out tasks in every run.
    assert "better than its unmerged base in every run" in held_out


def test_one_size_is_answered_with_the_best_and_the_weakest_method(run):
    grid = summarise(run(("1x",), ("it",), ("average", "rht"), (2, 8), seeds=2))
    assert "the best method is" in answer(grid)[1]


def test_one_run_claims_no_more_than_one_run(run):
    grid = summarise(run(("1x",), ("it",), ("average",), (2,), seeds=1))
    experts, categories, held_out = answer(grid)
    assert "(one run)" in experts
    # Neither sizes nor methods to compare: the tasks that one merge keeps.
    shares = {}
    for row in grid.rows:
        if row.method == "average" and row.merged:
            share = row.value / row.value_of_expert
            shares.setdefault(row.category, []).append(share)
    means = {name: statistics.fmean(of) for name, of in shares.items()}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    assert f"keeps {best} best ({means[best]:.2f} of its expert's" in categories
    assert f"{worst} worst ({means[worst]:.2f})" in categories
    assert "better than its unmerged base, as far as one run can tell" in held_out


def test_a_run_without_merges_is_answered_so(model):
    flat = [lambda d: 0.5] * 3
    grid = summarise(model("1x", "pt", "base", (), 0, *flat))
    assert answer(grid) == ["No merge is finished yet: there are baselines only."]


def test_the_mean_of_methods_spreads_over_runs_that_all_methods_have(run):
    rows = run(("1x",), ("it",), ("average", "ties"), (2,), seeds=3)
    rows = [r for r in rows if not (r.method == "ties" and r.seed == 1)]
    grid = summarise(rows)
    by_hand = [
        statistics.fmean(
            m.held_in
            for method in ("average", "ties")
            for m in grid.models("1x", "it", method, 2)
            if m.seed == seed
        )
        for seed in (0, 2)
    ]
    found = across_methods(grid, "1x", ("it",), 2, "held_in")
    assert found.count == 2
    assert found.mean == pytest.approx(statistics.fmean(by_hand))
    assert (found.low, found.high) == pytest.approx((min(by_hand), max(by_hand)))


def test_a_category_has_no_more_models_than_the_whole(run):
    rows = run(("1x",), ("it",), ("ties",), (2,), seeds=2)
    # Seed 1 lacks a dataset of another category, and so is no model of the grid.
    rows = [
        r for r in rows
        if not (r.method == "ties" and r.seed == 1 and r.dataset == "skill0_a")
    ]  # fmt: skip
    grid = summarise(rows)
    part = of_category(grid, "new1")
    assert [m.seed for m in part.models("1x", "it", "ties", 2)] == [0]
    assert {row.category for row in part.rows} == {"new1"}
    assert of_category(grid, "nothing") is None
