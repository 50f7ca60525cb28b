"""`merging report`: figures, tables and verdicts from rows."""

import argparse

from merging.cli.command import Command, any_path


def _run(arguments: argparse.Namespace) -> int:
    from merging import report
    from merging.runtime import results, workdir

    rows = results.read(arguments.workdir)
    out = arguments.out or arguments.workdir[0] / "report"
    page = report.report(rows, out, workdir.configs(arguments.workdir))
    print(f"Report of {len(rows)} rows: {page}")
    return 0


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
    """,
    _options,
    _run,
)
