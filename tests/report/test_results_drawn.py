"""Every committed figure and table of docs/results comes again from the rows there."""

import importlib.util
import shutil
from pathlib import Path

import matplotlib
import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results"
# Its figures are the committed ones; another matplotlib may place a label otherwise.
DRAWN_BY = "3.11"
# Of a page in a browser.
SCREENSHOTS = {f"tiny/page_{name}.png" for name in ("390", "1400", "1400_dark")}


def program():
    path = RESULTS / "draw.py"
    spec = importlib.util.spec_from_file_location("draw_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = program()


def test_every_committed_figure_and_table_is_named():
    every = {path.relative_to(RESULTS) for path in RESULTS.rglob("*.*")}
    committed = {
        str(path)
        for path in every
        if path.parent.name in ("figures", "tables") or path.suffix in (".png", ".svg")
    }
    named = [
        f"{name}/{file}" for name, page in draw.PAGES.items() for file in page.files
    ]
    assert len(named) > 60
    assert sorted([*named, *SCREENSHOTS]) == sorted(committed)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in draw.PAGES if page != "smollm2"])
def test_they_come_again_from_the_rows(page):
    changed = draw.draw(page, check=True)
    if not matplotlib.__version__.startswith(f"{DRAWN_BY}."):
        changed = [name for name in changed if name.endswith(".csv")]
    assert changed == []


@pytest.mark.long
def test_what_is_missing_or_another_is_drawn_and_named(tmp_path, monkeypatch):
    shutil.copytree(RESULTS / "smollm2", tmp_path / "smollm2")
    monkeypatch.setattr(draw, "HERE", tmp_path)
    table = tmp_path / "smollm2" / "tables" / "F2.csv"
    table.write_text(table.read_text().replace("ties", "tied"))
    figure = tmp_path / "smollm2" / "figures" / "F1.png"
    figure.unlink()
    changed = draw.draw("smollm2")
    assert {"smollm2/figures/F1.png", "smollm2/tables/F2.csv"} <= set(changed)
    if matplotlib.__version__.startswith(f"{DRAWN_BY}."):
        assert len(changed) == 2
        assert figure.read_bytes() == (RESULTS / "smollm2/figures/F1.png").read_bytes()
    assert table.read_bytes() == (RESULTS / "smollm2/tables/F2.csv").read_bytes()
