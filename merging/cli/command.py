"""What a command is, and what several of them share."""

import argparse
import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime.errors import UserError


class Command(NamedTuple):
    """One command: a line for the list, its own help, its options, what it runs.

    Attributes:
      configs: folders of the shipped configs that it takes, whose names its help lists.
      example: the one whose values its help lists, unless another is given.
      resumable: whether the same command goes on after it was stopped.
    """

    summary: str
    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    resumable: bool = False
    configs: tuple[str, ...] = ()
    example: str = ""


def takes_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--config`; overrides of its values are taken out beforehand."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE.py[:arg]|NAME[:arg]",
        help="a Python file with get_config(), or the name of a config that comes with"
        " the package (below); its values are changed with --config.key=value, tuples"
        " as --config.key=a,b; with --help, they are listed",
    )


def takes_config_and_workdir(
    parser: argparse.ArgumentParser, *, required: bool = True
) -> None:
    """Add `--config` and `--workdir`."""
    takes_config(parser, required=required)
    parser.add_argument(
        "--workdir",
        type=any_path,
        metavar="DIR|URI",
        help="where everything is kept, and continued from (runs/NAME-OF-CONFIG)",
    )


def local_path(text: str) -> Path:
    """Return an option's path; one with a scheme would become a folder here."""
    from merging.runtime import storage

    try:
        return Path(storage.supported_path(text, "path"))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def any_path(text: str) -> Any:
    """Return an option's path, of this machine or of an object store."""
    from merging.runtime import storage

    try:
        return storage.place(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def takes_processes(parser: argparse.ArgumentParser) -> None:
    """Add what says that this is one process of several; `tell_processes` hands it on.

    Slurm's job steps, TPU slices of GKE and Open MPI say it themselves.
    """
    group = parser.add_argument_group("one process of several")
    add = group.add_argument
    add("--coordinator", metavar="HOST:PORT", help="of process 0, the same for all")
    add("--processes", metavar="N", help="how many there are")
    add("--process", metavar="I", help="which one this is, from 0; it alone reports")
    add(
        "--logs",
        type=local_path,
        metavar="DIR",
        help="where the others print, into DIR/process_I.log (WORKDIR/logs; without a"
        " workdir, where they are started)",
    )


def tell_processes(arguments: argparse.Namespace) -> None:
    """Put these options where `distributed.initialize` looks."""
    for name in ("coordinator", "processes", "process", "logs"):
        if getattr(arguments, name, None):
            os.environ[f"MERGING_{name.upper()}"] = str(getattr(arguments, name))


def config_and_workdir(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return the config with its overrides, and the workdir or its default.

    Raises:
      UserError: a config that can't be read, or an override that it doesn't have.
    """
    from merging.runtime import config

    path, argument = config.split_spec(arguments.config)
    loaded = config.load(arguments.config, arguments.overrides)
    default = Path("runs") / "-".join(filter(None, [path.stem, argument]))
    return loaded, arguments.workdir or default


def config_help(command: Command, spec: str | None) -> str:
    """Return what a command's help says of configs: their names, and one's values.

    Args:
      command: whose help it is.
      spec: the config whose values to list; the command's example if None.

    Raises:
      UserError: a config that can't be read.
    """
    from merging.runtime import config
    from merging.runtime.text import table

    rows = [
        (f"  {name}", _first_line(path))
        for name, path in config.shipped().items()
        if name.split("/")[0] in command.configs
    ]
    names = f"configs that come with the package:\n{table(rows)}"
    leaves = config.leaves(config.load(spec or command.example))
    rows = [(f"  --config.{key}", repr(value)) for key, value in leaves.items()]
    return f"{names}\n\nvalues of {spec or command.example}:\n{table(rows)}"


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0]


def print_for_a_pipe(text: str) -> None:
    """Print, and say nothing when the reader (`| head`) has had enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
