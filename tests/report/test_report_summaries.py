"""Scores of a model, spread over seeds, joining runs: numbers worked out by hand."""

import dataclasses

import pytest

from merging.report import tables
from merging.report.summaries import Cell, across_methods, spread, summarise
from merging.runtime.errors import UserError
from merging.runtime.joining import join


@pytest.fixture
def merge(row):
    """One merge of two experts: tasks a, b (merged), c (not) and held-out h, z."""

    def rows(seed=0, shift=0.0, **more):
        facts = dict(subset=("A", "B"), K=2, seed=seed, **more)
        out = dict(split="held_out", merged=False)

        def one(dataset, category, value, expert, base, **extra):
            return row(
                dataset=dataset,
                category=category,
                value=value + shift,
                value_of_expert=expert,
                value_of_base=base,
                **facts | extra,
            )

        return [
            one("a", "A", 0.6, 0.8, 0.2),
            one("b", "B", 0.5, 1.0, 0.4),
            one("c", "C", 0.3, 0.9, 0.3, merged=False),
            one("h", "H", 0.6, None, 0.5, **out),
            one("i", "H", 0.2, None, 0.4, **out),
        ]

    return rows


def only(grid):
    (models,) = grid.cells.values()
    (model,) = models
    return model


def test_scores_of_one_merge_are_the_suites_formulas(merge):
    model = only(summarise(merge()))
    assert model.held_in == pytest.approx((0.75 + 0.5) / 2)
    assert model.floor == pytest.approx((0.25 + 0.4) / 2)
    assert model.normalised_gain == pytest.approx((1.1 - 0.6) / (1.8 - 0.6))
    assert model.held_in_raw == pytest.approx(0.55)
    assert model.held_out == pytest.approx((1.2 + 0.5) / 2)
    assert model.held_out_raw == pytest.approx(0.4)
    assert model.gain == pytest.approx((1.4 - 0.9) / 3)
    assert model.normalised_gain_all == pytest.approx((1.4 - 0.9) / (2.7 - 0.9))


def test_zero_and_unknown_denominators_are_left_out_and_counted(merge):
    rows = merge()
    rows[0] = dataclasses.replace(rows[0], value_of_expert=0.0)
    rows[3] = dataclasses.replace(rows[3], value_of_base=None)
    grid = summarise(rows)
    model = only(grid)
    assert model.held_in == pytest.approx(0.5)
    assert model.held_out == pytest.approx(0.5)
    assert (model.held_in_excluded, model.held_out_excluded) == (1, 1)
    # The mean raw scores exist all the same: no ratio of single tasks is taken.
    assert model.normalised_gain == pytest.approx((1.1 - 0.6) / (1.0 - 0.6))
    assert any("1 held-in and 1 held-out ratios" in note for note in grid.notes)


def test_no_gap_means_no_normalised_gain(merge):
    rows = [dataclasses.replace(r, value_of_expert=r.value_of_base) for r in merge()]
    grid = summarise(rows)
    assert only(grid).normalised_gain is None
    assert any("no normalised gain" in note for note in grid.notes)


def test_spread_is_over_seeds_and_unknown_for_one(merge):
    table = tables.scores(summarise(merge(0) + merge(1, shift=0.08)))
    line = dict(zip(table.columns, table.rows[0], strict=True))
    assert line["held-in mean"] == pytest.approx(0.625 + 0.045)
    assert line["held-in sd"] == pytest.approx(0.09 / 2**0.5)
    assert line["held-in min"] == pytest.approx(0.625)
    assert line["held-in max"] == pytest.approx(0.715)
    assert (line["models"], line["seeds"]) == (2, 2)
    assert spread([0.5]).sd is None
    assert spread([None, None]) == (None, None, None, None, 0, 2)


def test_mean_of_equal_values_stays_in_their_range():
    values = [0.95 * 1.13] * 3
    s = spread(values)
    assert s.low == s.mean == s.high


def test_chosen_scales_and_edges_are_counted(merge):
    rows = [
        row
        for seed, (scale, edge) in enumerate([(0.4, False), (0.1, True), (0.4, False)])
        for row in merge(seed, parameters={"scale": scale, "scale_at_edge": edge})
    ]
    grid = summarise(rows)
    table = tables.scores(grid)
    line = dict(zip(table.columns, table.rows[0], strict=True))
    assert line["lambda"] == "0.1 0.4 x2"
    assert line["lambda at edge"] == "1/3"
    assert any("end of its grid in 1 of 3" in note for note in grid.notes)


