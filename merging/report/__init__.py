"""Result rows → figures, tables, verdicts and one web page that a stranger can read."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from merging.report.summaries import summarise
from merging.runtime.results import Row
from merging.runtime.storage import write_bytes

__all__ = ["summary_text", "write_report"]


def write_report(rows: Iterable[Row], directory: str | os.PathLike) -> Path:
    """Write the whole report and return the path of its index.html.

    The directory gets index.html (self-contained), figures/*.png and *.svg, and
    tables/*.csv. The same rows give the same bytes. Figures and tables of an earlier
    report there that these rows cannot fill are removed.

    Raises:
      UserError: no rows, rows that do not belong together (summaries.summarise), or a
        directory that cannot be written.
    """
    # Imported late: drawing needs matplotlib, and the command line must start quickly.
    from merging.report import curves, figures, judging, page, tables, verdicts

    grid = summarise(rows)
    judged = verdicts.verdicts(grid)
    behind = curves.behind_figures(grid)
    others = [
        tables.scores(grid),
        tables.models(grid),
        tables.datasets(grid),
        tables.baselines(grid),
        tables.summary_of_baselines(grid),
        judging.verdict_table(judged),
    ]
    drawn = figures.draw(grid)
    files = {
        f"tables/{table.name}.csv": table.csv()
        for table in [*others, *(t for found in behind.values() for t in found)]
    }
    for figure in drawn:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
    text = page.page(grid, judged, drawn, behind)
    return _publish(Path(directory), files, text)


def summary_text(rows: Iterable[Row]) -> str:
    """The verdicts and the main scores in plain text, for the end of a run.

    Raises:
      UserError: as `write_report`.
    """
    from merging.report import judging, tables, verdicts

    grid = summarise(rows)
    judged = verdicts.verdicts(grid)
    return "\n\n".join(
        [
            tables.main_scores(grid).text(),
            *(f"note: {note}" for note in grid.notes),
            judging.verdict_text(judged),
        ]
    )


def _publish(directory: Path, files: dict[str, bytes], text: str) -> Path:
    for name, data in files.items():
        write_bytes(directory / name, data)
    for folder in ("figures", "tables"):
        for path in (directory / folder).glob("F[1-6]*"):
            if f"{folder}/{path.name}" not in files:
                with contextlib.suppress(OSError):
                    path.unlink()
    # Last: a page that exists has all its files beside it.
    write_bytes(directory / "index.html", text.encode("utf-8"))
    return directory / "index.html"
