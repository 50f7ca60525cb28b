"""The command line: `merging COMMAND --config FILE.py[:arg] [--config.key=value …]`.

No logic lives here. Exit status: 0; 2 for the user's mistake, with one message and no
traceback; 1 for ours; 130 when stopped from the keyboard; 75 when stopped by SIGTERM,
and then launchers run the same command again.
"""

import argparse
import errno
import json
import os
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from merging import stopping
from merging.errors import PREEMPTED, Preempted, UserError, nearest

_NO_SPACE = os.strerror(errno.ENOSPC).lower()

# Everything else is imported by the command that needs it: help must not wait for JAX.


class Command(NamedTuple):
    """One command: a line for the list, its own help, its options, what it runs."""

    summary: str
    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    resumable: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    status, reason = _guarded(argv)
    if status:
        stopping.end(status, reason)
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
        if refused := _refused_by_the_system(error):
            return _complain(f"{refused}\nThen: {_again(argv)}"), refused
        if stopping.lost(error):
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
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    takes_config = "config" in arguments
    if unknown:
        valid = parser.options[arguments.command]
        raise nearest(f"argument of merging {arguments.command}", unknown[0], valid)
    if overrides and not takes_config:
        raise UserError(f"merging {arguments.command} reads no config.")
    arguments.overrides = overrides
    if COMMANDS[arguments.command].resumable:
        stopping.watch()
    return COMMANDS[arguments.command].run(arguments)


def _merge(arguments: argparse.Namespace) -> int:
    from merging import config, stream

    if arguments.manifest:
        if arguments.config or not arguments.output:
            raise UserError("--manifest goes with --output, and without --config.")
        print(f"Merged: {stream.repeat(arguments.manifest, arguments.output)}")
        return 0
    if not arguments.config or arguments.output:
        raise UserError(
            "merging merge needs --config FILE.py, with --config.output=DIR; or"
            " --manifest FILE with --output DIR."
        )
    loaded = config.load(arguments.config, arguments.overrides)
    stream.run(loaded, dry_run=arguments.dry_run)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from merging import stream

    wrong = stream.verify(arguments.output)
    if wrong:
        print("\n".join(wrong))
        return 1
    print(f"{arguments.output} is what was written.")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from merging import config, convert

    convert.run(config.load(arguments.config, arguments.overrides))
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    config, workdir = _config_and_workdir(arguments)
    from merging import sweep

    sweep.run(config, workdir, shard=arguments.shard)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from merging import sweep

    _print_for_a_pipe(sweep.status(arguments.workdir))
    return 0


def _gates(arguments: argparse.Namespace) -> int:
    config, workdir = _config_and_workdir(arguments)
    from merging import sweep

    return 0 if sweep.gates(config, workdir) else 1


def _report(arguments: argparse.Namespace) -> int:
    from merging import report, results

    rows = results.read(arguments.workdir)
    page = report.write_report(rows, arguments.out or arguments.workdir[0] / "report")
    print(f"Report of {len(rows)} rows: {page}")
    return 0


def _methods(arguments: argparse.Namespace) -> int:
    from merging import methods

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
        text = "\n\n".join(_method_text(record) for record in records)
    _print_for_a_pipe(text)
    return 0


def _method_text(record: dict) -> str:
    settings = ", ".join(f"{k}={v!r}" for k, v in record["parameters"].items())
    body = f"{record['definition']}\n{record['paper']}"
    return f"{record['name']}({settings})\n{textwrap.indent(body, '    ')}"


def _config_and_workdir(arguments: argparse.Namespace) -> tuple:
    from merging import config

    path, argument = config.split_spec(arguments.config)
    loaded = config.load(arguments.config, arguments.overrides)
    default = Path("runs") / "-".join(filter(None, [path.stem, argument]))
    return loaded, arguments.workdir or default


def _takes_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE.py[:arg]",
        help="a Python file with get_config(), such as configs/merge/ties.py; its"
        " values are changed with --config.key=value",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the plan (blocks, passes, bytes, memory) and stop",
    )
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="repeat the merge it records"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where to, with --manifest only"
    )


def _takes_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="DIR", help="a merged checkpoint")


def _takes_config_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:arg]",
        help="a Python file with get_config(); its values are changed with"
        " --config.key=value, tuples as --config.key=a,b",
    )


def _takes_config(parser: argparse.ArgumentParser) -> None:
    _takes_config_only(parser)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where everything is kept, and continued from (runs/NAME-OF-CONFIG)",
    )


def _takes_shard(parser: argparse.ArgumentParser) -> None:
    _takes_config(parser)
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="i/n",
        help="do the i-th of n parts of the grid, i from 0 to n-1",
    )


def _takes_workdirs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="finished or unfinished runs; their rows are joined",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="(the first workdir's report/)"
    )


def _takes_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="of a sweep"
    )


def _takes_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


