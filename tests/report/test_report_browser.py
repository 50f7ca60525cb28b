"""The page in a real browser: what is shown under each choice is what the rows say."""

import csv
import io
import json
import statistics

import browser
import pytest

from merging.report import judging, page, summaries, verdicts
from merging.report.document import render
from merging.report.summaries import across_methods, measure, spread, summarise
from merging.runtime.workdir import Run

# What the script sends is rounded to six digits.
ROUNDED = 1e-5


RUN = Run({"seeds": 2, "methods": ["average", "ties"]}, {"jax": "0.10.1"})


def written(rows, folder):
    grid = summarise(rows)
    path = folder / "page.html"
    made = page.page(grid, verdicts.verdicts(grid), runs={"c0": RUN})
    path.write_text(render(made), "utf-8")
    return grid, path


@pytest.fixture(scope="module")
def grid_and_path(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rows = run(("1x", "8x"), ("pt", "it"), ("average", "ties"), (2, 4, 8), seeds=2)
    return written(rows, folder)


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def opened(chromium, grid_and_path):
    with browser.opened(chromium, grid_and_path[1]) as found:
        yield found


@pytest.fixture
def shown(opened):
    """The page as it opens; it is not read from disk again, which takes a second."""
    opened.evaluate(
        """() => {
          HIDDEN.clear();
          for (const select of document.querySelectorAll("#controls select")) {
            select.value = STATE[select.name] = DATA.controls[select.name];
          }
          PANELS.forEach(draw);
        }"""
    )
    return opened


@pytest.fixture
def grid(grid_and_path):
    return grid_and_path[0]


def choose(shown, **choices):
    for name, value in choices.items():
        shown.select_option(f"#controls [name={name}]", str(value))


def lines(shown, panel):
    """{line: [(y, low, high)]} of what Plotly holds for a panel."""
    return shown.evaluate(
        """name => Object.fromEntries(
            document.querySelector(`[data-panel=${name}] .plot`).data
            .filter((t) => t.meta && t.meta.line)
            .map((t) => [t.meta.facet ? `${t.meta.facet} ${t.meta.line}` : t.meta.line,
              t.y.map((y, i) => {
                const {array, arrayminus} = t.error_y;
                return [y, y - arrayminus[i], y + array[i]];
              })
            ]))""",
        panel,
    )


def near(spread):
    return pytest.approx([spread.mean, spread.low, spread.high], abs=ROUNDED)


def test_what_was_run_the_answer_and_both_curves_are_on_the_first_screen(shown):
    bottoms = shown.evaluate(
        "[...document.querySelectorAll('#answer .facts, #answer .answer, "
        "#answer .plot')].map((e) => e.getBoundingClientRect().bottom + scrollY)"
    )
    assert len(bottoms) == 4 and max(bottoms) <= shown.viewport_size["height"] == 900
    assert shown.locator("#answer .answer p").count() == 3


def test_the_first_figures_show_the_mean_of_methods(shown, grid):
    drawn = lines(shown, "held_in")
    assert set(drawn) == {"2", "4", "8"}
    for K, points in drawn.items():
        for size, point in zip(grid.sizes, points, strict=True):
            expected = across_methods(grid, size, ("it",), int(K), "normalised_gain")
            assert point == near(expected)
    # There is no normalised gain of held-out tasks; the page says so.
    assert "no normalised gain" in shown.text_content("#held_out .shown")
    expected = across_methods(grid, "8x", ("it",), 8, "held_out")
    assert lines(shown, "held_out")["8"][1] == near(expected)


def test_every_control_changes_what_is_drawn_to_what_the_rows_say(shown, grid):
    choose(shown, across="K", lines="method", size="1x", base="pt", metric="ratio")
    drawn = lines(shown, "held_in")
    assert set(drawn) == {"average", "ties"}
    for method, points in drawn.items():
        for K, point in zip(grid.counts, points, strict=True):
            assert point == near(measure(grid.models("1x", "pt", method, K), "held_in"))
    choose(shown, lines="base", method="ties", metric="raw")
    expected = measure(grid.models("1x", "it", "ties", 4), "held_in_raw")
    assert lines(shown, "held_in")["it"][1] == near(expected)
    expected = measure(grid.models("1x", "it", "ties", 4), "held_out_raw")
    assert lines(shown, "held_out")["it"][1] == near(expected)
    choose(shown, across="size", K=2)
    expected = measure(grid.models("8x", "pt", "ties", 2), "held_in_raw")
    assert lines(shown, "held_in")["pt"][1] == near(expected)


def test_a_category_is_scored_on_its_own_datasets(shown, grid):
    choose(shown, category="skill3", metric="ratio", across="K", lines="method")
    rows = [
        row
        for row in grid.rows
        if (row.size, row.base, row.method, row.K) == ("8x", "it", "ties", 8)
        and row.category == "skill3"
    ]
    by_seed = {
        seed: statistics.fmean(r.normalised for r in rows if r.seed == seed)
        for seed in (0, 1)
    }
    drawn = lines(shown, "held_in")["ties"][2]
    assert drawn[0] == pytest.approx(statistics.fmean(by_seed.values()), abs=ROUNDED)
    assert drawn[1:] == pytest.approx(sorted(by_seed.values()), abs=ROUNDED)
    # skill3 is a held-in category: there is nothing to show beside it.
    assert "No rows for this choice" in shown.text_content("#held_out .shown")
    assert not shown.is_visible("#held_out .plot")


def test_the_heat_map_is_the_rows(shown, grid):
    choose(shown, metric="ratio", size="1x", base="pt", K=4)
    heat = shown.evaluate(
        "(({x, y, z}) => ({x, y, z}))"
        "(document.querySelector('#datasets .plot').data[0])"
    )
    assert heat["x"][:2] == ["average", "ties"]
    column = heat["x"].index("ties")
    line = next(i for i, name in enumerate(heat["y"]) if name.startswith("new3"))
    values = [
        row.normalised
        for row in grid.rows
        if (row.size, row.base, row.method, row.K) == ("1x", "pt", "ties", 4)
        and row.dataset == "new3"
    ]
    expected = pytest.approx(statistics.fmean(values), abs=ROUNDED)
    assert heat["z"][line][column] == expected
    choose(shown, category="skill0")
    names = shown.evaluate("document.querySelector('#datasets .plot').data[0].y")
    assert len(names) == 2 and all(name.startswith("skill0_") for name in names)


def converging(grid, K):
    """Best minus worst method within each seed, size by size."""
    for size in grid.sizes:
        seeds = zip(
            *([m.held_in for m in grid.models(size, "pt", method, int(K))]
              for method in grid.methods), strict=True,
        )  # fmt: skip
        yield spread(max(values) - min(values) for values in seeds)


def gains(grid, line):
    size, method = line.split()
    for K in grid.counts:
        yield measure(grid.models(size, "pt", method, K), "gain")


def added(grid, line):
    """The gain per expert since the K before, within each seed."""
    size, method = line.split()
    before, below = 0, [0.0] * 2
    for K in grid.counts:
        above = [m.gain for m in grid.models(size, "pt", method, K)]
        yield spread((a - b) / (K - before) for a, b in zip(above, below, strict=True))
        before, below = K, above


def scales(grid, line):
    size, method = line.split()
    for K in grid.counts:
        yield measure(grid.models(size, "pt", method, K), "scale")


def scale_sweeps(grid, line):
    """The validation score of each λ, as the rows have it."""
    size, method = line.split()
    kept = {
        row.seed: row.parameters
        for row in grid.rows
        if (row.size, row.base, row.method, row.K) == (size, "pt", method, 4)
    }
    for scale in (0.1, 0.2, 0.4, 0.8):
        yield spread(
            of["tried_scores"][of["tried_scales"].index(scale)] for of in kept.values()
        )


def test_the_other_figures_are_the_rows(shown, grid):
    choose(shown, base="pt", K=4, metric="ratio")
    every = ["1x average", "1x ties", "8x average", "8x ties"]
    for panel, expected, drawn_lines in (
        ("converging", converging, ["2", "4", "8"]),
        ("gains", gains, every),
        ("added", added, every),
        # An average has no λ.
        ("scales", scales, ["1x ties", "8x ties"]),
        ("scale_sweeps", scale_sweeps, ["1x ties", "8x ties"]),
    ):
        drawn = lines(shown, panel)
        assert sorted(drawn) == drawn_lines
        for line, points in drawn.items():
            assert points == [near(found) for found in expected(grid, line)], panel


def test_the_legend_hides_a_line_everywhere_by_mouse_and_keyboard(shown):
    button = shown.locator("#methods_in .legend button", has_text="ties")
    assert {"1x ties", "8x ties"} < set(lines(shown, "methods_in"))
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    for panel in ("methods_in", "methods_out"):
        assert not [name for name in lines(shown, panel) if "ties" in name]
    # The button was drawn anew and still has the focus.
    shown.keyboard.press("Enter")
    assert "8x ties" in lines(shown, "methods_in")


def hovered(shown, panel, line):
    """What Plotly says when the mouse is on the first point of a panel's line."""
    place = shown.evaluate(
        """([panel, line]) => {
          const plot = document.querySelector(`[data-panel=${panel}] .plot`);
          plot.scrollIntoView({block: "center", behavior: "instant"});
          const at = plot.data.findIndex((t) => t.meta && String(t.meta.line) === line);
          const trace = plot.calcdata[at][0].trace;
          const drawn = [...plot.querySelectorAll(".trace")].find((g) =>
            g.__data__[0].trace === trace);
          const box = drawn.querySelector(".point").getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        [panel, line],
    )
    shown.mouse.move(*place)
    said = shown.locator(f"[data-panel={panel}] .hoverlayer .hovertext")
    said.first.wait_for()
    return said.first.locator("tspan.line").all_text_contents()


def test_the_hover_tells_interval_settings_and_source(shown, grid):
    choose(shown, across="K", lines="method", base="pt", size="1x", metric="ratio")
    models = grid.models("1x", "pt", "ties", 2)
    found = measure(models, "held_in")
    told = hovered(shown, "held_in", "ties")
    assert told[1].endswith(f" {found.mean:.3f} ({found.low:.3f} to {found.high:.3f})")
    assert told[2].startswith("n = 2, sd ")
    first, *_ = sorted({model.scale for model in models})
    assert told[4].startswith(f"λ {first:g}") and "at edge" in told[4]
    assert told[5:] == ["density 0.2 0.5", "config c0, revision abc"]


def test_every_figures_hover_tells_settings_and_source(shown):
    says = {
        "datasets": ["λ ", "density 0.2 0.5"],
        "gains": ["λ ", "density 0.2 0.5"],
        "added": ["K from 0 to 2", "λ ", "density 0.2 0.5"],
        "scales": ["at edge", "density 0.2 0.5"],
        "scale_sweeps": ["λ 0.1", "density 0.2 0.5"],
        "converging": [],
    }
    for panel, parts in says.items():
        text = shown.evaluate(
            """panel => {
              const {data} = document.querySelector(`[data-panel=${panel}] .plot`);
              const heat = data.find((t) => t.type === "heatmap");
              if (heat) return heat.hovertext[0][heat.x.indexOf("ties")];
              const traces = data.filter((t) => t.meta && t.meta.line !== undefined);
              const found = traces.find((t) => t.meta.line === "ties") || traces[0];
              return found.hovertext[0];
            }""",
            panel,
        )
        for part in [*parts, "config c0, revision abc"]:
            assert part in text, panel


def test_numbers_behind_a_figure_are_what_it_draws(shown):
    choose(shown, across="K", lines="method", metric="ratio")
    shown.click("#held_in .numbers summary")
    head = shown.locator("#held_in .numbers th").all_text_contents()
    cells = shown.locator("#held_in .numbers tbody tr").all_text_contents()
    assert len(cells) == 2 * 3
    assert {"method", "K", "mean", "low", "high", "n", "lambda", "source"} < set(head)


def test_the_rows_are_downloaded_as_csv(shown, grid):
    with shown.expect_download() as download:
        shown.click(".download")
    assert download.value.suggested_filename == "rows.csv"
    text = open(download.value.path(), encoding="utf-8").read()
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == len(grid.rows)
    assert [float(row["value"]) for row in found] == [r.value for r in grid.rows]


def test_nothing_is_wider_than_the_screen_in_either_colour(
    chromium, grid_and_path, shown
):
    with browser.opened(chromium, grid_and_path[1], 390) as narrow:
        for width, one in ((390, narrow), (1400, shown)):
            inks = set()
            for scheme in ("dark", "light"):  # a page opens in the light
                one.emulate_media(color_scheme=scheme)
                assert one.evaluate("document.documentElement.scrollWidth") <= width
                inks.add(one.evaluate("getComputedStyle(document.body).color"))
            assert len(inks) == 2
            anchors = one.evaluate(
                "[...document.querySelectorAll('nav a')].map((a) => "
                "!!document.querySelector(a.getAttribute('href')))"
            )
            assert anchors and all(anchors)


def test_it_says_where_its_rows_come_from_and_how_to_get_them_again(shown, grid):
    found = browser.provenance(shown)
    assert found["Rows"].startswith(f"{len(grid.rows)} result rows, ")
    assert (found["Configuration"], found["Revision"]) == ("c0", "abc")
    assert found["Seeds"] == "0, 1"
    assert json.loads(found["Config, c0"].removeprefix("show")) == RUN.config
    assert found["Run with, c0"] == "jax 0.10.1"
    assert "merging sweep --config FILE.py" in found["To get it again"]
    assert "plotly" in found["Page drawn by"]


def test_verdicts_unfold(shown, grid):
    judged = verdicts.verdicts(grid)
    holds = sum(verdict.outcome == judging.HOLDS for verdict in judged)
    assert f"{holds} holds" in shown.text_content("#verdicts h2")
    first = shown.locator(".verdict").first
    assert not first.locator("li").first.is_visible()
    first.locator("summary").click()
    assert judged[0].tests[0].sentence() in first.inner_text()


def test_markup_in_rows_is_text(chromium, make_row, run, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    names = {"new0": evil, "ties": "<b onclick=alert(3)>ties</b>"}
    rows = [
        summaries.dataclasses.replace(
            row,
            dataset=names.get(row.dataset, row.dataset),
            method=names.get(row.method, row.method),
            config_hash="</script><script>alert(4)</script>",
        )
        for row in run(("1x",), ("it",), ("average", "ties"), (2, 8), seeds=1)
    ]
    _, path = written(rows, tmp_path)
    with browser.opened(chromium, path) as shown:
        assert shown.locator("img").count() == 0
        assert evil in shown.text_content("#scores")
        found = browser.provenance(shown)
        # Rows without their workdir.
        assert found["Config, </script><script>alert(4)</script>"] == "unknown"
        choose(shown, metric="ratio")
        heat = shown.locator("#datasets .plot").text_content()
        assert "<script>alert(1)</script>" in heat
        choose(shown, across="K", lines="method")
        assert "<b onclick" in shown.text_content("#held_in .legend")


def test_a_panel_without_rows_is_left_out(chromium, run, tmp_path):
    rows = run(("1x",), ("it",), ("average",), (2,), seeds=1)
    _, path = written([r for r in rows if "multitask" not in r.method], tmp_path)
    with browser.opened(chromium, path) as shown:
        names = shown.evaluate("Object.keys(DATA.panels)")
        # One method: no spread, no λ, and no fit, but gains.
        assert not {"converging", "scales", "scale_sweeps"} & set(names)
        assert "lambda" not in shown.evaluate(
            "[...document.querySelectorAll('section')].map((s) => s.id)"
        )
        empty = shown.evaluate("document.querySelectorAll('.panel.empty').length")
        assert empty == 0
