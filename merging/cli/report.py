"""`merging report`: figures, tables and verdicts from rows."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merging.cli.command import Command, any_path, local_path
from merging.runtime.errors import UserError


def _run(arguments: argparse.Namespace) -> int:
    from merging import report
    from merging.runtime import results, workdir

    rows = results.read(arguments.workdir)
    analysed = [_analysis(place) for place in arguments.analysis]
    out = arguments.out or arguments.workdir[0] / "report"
    runs = workdir.runs(arguments.workdir)
    page = report.report(rows, out, runs, analysed, arguments.gate)
    print(f"Report of {len(rows)} rows: {page}")
    return 0


def _analysis(place: Path) -> tuple[str, Sequence[Any]]:
    """Return what was done in a workdir of `merging analyze` or `fit`, and its rows."""
    from merging.analysis import rows
    from merging.report import analyses

    record = rows.read(place)
    if record["analysis"] not in analyses.DRAWN:
        raise UserError(
            f"{place} holds the analysis {record['analysis']!r}, of which a report "
            f"draws nothing; it draws {', '.join(analyses.DRAWN)}."
        )
    return record["analysis"], record["rows"]


def _standard_errors(text: str) -> float:
    """Return how many standard errors an option asks for."""
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0, such as 2")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=any_path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="finished or unfinished runs; their rows are joined",
    )
    parser.add_argument(
        "--analysis",
        type=local_path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="workdirs of `merging analyze` or `merging fit`, or their analysis.json"
        " (also .gz): geometry, saturation, a whole sweep's, a law; each becomes a"
        " section of the page",
    )
    parser.add_argument(
        "--gate",
        type=_standard_errors,
        metavar="ERRORS",
        help="leave out held-in datasets whose experts are not so many standard errors"
        " above their base: there is nothing to merge (2 is usual; all stay)",
    )
    parser.add_argument(
        "--out", type=any_path, metavar="DIR", help="(the first workdir's report/)"
    )


COMMAND = Command(
    "figures, tables and verdicts from one or several runs",
    """\
    Read the result rows of one or several workdirs and write figures (PNG, SVG,
    PDF), tables (CSV), and one HTML page to explore and to pass on: it opens from
    disk and loads nothing.

    examples:
      merging report --workdir curves
      merging report --workdir part0 part1 part2 --out joined
      merging report --workdir curves --analysis geometry saturation
      merging report --workdir curves --gate 2
    """,
    _options,
    _run,
)
