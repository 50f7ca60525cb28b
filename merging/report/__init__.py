"""Result rows → figures, tables, verdicts and one web page that a stranger can read.

The room is named as what it does: `merging.report(…)` is `merging.report.report`.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

from merging.report import analyses, document
from merging.report.gate import gated
from merging.report.summaries import summarise
from merging.runtime import results, storage, workdir
from merging.runtime.naming import callable_as
from merging.runtime.results import Row
from merging.runtime.storage import Folder
from merging.runtime.workdir import Run

__all__ = ["report", "summary_text"]


def report(
    rows: Iterable[Row | str | os.PathLike],
    out: str | os.PathLike,
    runs: Mapping[str, Run] | None = None,
    analysed: Iterable[tuple[str, Sequence[analyses.Found]]] = (),
    gate: float | None = None,
) -> Folder:
    """Write the whole report and return the path of its index.html.

    The folder gets index.html (self-contained), figures/*.png, *.svg and *.pdf, and
    tables/*.csv. The same rows give the same bytes. Figures and tables that an earlier
    report wrote there, and that these rows cannot fill, are removed.

    Args:
      rows: result rows, or workdirs and files that hold them, whose rows are joined.
      out: the folder.
      runs: config hash → what a workdir says of the run that rows come from, to be
        shown; those of the workdirs without it.
      analysed: (what was done, its rows) of analyses: geometry, saturation, laws; each
        becomes a section of the page. Those of a whole sweep become one together, with
        verdicts and figures of their own.
      gate: standard errors that a held-in dataset's experts must be above their base,
        or it is left out (`gate.gated`); None: all stay.

    Raises:
      UserError: no rows, rows that can't be read or do not belong together
        (summaries.summarise), or a folder that cannot be written, or that holds
        another's index.html.

    >>> import merging
    >>> merging.report(["docs/results/smollm2"], "figures_of_smollm2").name
    'index.html'
    """
    # Imported late: plotting needs matplotlib, and the command line must start quickly.
    from merging.report import (
        curves,
        explaining,
        explaining_figures,
        figures,
        judging,
        page,
        sweep_analysis,
        tables,
        verdicts,
    )

    rows, analysed = list(rows), list(analysed)
    if runs is None:
        runs = workdir.runs(row for row in rows if not isinstance(row, Row))
    kept, left_out = _read(rows), []
    if gate is not None:
        kept, left_out = gated(kept, gate)
    grid = summarise(kept)
    if gate is not None:
        told = "; ".join(left_out) or "none"
        note = (
            f"Left out, as their experts learned too little (--gate {gate:g}): {told}."
        )
        grid = dataclasses.replace(grid, notes=(note, *grid.notes))
    document.require_free(storage.place(out))
    judged = verdicts.verdicts(grid)
    behind = curves.behind_figures(grid)
    others = [
        tables.scores(grid),
        tables.models(grid),
        tables.datasets(grid),
        tables.baselines(grid),
        tables.summary_of_baselines(grid),
    ]
    drawn = figures.draw(grid)
    more = analyses.sections(analysed)
    of_models = [rows for name, rows in analysed if name == analyses.SWEEP]
    if of_models:
        found = sweep_analysis.Analysed(itertools.chain(*of_models))
        judged = (*judged, *explaining.verdicts(grid, found))
        drawn += explaining_figures.draw(grid, found)
        table = sweep_analysis.table(grid, found)
        others.insert(0, table)
        more.insert(
            0,
            document.Section(
                "explained",
                "Why more experts stop helping",
                explaining_figures.panels(grid, found),
                [table],
            ),
        )
    others.append(judging.verdict_table(judged))
    files = {
        f"tables/{table.name}.csv": table.csv()
        for table in [*others, *(t for found in behind.values() for t in found)]
    }
    for figure in drawn:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
        files[f"figures/{figure.name}.pdf"] = figure.pdf
    whole = page.page(grid, judged, drawn, behind, more, runs)
    return document.write(whole, storage.place(out), files)


def _read(rows: Iterable[Row | str | os.PathLike]) -> list[Row]:
    found: list[Row] = []
    for row in rows:
        found += [row] if isinstance(row, Row) else results.read(row)
    return found


def summary_text(rows: Iterable[Row]) -> str:
    """The verdicts and the main scores in plain text, for the end of a run.

    Raises:
      UserError: as `report`.
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


callable_as(__name__, report)
