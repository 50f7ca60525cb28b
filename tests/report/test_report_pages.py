"""The pages of an evaluation, of two compared, a merge and a search, in a browser."""

import json

import browser
import numpy as np
import pytest

from merging.evaluation import DatasetScore, Record, TemplateScore, store, tables
from merging.evaluation.comparison import compared
from merging.merge.changes import Inspection, LeafChange
from merging.report import evaluation_page, merge_page, search_page
from merging.report.document import render
from merging.report.searches import Point

SAID = {
    "versions": {"jax": "0.10.1", "numpy": "2.4"},
    "config": {"split": "test", "count": 64},
    "command": "merging evaluate --config evaluate/toy --workdir a",
}
DATASETS = (("imdb", "held_in"), ("rte", "held_in"), ("wic", "held_out"))


def evaluated(workdir, shift, model, **said):
    """A finished evaluation of three datasets, two prompts of 64 examples each."""
    draw = np.random.default_rng(shift)
    keys = {}
    for number, (name, split) in enumerate(DATASETS):
        templates = {}
        for prompt in ("first", "second"):
            right = draw.random((64, 1)) < 0.5 + 0.1 * number + 0.2 * shift
            counts = right.astype(np.float32)
            value = float(counts.mean())
            templates[prompt] = TemplateScore(
                64, 0, "same", {"accuracy": value}, {"accuracy": counts}
            )
        mean = np.mean([one.values["accuracy"] for one in templates.values()])
        score = DatasetScore(
            *(name, "some", split, "accuracy", 0.5),
            value=float(mean),
            examples=64,
            templates=templates,
        )
        keys[name] = store.key(name, model)
        store.save(workdir, keys[name], Record(score, 1.0, "abc"))
    store.write_index(workdir, keys, {"model": model, "suite": "toy", **said})
    return workdir


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations")
    return (
        evaluated(folder / "a", 0, "models/<i>a</i>", **SAID),
        evaluated(folder / "b", 1, "models/b"),
    )


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as found:
        yield found


def drawn(shown, panel, number=0):
    return shown.evaluate(
        "([name, number]) => { const {x, y, z, error_x} = document.querySelector("
        "`[data-panel=${name}] .plot`).data[number]; return {x, y, z, error_x}; }",
        [panel, number],
    )


def numbers(shown, panel):
    """Return (head, rows) of the table that a reader unfolds below a panel."""
    shown.click(f"#{panel} .numbers summary")
    box = shown.locator(f"#{panel} .numbers table")
    box.wait_for()
    head, *rows = box.evaluate(
        "table => [...table.rows].map((row) => [...row.cells].map((c) => c.innerText))"
    )
    return head, rows


def test_an_evaluations_page_shows_values_and_intervals(chromium, workdirs, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render(evaluation_page.evaluation(workdirs[0])), "utf-8")
    score = next(
        r.score for r in store.present(workdirs[0]) if r.score.dataset == "rte"
    )
    value = tables.value(score, "accuracy")
    with browser.opened(chromium, path, 390) as shown:
        assert "<i>a</i>" in shown.text_content("#answer .facts")
        found = browser.provenance(shown)
        assert found["Model"].startswith("models/<i>a</i>, scored in ")
        assert found["Model"].endswith("at revision abc")
        assert found["Model: to get it again"] == SAID["command"]
        assert found["Model: run with"] == "jax 0.10.1, numpy 2.4"
        assert json.loads(found["Model: config"][len("show") :]) == SAID["config"]
        assert found["Seed"].startswith("0, of the intervals")
        assert f"{value.value:.3f}" in shown.text_content("#values")
        points = drawn(shown, "dots_held_in")
        at = points["y"].index("rte (accuracy)")
        assert points["x"][at] == pytest.approx(value.value)
        high = points["x"][at] + points["error_x"]["array"][at]
        assert high == pytest.approx(value.interval.high)
        assert set(drawn(shown, "dots_held_in", 1)["x"]) == {0.5}
        assert len(drawn(shown, "templates")["x"]) == 6
        shown.click("#dots_held_in .legend button:has-text('chance')")
        assert (
            shown.evaluate("document.querySelector('#dots_held_in .plot').data.length")
            == 1
        )
        browser.reads_well(shown)


def test_two_models_are_compared_as_the_command_prints(chromium, workdirs, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render(evaluation_page.compared(*workdirs)), "utf-8")
    rows = {row[0]: row for row in compared(*workdirs).rows}
    with browser.opened(chromium, path) as shown:
        points = drawn(shown, "difference")
        assert len(points["x"]) == len(DATASETS)
        for name, x in zip(points["y"], points["x"], strict=True):
            assert x == pytest.approx(rows[name.split(" ")[0]][4])
        mean = rows["mean of held_in"]
        assert f"a difference of {mean[4]:+.3f}" in shown.text_content(".answer")
        found = browser.provenance(shown)
        assert found["A: to get it again"] == SAID["command"]
        assert found["B: to get it again"] == "unknown: it was scored from Python"
        assert found["B: config"] == found["B: run with"] == "unknown"
        head, told = numbers(shown, "difference")
        assert head == ["B − A", "name", "from", "to", "details"]
        for _, name, low, high, details in told:
            row = rows[name.split(" ")[0]]
            assert [float(low), float(high)] == pytest.approx(row[5:7], abs=5e-4)
            assert f"A {row[2]:.3f}, B {row[3]:.3f}" in details
        browser.reads_well(shown)


