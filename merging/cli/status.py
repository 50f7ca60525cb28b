"""`merging status`: how far a sweep is."""

import argparse

from merging.cli.command import Command, any_path, print_for_a_pipe


def _run(arguments: argparse.Namespace) -> int:
    from merging import sweep

    print_for_a_pipe(sweep.status(arguments.workdir))
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir", type=any_path, required=True, metavar="DIR", help="of a sweep"
    )


COMMAND = Command(
    "how far a sweep is: done, begun, failed, and the work left",
    """\
    Show the grid of a sweep's workdir: how many steps are done, begun, failed or
    waiting, who works on it, the first line of each failure, and the work left.
    Reads only.

    examples:
      merging status --workdir curves
    """,
    _options,
    _run,
)