def test_a_multitask_model_is_scored_on_every_held_in_task(merge):
    rows = [dataclasses.replace(r, method="multitask", merged=False) for r in merge()]
    assert only(summarise(rows)).held_in == pytest.approx((0.75 + 0.5 + 1 / 3) / 3)


def test_a_model_that_lacks_datasets_is_left_out_and_counted(merge):
    grid = summarise(merge(0) + merge(1)[1:])
    assert [m.seed for m in grid.cells[Cell("1x", "pt", "ties", 2)]] == [0]
    assert any("1 models lack some datasets" in note for note in grid.notes)


def test_repeated_rows_count_once(merge):
    again = [
        dataclasses.replace(r, wall_seconds=9.0, git_revision="b") for r in merge()
    ]
    rows, notes = join(merge() + again)
    assert len(rows) == 5 and notes[0].startswith("5 rows were given twice, alike")


def test_one_configuration_on_two_machines_keeps_the_first(merge):
    rows, notes = join(merge() + merge(shift=0.01))
    assert sorted(r.value for r in rows) == sorted(r.value for r in merge())
    assert "5 rows were given twice with different values" in notes[0]


def test_contradicting_configurations_are_refused(merge):
    with pytest.raises(UserError, match=r"take them one by one[\s\S]*config c1"):
        join(merge() + merge(shift=0.01, config_hash="c1"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"suite": "t0"}, "rows of several suites"),
        ({"family": "palm"}, "rows of several families"),
        ({"params": 5}, "size 1x has two different params"),
        ({"metric": "f1"}, "dataset a has two different category/split/metric"),
    ],
)
def test_rows_that_do_not_share_an_axis_are_refused(merge, change, reason):
    rows = merge(0)
    rows[0] = dataclasses.replace(rows[0], seed=1, **change)
    with pytest.raises(UserError, match=reason):
        summarise(merge(0) + rows)


def test_nothing_to_report_is_the_users_mistake():
    with pytest.raises(UserError, match="run the sweep first"):
        summarise([])


def test_missing_combinations_are_announced(merge):
    rows = merge(0) + merge(0, method="rht") + merge(0, base="it")
    notes = summarise(rows).notes
    assert any("1 of 4 combinations" in note for note in notes)


def test_baselines_table_has_floor_and_own_expert(row):
    facts = dict(dataset="a", category="skill0")
    rows = [
        row(method="base", K=0, subset=(), merged=False, value=0.2, **facts),
        row(method="expert", seed=0, value=0.7, **facts),
        row(method="expert", seed=1, value=0.9, **facts),
        # Another skill's expert on this dataset is not its own expert.
        row(method="expert", subset=("skill1",), merged=False, value=0.1, **facts),
    ]
    table = tables.baselines(summarise(rows))
    line = dict(zip(table.columns, table.rows[0], strict=True))
    assert (line["base model"], line["own expert"]) == pytest.approx((0.2, 0.8))
    assert line["floor"] == pytest.approx(0.25)
    assert line["expert sd"] == pytest.approx(0.2 / 2**0.5)


def test_a_guessing_base_is_announced(merge):
    # Bases score 0.5 and 0.4 on the two held-out tasks.
    at_chance = [dataclasses.replace(r, chance=0.43) for r in merge()]
    above = [dataclasses.replace(r, chance=0.41) for r in merge()]
    assert any("of chance on held-out" in n for n in summarise(at_chance).notes)
    assert not any("of chance on held-out" in n for n in summarise(above).notes)


def test_methods_of_two_models_leave_no_hole_and_are_no_part_of_a_mean_along_k(run):
    rows = run(("1x",), ("it",), ("average", "ties", "slerp"), (2, 4), seeds=2)
    rows = [r for r in rows if (r.method, r.K) != ("slerp", 4)]
    grid = summarise(rows)
    assert not [note for note in grid.notes if "partial" in note]
    assert grid.counts_of == {"average": (2, 4), "slerp": (2,), "ties": (2, 4)}
    for K in grid.counts:
        both = [grid.models("1x", "it", m, K) for m in ("average", "ties")]
        means = [sum(m.held_in for m in of) / len(of) for of in both]
        found = across_methods(grid, "1x", ("it",), K, "held_in")
        assert found.mean == pytest.approx(sum(means) / 2)
    holes = [r for r in rows if (r.method, r.K) != ("ties", 4)]
    assert "1 of 5 combinations" in " ".join(summarise(holes).notes)
