"""`merging verify`: a merged checkpoint against its manifest."""

import argparse

from merging.cli.command import Command, any_path


def _run(arguments: argparse.Namespace) -> int:
    from merging.merge import streamed as stream

    wrong = stream.verify(str(arguments.output))
    if wrong:
        print("\n".join(wrong))
        return 1
    print(f"{arguments.output} is what was written.")
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output", type=any_path, metavar="DIR", help="a merged checkpoint"
    )


COMMAND = Command(
    "check a merged checkpoint against its manifest",
    """\
    Read every leaf of a merged checkpoint, and every file beside them, and hold
    dtypes, shapes and SHA-256 against the manifest. Status 1 if any byte has changed.

    examples:
      merging verify MERGED
    """,
    _options,
    _run,
)
