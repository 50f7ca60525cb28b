"""Draw the figures and tables of these pages again, from the rows beside them.

    python docs/results/draw.py                   # all: three minutes of one core
    python docs/results/draw.py english search    # these pages
    python docs/results/draw.py --check           # writes nothing, names what differs

A page keeps some of what a report draws; which, says `PAGES`.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from merging import report
from merging.analysis import figures, rows
from merging.report.searches import Point, search_figure

HERE = Path(__file__).parent


class Page(NamedTuple):
    """What a page keeps, and what draws it.

    Attributes:
      draw: called with the page's folder and an empty one, which it fills.
      figures, tables: names, without a suffix.
      suffixes: of the figures.
      more: other files.
    """

    draw: Callable[[Path, Path], None]
    figures: str = ""
    tables: str = ""
    suffixes: str = "png svg"
    more: str = ""

    @property
    def files(self) -> list[str]:
        """All that the page keeps, below its folder."""
        kinds = self.suffixes.split()
        drawn = [f"figures/{n}.{kind}" for n in self.figures.split() for kind in kinds]
        tables = [f"tables/{name}.csv" for name in self.tables.split()]
        return [*drawn, *tables, *self.more.split()]


def of_rows(page: Path, out: Path, *analyses: Path) -> None:
    """Draw what a report of the page's rows has."""
    records = [rows.read(path) for path in analyses]
    report.report([page], out, analysed=[(r["analysis"], r["rows"]) for r in records])


def of_english(page: Path, out: Path) -> None:
    """Draw a report's of both seeds, and what `merging analyze` draws of a geometry.

    Without the datasets whose experts are not two standard errors above their base.
    """
    seeds = [page, page / "second"]
    records = [rows.read(seed / "analysed.json.gz") for seed in seeds]
    analysed = [(record["analysis"], record["rows"]) for record in records]
    report.report(seeds, out, analysed=analysed, gate=2)
    found = rows.read(page / "geometry.json.gz", "geometry")["rows"]
    figures.write(out, figures.of_geometry(found))


def with_a_law(page: Path, out: Path) -> None:
    """Draw a report's with a sweep's analysis, and one law of `merging fit`."""
    of_rows(page, out, page / "analysed_pt.json.gz", page / "analysed_it.json.gz")
    law = rows.read(page / "law.json.gz", "law")["rows"]
    (drawn,) = figures.of_law(law, "cross-entropy")
    figures.write(out, [drawn._replace(name="law_it_task_arithmetic")])


def of_a_search(page: Path, out: Path) -> None:
    """Draw what `merging search` draws of its trials and its grid."""
    with gzip.open(page / "trials.jsonl.gz") as file:
        trials = [json.loads(line) for line in file]
    points = [Point(t["number"], t["point"], t["value"]) for t in trials]
    grid = map(json.loads, (page / "grid.jsonl").read_text().splitlines())
    drawn = search_figure(points, max(line["value"] for line in grid))
    (out / "search.png").write_bytes(drawn.png)


PAGES = {
    "tiny": Page(
        of_rows,
        "F1 F1_gain F2 F3 F4 F5 F6 F6_normalised F12",
        "F1 F1_gain F2 F3 F4 F5_held_in F5_held_out F6 F6_fit F12 baselines "
        "baselines_summary datasets models scores verdicts",
    ),
    "smollm2": Page(
        of_rows,
        "F1 F1_gain F2 F3",
        "F1 F1_gain F2 F3 baselines baselines_summary datasets models scores verdicts",
    ),
    "english": Page(
        of_english,
        "F1_gain F2 F3 F7_it cosines",
        "F1_gain F2 F3 baselines_summary datasets models saturation scores verdicts",
    ),
    "methods": Page(of_rows, "F12", "F12 baselines_summary models verdicts"),
    "methods/statistics": Page(of_rows, "", "F12"),
    "saturation": Page(
        with_a_law,
        "F7_it F7_pt F8 F9 F10_it F10_pt F11 law_it_task_arithmetic",
        "saturation verdicts",
        suffixes="png",
    ),
    "search": Page(of_a_search, more="search.png"),
}


def draw(page: str, check: bool = False) -> list[str]:
    """Draw a page's files; return those that were not there, or otherwise.

    Args:
      page: of `PAGES`.
      check: whether to leave the files as they are.
    """
    folder, changed = HERE / page, []
    with tempfile.TemporaryDirectory() as out:
        PAGES[page].draw(folder, Path(out))
        for name in PAGES[page].files:
            made, path = (Path(out) / name).read_bytes(), folder / name
            if path.exists() and path.read_bytes() == made:
                continue
            changed.append(f"{page}/{name}")
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(made)
    return changed


def main() -> int:
    """Draw the pages that the command line names, and say what changed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=", ".join(PAGES))
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    if unknown := [page for page in asked.pages if page not in PAGES]:
        parser.error(f"no page {', '.join(unknown)}; there are {', '.join(PAGES)}")
    changed = [
        name for page in asked.pages or PAGES for name in draw(page, asked.check)
    ]
    for name in changed:
        print(f"{name} {'differs' if asked.check else 'is another now'}")
    return int(asked.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
