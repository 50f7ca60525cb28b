"""`merging inspect`: how a model was merged, and what that changed."""

import argparse

from merging.cli.command import Command, any_path, print_for_a_pipe


def _run(arguments: argparse.Namespace) -> int:
    from merging.merge.changes import inspect
    from merging.report import document, merge_page

    found = inspect(arguments.model, arguments.base)
    text = merge_page.text(found)
    if arguments.out:
        page = document.write(merge_page.page(found), arguments.out)
        text += f"\nReport: {page}"
    print_for_a_pipe(text)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a merged checkpoint")
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="the model to hold it against (the base, where the manifest has it)",
    )
    parser.add_argument(
        "--out",
        type=any_path,
        metavar="DIR",
        help="write a page there: the change of every layer and kind of matrix",
    )


COMMAND = Command(
    "how a model was merged, and what that changed, by layer",
    """\
    Print what a merged checkpoint's manifest says, and hold its weights against its
    base: how far each kind of matrix moved, and what share of its elements differs
    from the base's (where a trim or a drop left its mark). Both models are read once,
    in parts; nothing is written but the page.

    examples:
      merging inspect MERGED
      merging inspect MERGED --base BASE --out merged_report
    """,
    _options,
    _run,
)
