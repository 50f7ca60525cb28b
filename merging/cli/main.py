"""The command line: `merging COMMAND --config FILE.py[:arg] [--config.key=value …]`.

No logic lives here. Exit status: 0; 2 for the user's mistake, with one message and no
traceback; 1 for ours; 130 when stopped from the keyboard; 75 when stopped by SIGTERM,
and then launchers run the same command again.
"""

import argparse
import atexit
import errno
import gc
import itertools
import logging
import os
import shlex
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from merging.cli import COMMANDS
from merging.cli.command import Command, config_help, tell_processes
from merging.runtime import preemption
from merging.runtime.errors import (
    PREEMPTED,
    Preempted,
    Unreachable,
    UserError,
    listed,
    nearest,
)

# To look through what stays imported every 700 objects is a seventh of the start.
if gc.get_threshold()[0] < 20_000:  # who set more, as tests do, knows why
    gc.set_threshold(20_000, 20, 20)
# Of a path or of its permissions, wherever it came from.
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
_NO_SPACE = os.strerror(errno.ENOSPC).lower()
# The exit status, once the command that this process is for has ended.
_ended: list[int] = []


@atexit.register
def _leave() -> None:
    """End without Python's taking apart all that was imported: a second with cycles.

    Called after all that is registered later, JAX's and this package's own.
    """
    gc.freeze()
    if _ended:
        logging.shutdown()
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # closed by who started this
                    stream.flush()
        except (OSError, ValueError):  # nobody reads: Python tells, in its own way
            return
        os._exit(_ended[0])


def command() -> NoReturn:
    """Run the command that this process is for."""
    _ended.append(main())
    sys.exit(_ended[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        status, reason = _guarded(argv)
    if status:
        preemption.end(status, reason)
    return status


def _guarded(argv: list[str]) -> tuple[int, str]:
    """Run one command; return the exit status, and in a line why it is not 0."""
    try:
        return _run(argv), ""
    except Preempted as stopped:
        print(f"{stopped}. {_stopped(argv)}", file=sys.stderr)
        return PREEMPTED, str(stopped)
    except UserError as error:
        return _complain(str(error)), str(error)
    except KeyboardInterrupt:
        print(f"\n{_stopped(argv)}", file=sys.stderr)
        return 130, "stopped from the keyboard"
    except SystemExit as done:  # argparse, after --help
        return int(done.code or 0), ""
    except Exception as error:
        if refused := _refused_by_the_system(error, argv):
            return _complain(f"{refused} Then: {_again(argv)}"), refused
        if (silent := _unreachable(error)) is not None:
            _complain(f"{silent} Then: {_again(argv)}")
            return (PREEMPTED if silent.passing else 2), str(silent)
        if preemption.lost(error):
            reason = f"another process of this job was lost ({_last_line(error)})"
            print(f"merging: {reason}. {_stopped(argv)}", file=sys.stderr)
            return PREEMPTED, reason
        traceback.print_exc()
        print("merging: this is a fault in merging, please report it.", file=sys.stderr)
        return 1, f"{type(error).__name__}: {error}"


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise nearest("command", argv[0], COMMANDS)
    argv, overrides = _split_overrides(argv)
    argv = [_with_underscores(argument) for argument in argv]
    _refuse_repeated(argv)
    parser = _parser(argv)
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None and argv:
        raise nearest("argument", argv[0], ["--help", "--version", *COMMANDS])
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    takes_config = "config" in arguments
    if unknown:
        if takes_config and unknown[0].endswith((".py", ".yml", ".yaml")):
            raise UserError(f"write --config {unknown[0]}.")
        valid = parser.options[arguments.command]
        raise nearest(f"argument of merging {arguments.command}", unknown[0], valid)
    if overrides and not takes_config:
        raise UserError(f"merging {arguments.command} reads no config.")
    arguments.overrides = overrides
    tell_processes(arguments)
    if COMMANDS[arguments.command].resumable:
        preemption.watch()
    return COMMANDS[arguments.command].run(arguments)


class _Parser(argparse.ArgumentParser):
    """Help that keeps its line breaks, and errors that are UserErrors."""

    def __init__(self, **settings):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=raw, **settings)
        self.options: dict[str, list[str]] = {}

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


class _Version(argparse.Action):
    """Say which versions run, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from merging.runtime.revision import versions

        found = versions("merging", "jax", "jaxlib", "flax", "orbax-checkpoint")
        print("\n".join(f"{name} {version}" for name, version in found.items()))
        parser.exit()


def _parser(argv: Sequence[str]) -> _Parser:
    """Return the parser of all commands; `--help` beside a config lists its values."""
    parser = _Parser(
        prog="merging",
        description="Merge large models, exactly and at scale, in JAX.",
        epilog="merging COMMAND --help explains a command, with examples.",
    )
    text = "tell the versions of this, of Python and of JAX, for a report"
    parser.add_argument("--version", action=_Version, nargs=0, help=text)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        child = commands.add_parser(
            name, help=command.summary, description=textwrap.dedent(command.help)
        )
        command.options(child)
        if argv[:1] == [name] and {"-h", "--help"} & {*argv}:
            child.epilog = _config_help(argv, command)
        parser.options[name] = list(child._option_string_actions)
    return parser


def _config_help(argv: Sequence[str], command: Command) -> str | None:
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--config", nargs="?")
    spec = given.parse_known_args(argv)[0].config
    return config_help(command, spec) if command.configs else None


def _split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--config.key=value` and `--config.key value` out of the arguments."""
    rest, overrides = [], {}
    remaining: Iterator[str] = iter(argv)
    for argument in remaining:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE.")
        if key in overrides:
            raise UserError(
                f"--config.{key} is given twice, {overrides[key]!r} and {value!r}."
                f" Of both, only one would count; write --config.{key}=A,B for a tuple."
            )
        overrides[key] = value
    return rest, overrides


def _with_underscores(argument: str) -> str:
    """Return an option as we spell it: `--dry-run` is `--dry_run`."""
    name, equals, value = argument.partition("=")
    if name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


def _refuse_repeated(argv: Sequence[str]) -> None:
    """Refuse `--workdir A --workdir B`, of which argparse would take the last."""
    names = [a.partition("=")[0] for a in argv if a.startswith("--")]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{', '.join(repeated)}: give an option once.")


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """Say what is the matter, without a line of source."""
    print(f"warning: {message}", file=sys.stderr)


def _complain(message: str) -> int:
    print(f"merging: error: {_in_a_line(message)}", file=sys.stderr)
    return 2


def _in_a_line(message: str) -> str:
    """Return a message in one line; of indented lines, a list, the first few."""
    parts = []
    lines = message.splitlines()
    for indented, run in itertools.groupby(lines, lambda line: line.startswith(" ")):
        run = [line.strip() for line in run]
        parts += [listed(run)] if indented else run
    *first, last = parts or [""]
    ended = [part if part[-1:] in ".:,;!?" else f"{part}." for part in first]
    return " ".join([*ended, last])


def _last_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1]


