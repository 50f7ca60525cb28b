"""Methods beside task arithmetic: paired by run, with intervals that can say no."""

import math
import statistics

import pytest

from merging.report import against
from merging.report.summaries import summarise

GAINS = {  # of three runs; experts 0.8, base 0.4
    "task_arithmetic": (0.20, 0.30, 0.40),
    "ties": (0.26, 0.35, 0.47),  # above in each run by nearly the same
    "average": (0.10, 0.22, 0.29),  # below likewise
    "rht": (0.50, 0.10, 0.45),  # above in the mean, and by luck
}


@pytest.fixture
def grid(model):
    rows = []
    for K in (2, 4):
        subset = tuple(f"skill{i}" for i in range(K))
        for method, gains in GAINS.items():
            for seed, gain in enumerate(gains):

                def value(dataset, gain=gain):
                    return 0.4 + 0.4 * gain

                both = (lambda d: 0.8), (lambda d: 0.4)
                rows += model("1x", "it", method, subset, seed, value, *both)
    return summarise(rows)


def test_a_method_is_read_by_its_interval_over_paired_runs(grid):
    table = against.table(grid)
    at = {name: table.columns.index(name) for name in table.columns}
    found = {(row[at["method"]], row[at["K"]]): row for row in table.rows}
    assert set(found) == {
        (method, K) for method in ("average", "ties", "rht") for K in (2, 4, "all")
    }
    for method, reading in (
        ("ties", against.BETTER),
        ("average", against.WORSE),
        ("rht", against.ALIKE),
    ):
        own, reference = GAINS[method], GAINS["task_arithmetic"]
        differences = [a - b for a, b in zip(own, reference, strict=True)]
        # Student's t of two degrees of freedom, 0.975: from a table.
        half = 4.30265 * statistics.stdev(differences) / math.sqrt(3)
        for K in (2, 4, "all"):
            row = found[method, K]
            mean = statistics.fmean(differences)
            assert row[at["difference"]] == pytest.approx(mean, abs=1e-6)
            assert row[at["low"]] == pytest.approx(mean - half, abs=1e-5)
            assert row[at["high"]] == pytest.approx(mean + half, abs=1e-5)
            assert row[at["runs above"]] == sum(d > 0 for d in differences)
            assert row[at["reading"]] == reading


def test_one_run_has_no_interval_and_no_figure(run):
    rows = run(("1x",), ("it",), ("task_arithmetic", "ties"), (2,), seeds=1)
    (row,) = against.table(summarise(rows)).rows
    assert row[-1] == against.ALIKE and row[8:10] == (None, None)
    assert against.draw(summarise(rows)) is None


def test_without_task_arithmetic_nothing_is_compared(run):
    rows = run(("1x",), ("it",), ("average", "ties"), (2, 4), seeds=2)
    assert against.table(summarise(rows)).rows == ()
    assert against.draw(summarise(rows)) is None


def test_the_figure_is_of_the_largest_size(grid):
    drawn = against.draw(grid)
    assert drawn.name == "F12" and drawn.png.startswith(b"\x89PNG")
    assert "at 1x" in drawn.caption
