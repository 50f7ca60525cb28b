"""`merging methods`: every merge method."""

import argparse
import json
import textwrap

from merging.cli.command import Command, print_for_a_pipe


def _run(arguments: argparse.Namespace) -> int:
    from merging import methods

    if arguments.file:
        methods.load_file(arguments.file)
    records = [
        {
            "name": record.name,
            "parameters": dict(record.parameters),
            "definition": record.definition,
            "paper": record.paper,
        }
        for record in methods.catalogue()
    ]
    if arguments.json:
        text = json.dumps(records, indent=2)
    else:
        text = "\n\n".join([*map(_method_text, records), _spaces_text()])
    print_for_a_pipe(text)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--file", metavar="MINE.py", help="list the methods that it registers, too"
    )


def _method_text(record: dict) -> str:
    settings = ", ".join(f"{k}={v!r}" for k, v in record["parameters"].items())
    body = f"{record['definition']}\n{record['paper']}"
    return f"{record['name']}({settings})\n{textwrap.indent(body, '    ')}"


def _spaces_text() -> str:
    """Say what LoRA adapters can be merged in, by any of the methods."""
    from merging.merge.spaces import SPACES

    lines = ["LoRA adapters into an adapter, by any of these (--config.space):"]
    for name, space in SPACES.items():
        lines.append(f"    {name}: {(space.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


COMMAND = Command(
    "list every merge method with its parameters, defaults and paper",
    """\
    List every merge method: its parameters with defaults, its definition in a
    line, and its paper.

    examples:
      merging methods
      merging methods --json
      merging methods --file mine.py
    """,
    _options,
    _run,
)
