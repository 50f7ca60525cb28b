"""What the pages take from the program itself, so that they cannot disagree with it.

A line `<!-- generated: NAME -->` in a page becomes what the function of that name in
`GENERATORS` returns. `python docs/generated.py NAME` prints it.
"""

import ast
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable

from merging import methods
from merging.cli import COMMANDS, main
from merging.runtime import config

_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
# What stands where nothing is known of a method's worth.
_NOTHING = "nothing measured here"


def fill(source: list[str]) -> None:
    """Fill the marked lines of a page, in place; Sphinx hands it over in a list."""
    source[0] = _MARK.sub(lambda mark: GENERATORS[mark[1]](), source[0])


def method_table() -> str:
    """Return the methods of the papers, as a table."""
    return _table([r for r in _records() if "@" not in r["name"]])


def preset_table() -> str:
    """Return the methods that follow another tool's rules, as a table."""
    return _table([r for r in _records() if "@" in r["name"]])


def method_pages() -> str:
    """Return directives that show the docstring of every method's function."""
    builders = dict.fromkeys(
        f"{entry.build.__module__}.{entry.build.__qualname__}"
        for entry in methods.catalogue()
    )
    directives = [f".. autofunction:: {name}" for name in builders]
    return "\n".join(["```{eval-rst}", *directives, "```"])


def command_table() -> str:
    """Return the commands, as a table: what each does."""
    rows = ["| command | what it does |", "|---|---|"]
    for name, command in COMMANDS.items():
        rows.append(f"| [`merging {name}`](#merging-{name}) | {command.summary} |")
    return "\n".join(rows)


def commands() -> str:
    """Return the help of every command."""
    parts = []
    for name in COMMANDS:
        text = _printed(name, "--help")
        parts.append(f"## merging {name}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def configs() -> str:
    """Return the configs that come with the package, as a table."""
    rows = ["| name | what it is |", "|---|---|"]
    for name, path in config.shipped().items():
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows.append(f"| `{name}` | {about.splitlines()[0]} |")
    return "\n".join(rows)


GENERATORS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        method_table,
        preset_table,
        method_pages,
        command_table,
        commands,
        configs,
    )
}


def _records() -> list[dict]:
    return json.loads(_printed("methods", "--json"))


def _table(records: list[dict]) -> str:
    rows = [["method and its defaults", "what it computes", "cost", "what is known"]]
    rows.append(["---"] * 4)
    for record in records:
        settings = ", ".join(f"{k}={v!r}" for k, v in record["parameters"].items())
        name = f"**{record['name']}** `({settings})`"
        about = f"{record['definition']}<br>*{record['paper']}*"
        known = record["evidence"] or _NOTHING
        rows.append([name, about, record["cost"], known])
    escaped = [[_cell(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _cell(text: str) -> str:
    """Return a text as a cell of a table, with links to the papers."""
    linked = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return linked.replace("|", "\\|")


def _printed(*argv: str) -> str:
    """Return what a command prints."""
    os.environ["COLUMNS"] = "88"  # argparse wraps at the terminal's width
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if status := main.main([*argv]):
            raise RuntimeError(f"merging {' '.join(argv)}: status {status}")
    return out.getvalue()


if __name__ == "__main__":
    print(GENERATORS[sys.argv[1]]())