def _again(argv: list[str]) -> str:
    return shlex.join(["merging", *argv])


def _stopped(argv: list[str]) -> str:
    if argv and argv[0] in COMMANDS and COMMANDS[argv[0]].resumable:
        return f"Stopped. What was finished is kept; to continue:\n  {_again(argv)}"
    return "Stopped."


def _refused_by_the_system(
    error: BaseException | None, argv: Sequence[str]
) -> str | None:
    """Return what to do about a full disk, a missing permission or a wrong path."""
    while error is not None:
        number = getattr(error, "errno", None)
        # Storage libraries and worker processes report a full disk in words only,
        # amid their own.
        words = [line for line in str(error).splitlines() if _NO_SPACE in line.lower()]
        if number in (errno.ENOSPC, errno.EDQUOT) or words:
            shown = (words or [error])[-1]
            return (
                f"the disk is full ({shown}). Finished work is kept; free some space."
            )
        if number in (errno.EMFILE, errno.ENFILE):
            return f"no more files may be open here ({error}): raise `ulimit -n`."
        if number in _REFUSED or (
            isinstance(error, OSError) and _was_named(error.filename, argv)
        ):
            return f"the system refused it ({error}). Change that or the path."
        error = error.__cause__ or error.__context__
    return None


def _unreachable(error: BaseException | None) -> Unreachable | None:
    """Return what an object store did not answer, if that is what an error is of."""
    while error is not None and not isinstance(error, Unreachable):
        error = error.__cause__ or error.__context__
    return error


def _was_named(path: object, argv: Sequence[str]) -> bool:
    """Return whether a path is one that the command names, or a folder above it.

    What lies inside of these is ours, and a failure there a fault.
    """
    if not isinstance(path, str):
        return False
    path = os.path.abspath(path)
    words = [word for text in argv for word in text.rpartition("=")[2].split(",")]
    return any(f"{os.path.abspath(word)}/".startswith(f"{path}/") for word in words)


if __name__ == "__main__":
    sys.exit(main())