COMMANDS = {
    "merge": Command(
        "merge checkpoints of any size into a new one, resumably",
        """\
        Merge checkpoints on disk, safetensors or Orbax folders, into a new one: block
        by block under a memory budget, with statistics over the whole model, and the
        same bytes for any budget and any number of devices and processes. Stop it at
        any time; the same command continues. The output appears when it is complete.

        examples:
          merging merge --config configs/merge/ties.py --config.base=BASE \\
              --config.experts=EXPERT1,EXPERT2 --config.output=MERGED
          merging merge --config configs/merge/ties.py --config.base=BASE \\
              --config.experts=EXPERT1,EXPERT2 --config.output=MERGED --dry_run
          merging merge --config configs/merge/average.py \\
              --config.merge_yaml=mergekit.yml --config.output=MERGED
          merging merge --manifest MERGED/manifest.json --output AGAIN
        """,
        _takes_merge,
        _merge,
        resumable=True,
    ),
    "verify": Command(
        "check a merged checkpoint against its manifest",
        """\
        Read every leaf of a merged checkpoint and hold its SHA-256 against the
        manifest beside it. Status 1 if any byte has changed.

        examples:
          merging verify MERGED
        """,
        _takes_output,
        _verify,
    ),
    "convert": Command(
        "turn a model of a known family into Orbax, or back into safetensors",
        """\
        Read a model with its config.json (Llama, Mistral, Qwen, Gemma, PaLM's shape)
        and write it again: as Orbax with the decoder's leaves, layers stacked, to train
        and shard; or as safetensors with the family's names, as transformers reads
        them. Under a memory budget, whatever the model's size, and without changing a
        bit of a weight. The output appears when it is complete.

        examples:
          merging convert --config configs/convert/to_orbax.py \\
              --config.input=LLAMA --config.output=LLAMA_ORBAX
          merging convert --config configs/convert/to_safetensors.py \\
              --config.input=MERGED_ORBAX --config.output=MERGED
        """,
        _takes_config_only,
        _convert,
    ),
    "sweep": Command(
        "train, merge, evaluate and report a whole grid, resumably",
        """\
        Train bases and experts, merge them in every way the config lists, evaluate
        each model, and write the report. Every finished step is kept in the workdir:
        stop it at any time, and the same command continues; run it again when it is
        done, and it does nothing.

        examples:
          merging sweep --config configs/scaling_curves/tiny.py --workdir curves
          merging sweep --config configs/scaling_curves/tiny.py \\
              --config.sizes=1x,8x --config.seeds=3 --workdir more
          merging sweep --config FILE.py --workdir DIR --shard 0/4   # one of 4 machines
        Any number of these may share one workdir, with --shard or without: each takes
        steps that no other works on, and `merging status --workdir DIR` shows them all.
        """,
        _takes_shard,
        _sweep,
        resumable=True,
    ),
    "status": Command(
        "how far a sweep is: done, running, failed, and the time left",
        """\
        Show the grid of a sweep's workdir, whoever works on it and wherever: how many
        steps are done, running or waiting, who runs them, the first line of each
        failure, and the time left. Reads only.

        examples:
          merging status --workdir curves
        """,
        _takes_workdir,
        _status,
    ),
    "report": Command(
        "figures, tables and verdicts from one or several runs",
        """\
        Read the result rows of one or several workdirs and write figures (PNG, SVG),
        tables (CSV) and one HTML page that holds them all.

        examples:
          merging report --workdir curves
          merging report --workdir part0 part1 part2 --out joined
        """,
        _takes_workdirs,
        _report,
    ),
    "gates": Command(
        "prove that a suite can tell good models from bad ones",
        """\
        Print, per dataset, the scores of chance, both bases, the expert and a model
        trained on it directly, and whether each gate passes. Status 1 if one fails.

        examples:
          merging gates --config configs/scaling_curves/tiny.py --workdir curves
        """,
        _takes_config,
        _gates,
        resumable=True,
    ),
    "methods": Command(
        "list every merge method with its parameters, defaults and paper",
        """\
        List every merge method: its parameters with defaults, its definition in a
        line, and its paper.

        examples:
          merging methods
          merging methods --json
        """,
        _takes_format,
        _methods,
    ),
}


class _Parser(argparse.ArgumentParser):
    """Help that keeps its line breaks, and errors that are UserErrors."""

    def __init__(self, **settings):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=raw, **settings)
        self.options: dict[str, list[str]] = {}

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.\nSee `{self.prog} --help`.")


def _parser() -> _Parser:
    parser = _Parser(
        prog="merging",
        description="Merge large models, exactly and at scale, in JAX.",
        epilog="merging COMMAND --help explains a command, with examples.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        child = commands.add_parser(
            name, help=command.summary, description=textwrap.dedent(command.help)
        )
        command.options(child)
        parser.options[name] = list(child._option_string_actions)
    return parser


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
        overrides[key] = value
    return rest, overrides


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no part i/n of a grid; of four parts the first is 0/4 and"
            " the last 3/4"
        )
    return int(found[1]), int(found[2])


def _complain(message: str) -> int:
    print(f"merging: error: {message}", file=sys.stderr)
    return 2


def _last_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1]


def _again(argv: list[str]) -> str:
    return shlex.join(["merging", *argv])


def _stopped(argv: list[str]) -> str:
    if argv and argv[0] in COMMANDS and COMMANDS[argv[0]].resumable:
        return f"Stopped. What was finished is kept; to continue:\n  {_again(argv)}"
    return "Stopped."


def _refused_by_the_system(error: BaseException | None) -> str | None:
    """Return what to do about a full disk or a missing permission, if it was one."""
    while error is not None:
        number = getattr(error, "errno", None)
        # Storage libraries and worker processes report a full disk in words only,
        # amid their own.
        words = [line for line in str(error).splitlines() if _NO_SPACE in line.lower()]
        if number in (errno.ENOSPC, errno.EDQUOT) or words:
            shown = (words or [error])[-1]
            return (
                f"the disk is full ({shown}).\nFinished work is kept; free some space."
            )
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            return f"the system refused it ({error}).\nChange that or the directory."
        error = error.__cause__ or error.__context__
    return None


def _print_for_a_pipe(text: str) -> None:
    """Print, and say nothing when the reader (`| head`) has had enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