def test_a_merges_page_maps_layers_by_kind(chromium, tmp_path):
    changes = [
        LeafChange(f"l.{layer}.{kind}", (4, 5), "float32", layer, f"l.*.{kind}", 20,
                   layer + 1, 0.1 * (layer + 1), 2.0, 0.3)
        for layer in range(18)
        for kind in ("q", "<b>up</b>")
    ]  # fmt: skip
    changes.append(LeafChange("emb", (4,), "float32", None, "emb", 4, 4, 1.0, 4.0, 0.9))
    found = Inspection("merged", None, "base", changes, [])
    path = tmp_path / "page.html"
    path.write_text(render(merge_page.page(found)), "utf-8")
    with browser.opened(chromium, path) as shown:
        kept = [(layer + 1) / 20 for layer in range(18)]
        assert drawn(shown, "heat_kept")["z"] == [kept] * 2
        cells = shown.locator("#heat_kept .heatmap-label").all_text_contents()
        assert cells[:3] == ["5.0", "10", "15"] and len(cells) == 2 * 18
        assert "<b>up</b>" in shown.locator("#heat_kept .plot").text_content()
        moved = drawn(shown, "heat_relative")["z"][0]
        assert moved == pytest.approx([0.05 * (layer + 1) for layer in range(18)])
        assert drawn(shown, "outside")["x"] == [0.25]
        assert drawn(shown, "by_layer_kept")["y"] == pytest.approx(kept)
        # Whatever is drawn can be read as a table, by keyboard as well.
        head, rows = numbers(shown, "heat_kept")
        assert head == ["name", *(f"layer {layer}" for layer in range(18))]
        assert rows[1][:4] == ["<b>up</b>", "0.0500", "0.100", "0.150"]
        head, rows = numbers(shown, "by_layer_kept")
        assert head == ["layer", "share of elements changed", "details"]
        assert rows[1] == ["1", "0.100", "layer 1; share of elements changed: 0.1"]
        browser.reads_well(shown)


def test_a_merges_text_has_every_kind_the_most_moved_first():
    changes = [
        LeafChange("a", (4,), "float32", None, "a", 4, 1, 1.0, 10.0, 0.5),
        LeafChange("b", (4,), "float32", None, "b", 4, 4, 3.0, 10.0, 2.0),
    ]
    text = merge_page.text(Inspection("merged", None, "base", changes, ["a note"]))
    lines = text.splitlines()
    assert "a note" in lines
    # √(1 + 9) / √(100 + 100), and 5 of 8.
    assert "62.5% differ" in text and "22.36% of its norm" in text
    assert lines[-2].split()[0] == "b" and lines[-1].split()[0] == "a"


def test_a_searchs_page_shows_its_trials_and_the_test_split(chromium, tmp_path):
    trials = [
        Point(number, {"scale": number / 4, "weights[<i>a</i>]": 1 - number / 4}, value)
        for number, value in enumerate((0.5, 0.75, 0.625))
    ]
    tested = [
        {"model": model, "mean": ratio / 2, "mean_low": 0.1, "mean_high": 0.9}
        | {"ratio": ratio, "ratio_low": ratio - 0.25, "ratio_high": ratio + 0.125}
        | ({} if model == "gain" else {"datasets": {"qqp": ratio, "wic": 0.25}})
        for model, ratio in (("base", 0.5), ("search", 0.625), ("gain", 0.125))
    ]
    path = tmp_path / "page.html"
    path.write_text(
        render(search_page.page(trials, tested, gain="gain", reference=0.5625)), "utf-8"
    )
    with browser.opened(chromium, path) as shown:
        answer = shown.text_content(".answer")
        assert "number 1 has the highest objective on validation, 0.7500" in answer
        assert "less the grid's is +0.1250 (-0.1250 to +0.2500, paired)" in answer
        assert "can't tell them apart" in answer
        assert "it reaches 0.6250 of the best experts' values (0.3750 to 0.75" in answer
        assert "of the others base comes first (0.5000)" in answer
        assert shown.locator(".answer p").count() == 3
        assert drawn(shown, "history", 1)["y"] == [0.5, 0.75, 0.75]
        assert drawn(shown, "history", 3)["y"] == [0.5625, 0.5625]
        test = drawn(shown, "tested")
        assert (test["x"], test["y"]) == ([0.5, 0.625], ["base", "search"])
        assert test["error_x"]["array"] == [0.125] * 2
        best = drawn(shown, "slice_1", 1)
        assert (best["x"], best["y"]) == ([0.75], [0.75])
        assert drawn(shown, "by_set")["z"] == [[0.5, 0.25], [0.625, 0.25]]
        cells = shown.locator("#by_set .heatmap-label").all_text_contents()
        assert cells == ["0.50", "0.25", "0.62", "0.25"]
        assert "weights[<i>a</i>]" in shown.text_content("#slice_1")
        browser.reads_well(shown)
