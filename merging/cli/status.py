"""`merging status`: how far a sweep is."""

import argparse
from pathlib import Path

from merging.cli.command import Command, print_for_a_pipe


def _run(arguments: argparse.Namespace) -> int:
    from merging import sweep

    print_for_a_pipe(sweep.status(arguments.workdir))
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="of a sweep"
    )


COMMAND = Command(
    "how far a sweep is: done, running, failed, and the time left",
    """\
    Show the grid of a sweep's workdir, whoever works on it and wherever: how many
    steps are done, running or waiting, who runs them, the first line of each
    failure, and the time left. Reads only.

    examples:
      merging status --workdir curves
    """,
    _options,
    _run,
)
