"""The written report: complete, self-contained, the same every time.

What the page shows is looked at in a browser, in test_report_browser.py.
"""

import csv
import html.parser
import io
import os
import random
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from merging import UserError, report
from merging.report import document, figures, looks, page, plotting, points
from merging.report.document import (
    LARGEST_DOWNLOAD,
    LONGEST_TABLE,
    Document,
    Download,
    Section,
)
from merging.report.summaries import Spread, summarise
from merging.runtime import config
from merging.runtime.text import Table

FIGURES = ("F1", "F1_gain", "F2", "F3", "F4", "F5", "F6", "F6_normalised")


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    (directory / "figures").mkdir()
    (directory / "figures" / "F9_mine.png").write_bytes(b"the user's")
    rows = run(("1x", "8x"), ("it",), ("average", "ties"), (2, 4, 8), seeds=2)
    return report.report(reversed(rows), directory)


def test_every_figure_is_there_as_png_svg_and_pdf(written):
    folder = written.parent / "figures"
    assert {p.name for p in folder.iterdir()} == {
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg", "pdf")
    } | {"F9_mine.png"}
    for name in FIGURES:
        width, height = struct.unpack(
            ">II", (folder / f"{name}.png").read_bytes()[16:24]
        )
        assert width >= 600 and height >= 300
        root = ET.parse(folder / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF-")


def test_tables_hold_what_the_figures_draw(written):
    tables = written.parent / "tables"
    names = {p.stem for p in tables.iterdir()}
    assert {"F1", "F2", "F3", "F4", "F5_held_in", "F5_held_out", "F6", "F6_fit"} < names
    assert {"scores", "models", "datasets", "baselines", "verdicts"} < names
    with (tables / "F2.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 1 * 2 * 3
    assert {line["models"] for line in lines} == {"2"}
    assert all(
        float(li["min"]) <= float(li["mean"]) <= float(li["max"]) for li in lines
    )


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_one_wellformed_file_that_loads_nothing(written):
    text = written.read_text("utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert not {"link", "img", "iframe", "base"} & set(page.tags)
    assert all(source.startswith("#") for source in page.sources)
    # The data, Plotly, and three of ours.
    assert page.tags.count("script") == 5 and text.count("plotly.js v") == 1
    assert len(text.encode()) < 8e6


def test_the_answer_and_figures_come_before_tables_and_prose(written):
    text = written.read_text("utf-8")
    order = ["answer", "verdicts", "methods", "by_dataset", "experts", "lambda"]
    order += ["scores", "notes", "terms", "provenance"]
    for mark in ('<section id="{}">', '<li><a href="#{}"'):
        positions = [text.index(mark.format(name)) for name in order]
        assert positions == sorted(positions)


def test_what_an_earlier_report_wrote_is_removed_and_nothing_else(run, model, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "F7_mine.csv").write_bytes(b"mine")

    def figures():
        return {p.name for p in tmp_path.glob("figures/*.png")}

    sizes = ("1x", "8x")
    report.report(run(sizes, ("it",), ("average",), (2, 4), seeds=1), tmp_path)
    assert "F2.png" in figures()
    (tmp_path / "figures" / "F2_mine.png").write_bytes(b"mine")
    flat = [lambda d: 0.5] * 3
    report.report(model("1x", "pt", "base", (), 0, *flat), tmp_path)
    assert figures() == {"F2_mine.png"}
    assert (tmp_path / "tables" / "F7_mine.csv").read_bytes() == b"mine"


def make_link(path):
    path.with_name("elsewhere.html").write_text("<html>mine</html>")
    path.symlink_to("elsewhere.html")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("<html>mine</html>"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_bytes(b""),
        make_link,
        os.mkfifo,
        lambda path: path.mkdir(),
    ],
)
def test_anothers_page_is_not_written_over(run, tmp_path, make):
    make(tmp_path / "index.html")
    before = sorted(tmp_path.rglob("*"))
    rows = run(("1x",), ("it",), ("average",), (2,), seeds=1)
    with pytest.raises(UserError, match="index.html is no page that was written here"):
        report.report(rows, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_names_no_file_outside_of_its_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "thesis.csv").write_text("mine")
    (tmp_path / "out" / "notes.csv").write_text("mine")
    (tmp_path / "out" / "index.html").write_text(
        '<meta name="merging-files" content="../thesis.csv notes.csv '
        f'figures/../notes.csv {tmp_path}/thesis.csv">'
    )
    document.write(Document("A page", (), ()), tmp_path / "out")
    assert (tmp_path / "thesis.csv").exists() and (tmp_path / "out/notes.csv").exists()


def test_same_rows_same_bytes(written, run, tmp_path):
    rows = run(("1x", "8x"), ("it",), ("average", "ties"), (2, 4, 8), seeds=2)
    again = report.report(rows, tmp_path).parent
    files = [p.relative_to(again) for p in again.rglob("*") if p.is_file()]
    assert len(files) > 2 * len(FIGURES)
    for file in files:
        assert (again / file).read_bytes() == (written.parent / file).read_bytes(), file


def test_a_run_without_merges_is_reported_without_figures(model, tmp_path):
    flat = [lambda d: 0.5] * 3
    rows = model("1x", "pt", "base", (), 0, *flat)
    path = report.report(rows, tmp_path)
    assert "not tested" in path.read_text("utf-8")
    assert not (tmp_path / "figures").exists()


def test_what_is_too_large_for_the_page_lies_beside_it(tmp_path):
    rows = tuple((number,) for number in range(LONGEST_TABLE + 1))
    long = Table("long", "A long table", ("number",), rows)
    short = long._replace(name="short", rows=rows[1:])
    noise = Download("rows.csv", "noise", random.Random(0).randbytes(LARGEST_DOWNLOAD))
    page = document.write(
        Document(
            *("A page", (), ()),
            sections=[Section("tables", "Tables", tables=[long, short])],
            downloads=[noise, noise._replace(name="few.csv", data=b"few")],
        ),
        tmp_path,
    )
    text = page.read_text("utf-8")
    assert "401 rows, beside the page in <code>tables/long.csv</code>" in text
    assert "rows.csv (noise) is too large to be part of this page" in text
    assert "Download few.csv" in text and "Download rows.csv" not in text
    kept = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert kept == {"index.html", "tables/long.csv", "rows.csv"}
    assert (tmp_path / "rows.csv").read_bytes() == noise.data
    assert (tmp_path / "tables/long.csv").read_bytes() == long.csv()


def test_a_page_of_too_many_points_loses_categories_and_then_datasets(run, monkeypatch):
    grid = summarise(run(("1x",), ("it",), ("average", "ties"), (2, 4), seeds=1))
    every, notes = points.points(grid)
    assert not notes and len({row[2] for row in every.rows}) > 1
    monkeypatch.setattr(points, "MOST_POINTS", len(every.rows) - 1)
    fewer, notes = points.points(grid)
    assert {row[2] for row in fewer.rows} == {points.ALL}
    assert "too many for the page to tell categories apart" in notes[0]
    monkeypatch.setattr(points, "MOST_POINTS", 10)
    made = page.page(grid, [])
    assert "The rows are too many for the page's heat map of datasets." in made.notes
    assert "datasets" not in [table.name for table in made.tables]


def test_holes_leave_no_empty_panel(run):
    rows = run(("1x", "8x"), ("pt", "it"), ("ties",), (2,), seeds=1)
    rows = [r for r in rows if (r.size, r.base) != ("8x", "it")]
    rows = [r for r in rows if not r.method.startswith("multitask")]
    drawn = {figure.name: figure for figure in figures.draw(summarise(rows))}
    # One method has no spread of methods, no multitask model no F5.
    assert set(drawn) == set(FIGURES) - {"F4", "F5"}
    # The missing panel's background is not in the picture.
    assert drawn["F2"].svg.count(b'<g id="axes_') == 3


def test_text_summary_holds_verdicts_and_every_cell(run):
    rows = run(("1x",), ("it",), ("average", "ties"), (2, 8), seeds=2)
    text = report.summary_text(rows)
    assert "VERDICTS" in text
    assert sum(line.startswith("1x") for line in text.splitlines()) == 2 * 2 + 2
    assert "Larger models merge better (MS)" in text


def test_methods_look_the_same_whoever_is_beside_them():
    alone = plotting.look("ties", ("ties",))
    assert alone == plotting.look("ties", ("average", "new", "ties"))
    others = ("average", "task_arithmetic", "ties", "dare", "dare_ties", "rht")
    drawn = [
        plotting.look(m, others) for m in (*others, "multitask", "multitask_early")
    ]
    drawn += [plotting.look(m, ("slerp", "karcher")) for m in ("slerp", "karcher")]
    assert len({x.color for x in drawn}) == len({x.marker for x in drawn}) == 10


def test_every_method_of_the_largest_config_is_told_apart_without_its_colour():
    methods = config.load("scaling_curves/methods").methods
    drawn = [plotting.look(method, methods) for method in methods]
    assert len(drawn) == 24
    assert len({(x.marker, x.linestyle) for x in drawn}) == 24
    # Beside a fit, points have no line of their own.
    assert len({(x.marker, x.color) for x in drawn}) == 24
    many = looks.ordered(range(16)).values()
    assert len({(x["symbol"], x["dash"]) for x in many}) == 16
    # The baselines, which the page has beside them, leave their looks as they are.
    on_page = looks.of_methods((*methods, "base", "expert"))
    shapes = [(on_page[m]["symbol"], on_page[m]["dash"]) for m in methods]
    assert len(set(shapes)) == 24
    assert [on_page[m]["light"] for m in methods] == [x.color for x in drawn]


def test_one_value_gets_no_error_bar_and_several_do():
    from matplotlib.figure import Figure

    look = plotting.look("ties", ("ties",))
    for count, bars in ((1, 0), (3, 1)):
        ax = Figure().subplots()
        plotting.line(ax, [1, 2], [Spread(0.5, None, 0.4, 0.7, count, 0)] * 2, look)
        drawn = ax.containers[0].lines[2]
        assert len(drawn) == bars
    segment = drawn[0].get_segments()[0]
    assert segment[:, 1] == pytest.approx([0.4, 0.7])


@pytest.mark.parametrize(
    ("count", "text"), [(15_740, "15.7K"), (1_040_112, "1.04M"), (64 * 10**9, "64B")]
)
def test_parameter_counts_are_read_by_humans(count, text):
    assert plotting.human(count) == text


def test_csv_reads_back(written):
    data = (written.parent / "tables" / "models.csv").read_text("utf-8")
    rows = list(csv.reader(io.StringIO(data)))
    assert len({len(row) for row in rows}) == 1


def test_drawing_library_is_imported_only_to_draw():
    code = "import sys, merging.report; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
