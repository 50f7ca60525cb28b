"""`merging tasks`: the datasets of a suite, their examples, and fetching them."""

import argparse
import itertools

from merging.cli.command import Command, local_path, print_for_a_pipe
from merging.runtime.errors import UserError, nearest

_ACTIONS = ("list", "show", "prepare")
_SUITES = ("t0", "miniworld", "english")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.action == "show" and arguments.dataset is None:
        raise UserError("merging tasks show needs the name of a dataset.")
    if arguments.action != "show" and arguments.dataset is not None:
        raise UserError(f"merging tasks {arguments.action} takes no dataset.")
    if arguments.suite == "miniworld":
        return _generated(arguments)
    if arguments.suite == "english":
        return _english(arguments)
    if arguments.suite == "jsonl":
        raise UserError("suite jsonl is files of your own: what they hold, they say.")
    if arguments.suite != "t0":
        raise nearest("suite", arguments.suite, _SUITES)
    run = {"list": _list, "show": _show, "prepare": _prepare}[arguments.action]
    return run(arguments)


def _generated(arguments: argparse.Namespace) -> int:
    """List the miniworld, or show three examples of a dataset."""
    from merging import tasks
    from merging.tasks import listing

    if arguments.action == "prepare" or arguments.data_dir or arguments.markdown:
        raise UserError("suite miniworld is generated: it has no data to fetch.")
    suite = tasks.suite("miniworld")
    if arguments.action == "list":
        print_for_a_pipe(listing.listed(suite))
        return 0
    name = suite.dataset(arguments.dataset).name
    for example in suite.source.generator.examples(name, "test", 0, 3):
        print_for_a_pipe(listing.shown(name, **example) + "\n")
    return 0


def _english(arguments: argparse.Namespace) -> int:
    """Make the file of real English, and say what it holds and how it is used."""
    from merging.runtime.text import table
    from merging.tasks import english

    if arguments.action != "prepare" or arguments.only:
        raise UserError(
            "suite english is a file, made by `merging tasks prepare --suite english` "
            "and used as one of your own."
        )
    if arguments.data_dir is None:
        raise UserError("merging tasks prepare needs --data_dir DIR.")
    counts = english.prepare(arguments.data_dir)
    parts = ("train", "validation", "test")
    rows = [("dataset", *parts)]
    rows += [(name, *(of[part] for part in parts)) for name, of in counts.items()]
    print_for_a_pipe(table(rows, right=(1, 2, 3)))
    path = arguments.data_dir / english.FILE
    print_for_a_pipe(
        f"{path} is ready: --config.suite=jsonl --config.data.files={path}, or "
        "--config smollm2/english."
    )
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from merging.tasks.t0 import page

    text = page.markdown().rstrip("\n") if arguments.markdown else page.listed()
    print_for_a_pipe(text)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from merging.tasks.t0 import page, rendering, sources, tables

    entry = tables.entry(arguments.dataset)
    prompts = list(entry.prompts.values())[:3]
    if arguments.data_dir is None:
        records = itertools.repeat(
            rendering.checked(entry, entry.example), len(prompts)
        )
        about = f"{entry.about}\n(an invented record; --data_dir shows real ones)"
    else:
        located = sources.locate(entry, arguments.data_dir)
        records = itertools.islice(sources.records(entry, located, "train"), 3)
        about = f"{entry.about}\n(the first of {located.folders[0]})"
    shown = [
        page.shown(entry, prompt, record)
        for prompt, record in zip(prompts, records, strict=False)
    ]
    print_for_a_pipe("\n\n".join([about, *shown]))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from merging.tasks.t0 import preparing

    if arguments.data_dir is None:
        raise UserError("merging tasks prepare needs --data_dir DIR.")
    states = []
    for state in preparing.prepare(arguments.data_dir, arguments.only):
        states.append(state)
        mark = "ready  " if state.ready else "missing"
        about = state.about.replace("\n", "\n" + " " * 10)
        print_for_a_pipe(f"{mark} {state.dataset}\n          {about}")
    ready = [state.dataset for state in states if state.ready]
    print_for_a_pipe(f"{len(ready)} of {len(states)} datasets are ready.")
    if arguments.contamination:
        _report(preparing.overlaps(arguments.data_dir, ready) if ready else None)
    return 0 if len(ready) == len(states) else 1


def _report(found: list | None) -> None:
    if found is None:
        print_for_a_pipe("contamination: not looked for; no dataset is ready.")
        return
    for overlap in found:
        numbers = ", ".join(map(str, overlap.shown))
        print_for_a_pipe(
            f"contamination: {overlap.evaluated} in the training part of "
            f"{overlap.trained}: {overlap.examples} examples whole, {overlap.texts} by "
            f"a long text (numbers {numbers}, …)"
        )
    if not found:
        print_for_a_pipe(
            "contamination: none; no evaluation example of the datasets that are ready "
            "is trained on in one of them."
        )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=_ACTIONS, help="what to do")
    parser.add_argument("dataset", nargs="?", help="of show: its name")
    parser.add_argument(
        "--suite",
        default="t0",
        metavar="NAME",
        help=f"one of {', '.join(_SUITES)} (t0)",
    )
    parser.add_argument(
        "--data_dir", type=local_path, metavar="DIR", help="where datasets are, or go"
    )
    parser.add_argument(
        "--only",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="A,B",
        help="prepare these datasets (all)",
    )
    parser.add_argument(
        "--contamination",
        action="store_true",
        help="compare what is evaluated with what is trained on; takes minutes",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="list as the page docs/t0.md"
    )


COMMAND = Command(
    "list a suite's datasets, show examples, fetch the data",
    """\
    list: every dataset of a suite with its source, metric and prompts.
    show: three examples of a dataset, each under another prompt.
    prepare: fetch what the network allows into a data directory, and say of every
    dataset whether it is ready, or how to get it. Ends with 1 while any is missing.

    examples:
      merging tasks list
      merging tasks show copa
      merging tasks list --suite miniworld
      merging tasks prepare --suite t0 --data_dir data
      merging tasks prepare --data_dir data --only copa,rte --contamination
      merging tasks prepare --suite english --data_dir data
    """,
    _options,
    _run,
)
