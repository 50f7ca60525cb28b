"""`merging report`: figures, tables and verdicts from rows."""

import argparse

from merging.cli.command import Command, local_path


def _run(arguments: argparse.Namespace) -> int:
    from merging import report
    from merging.runtime import results

    rows = results.read(arguments.workdir)
    page = report.report(rows, arguments.out or arguments.workdir[0] / "report")
    print(f"Report of {len(rows)} rows: {page}")
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=local_path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="finished or unfinished runs; their rows are joined",
    )
    parser.add_argument(
        "--out", type=local_path, metavar="DIR", help="(the first workdir's report/)"
    )


COMMAND = Command(
    "figures, tables and verdicts from one or several runs",
    """\
    Read the result rows of one or several workdirs and write figures (PNG, SVG),
    tables (CSV) and one HTML page that holds them all.

    examples:
      merging report --workdir curves
      merging report --workdir part0 part1 part2 --out joined
    """,
    _options,
    _run,
)
