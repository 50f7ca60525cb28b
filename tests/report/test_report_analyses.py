"""Rows of analyses as figures of the page; what is not there is left out."""

from typing import NamedTuple

import browser
import pytest

from merging.analysis import rows as analysis_rows
from merging.cli.main import main
from merging.report import analyses, figures, page, verdicts
from merging.report.document import render
from merging.report.summaries import summarise
from merging.runtime import results


class Row(NamedTuple):
    quantity: str
    value: float | None
    by: str = ""
    layer: int | None = None
    kind: str = ""
    of: tuple[str, ...] = ()
    at: float | None = None
    low: float | None = None
    high: float | None = None


GEOMETRY = [
    Row("cosine", 0.5, "model", of=("a", "<b>")),
    *(Row("cosine", 0.1 * n, "layer", n, of=("a", "<b>")) for n in (0, 1)),
    Row("cosine", 0.9, "kind", kind="mlp", of=("a", "<b>")),
    *(Row("effective_rank", 1.5 + n, "layer", n, of=("a", "<b>")) for n in (1, 0)),
]
SATURATION = [Row("width", 0.2 * k, of=("a",), at=k, low=0, high=1) for k in (1, 2)]
LAW = [
    *(Row("observed", 1 / k, of=("all", "1000"), at=k) for k in (2, 4)),
    *(Row("fitted", 1.1 / k, of=("all", "1000"), at=k, low=0, high=1) for k in (2, 4)),
    Row("held_out_observed", 0.12, of=("all", "fitted on k <= 4", "1000"), at=8),
    Row("held_out_predicted", 0.13, of=("all", "fitted on k <= 4", "1000"), at=8),
]


def test_every_analysis_becomes_a_section_and_what_is_unknown_none():
    given = [("geometry", GEOMETRY), ("law", LAW), ("mystery", LAW), ("law", LAW)]
    made = analyses.sections([*given, ("saturation", SATURATION), ("geometry", [])])
    assert [s.name for s in made] == ["geometry", "law", "law_3", "saturation"]
    names = [panel.name for section in made for panel in section.panels]
    assert len(set(names)) == len(names)
    assert "geometry_sign_disagreement" not in names and "law_held_out_0_0" in names


def test_a_panel_holds_the_rows_in_order():
    (section,) = analyses.sections([("geometry", GEOMETRY)])
    cosine, ranks = section.panels
    (trace,) = cosine.spec["traces"]
    assert (trace["x"], trace["y"]) == (["model", "0", "1"], ["a · <b>"])
    assert trace["z"] == [[0.5, 0.0, pytest.approx(0.1)]]
    (line,) = ranks.spec["traces"]
    assert (line["x"], line["y"]) == ([0, 1], [1.5, 2.5])
    (law,) = analyses.sections([("law", LAW)])
    fit, held_out = law.panels
    assert [t["name"] for t in fit.spec["traces"]] == [
        "observed, N = 1000",
        "law, N = 1000",
    ]
    observed, fitted = fit.spec["traces"]
    assert (observed["mode"], fitted["mode"]) == ("markers", "lines")
    assert observed["look"] == fitted["look"]
    assert fit.spec["traces"][1]["error_y"]["array"] == [1 - 0.55, 1 - 0.275]
    assert [t["y"] for t in held_out.spec["traces"]] == [[0.12], [0.13]]


def test_the_page_draws_them(run, tmp_path):
    grid = summarise(run(("1x",), ("it",), ("average",), (2,), seeds=1))
    more = analyses.sections([("geometry", GEOMETRY), ("law", LAW)])
    path = tmp_path / "page.html"
    text = render(page.page(grid, verdicts.verdicts(grid), more=more))
    path.write_text(text, "utf-8")
    with browser.chromium() as chromium, browser.opened(chromium, path) as shown:
        assert "a · <b>" in shown.locator("#geometry_cosine .plot").text_content()
        assert shown.locator("#law_fit_0 .legend button").count() == 2
        shown.click("#law_fit_0 .legend button:has-text('observed')")
        left = shown.evaluate("document.querySelector('#law_fit_0 .plot').data.length")
        assert left == 1
        assert shown.locator("nav a[href='#geometry']").count() == 1


def test_the_command_takes_analyses_by_their_workdirs(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(figures, "draw", lambda grid: [])  # those for papers
    rows = run(("1x",), ("it",), ("average",), (2,), seeds=1)
    results.write(tmp_path / "curves" / results.FILE, rows)
    for name, found in (("geometry", GEOMETRY), ("connectivity", SATURATION)):
        table = [analysis_rows.Row(**row._asdict()) for row in found]
        analysis_rows.write(tmp_path / name, name, table, settings={})
    command = ["report", "--workdir", str(tmp_path / "curves"), "--analysis"]
    assert main([*command, str(tmp_path / "connectivity")]) == 2
    assert "it draws geometry, saturation, law" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "curves")]) == 2
    assert "is no finished analysis" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "geometry")]) == 0
    text = (tmp_path / "curves" / "report" / "index.html").read_text("utf-8")
    assert "Geometry of the task vectors" in text and "geometry_cosine" in text
