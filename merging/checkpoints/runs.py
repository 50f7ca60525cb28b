"""The checkpoints of one training run, in the order of their steps.

    RUN@100,200,300    these steps
    RUN@1000:3000      those from 1000 to 3000; either end may be left out
    RUN@last:10        the last ten
    RUN@*              all
    RUN/ckpt-*/model   the folders of a pattern (* ? [), by the last number in what is
                       matched
    …#params           of each, a part of its tree

RUN holds steps as their trainers leave them: a CheckpointManager's (100, or ckpt_100),
those of `merging train` (step_00000100), of Hugging Face's Trainer (checkpoint-100).
"""

import os
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from merging.checkpoints import safetensors
from merging.checkpoints.errors import MissingCheckpoint
from merging.checkpoints.formats import open_checkpoint, reach
from merging.checkpoints.location import is_committed, items, path_of
from merging.runtime import hub, storage
from merging.runtime.errors import UserError, listed

GRAMMAR = "RUN@100,200, RUN@100:300, RUN@last:10 or RUN@*"
_SELECTION = re.compile(
    r"(?P<run>.+)@(?P<which>\*|last(?::\d{1,9})?|\d{0,18}:\d{0,18}|\d{1,18}(?:,\d{1,18})*)"
    r"(?:#(?P<part>.*))?"
)
_STEP = re.compile(r"((?:[A-Za-z][\w.]*[-_])?)(\d{1,18})")
_NAMED = re.compile(r"@(\d{1,18})(?:#\d+)?$")  # also one that is merged twice
_WILD = re.compile(r"[*?\[]")


class RunStep(NamedTuple):
    """A checkpoint of a run.

    Attributes:
      name: of the run and the step, such as ``RUN@100``.
      number: of the step.
      uri: of the checkpoint, as `open_checkpoint` takes it.
    """

    name: str
    number: int
    uri: str


def run_steps(text: str) -> list[RunStep] | None:
    """Return the steps that a text asks for, by their numbers; None if for no run.

    Of a training's state, the same part is taken of each step, and that is said once.

    Raises:
      UserError: no such run or step, or two folders of one number; says what there is.
    """
    if text.startswith(hub.SCHEME):  # what follows an @ is a revision
        return None
    text = storage.supported_path(text, "checkpoint", storage.REMOTE)
    if "@" not in text and not _WILD.search(text):
        return None
    if "://" in text:
        reach(path_of(text))
    if path_of(text).exists():
        return None
    if found := _SELECTION.fullmatch(text):
        run, which, part = found["run"].rstrip("/"), found["which"], found["part"]
        name, chosen = os.path.basename(run), _of_run(run, which, text)
    elif _WILD.search(text):
        pattern, _, part = text.partition("#")
        name, chosen = _of_pattern(pattern)
    elif os.path.isdir(text.rpartition("@")[0]):
        raise UserError(f"{text}: to choose the steps of a run, write {GRAMMAR}.")
    else:
        return None
    part = f"#{part}" if part else _part(chosen[0][1])
    return [RunStep(f"{name}@{n}", n, os.fspath(uri) + part) for n, uri in chosen]


def step_number(name: str, uri: str) -> int | None:
    """Return the step of an expert that is one of a run's; None for any other.

    Args:
      name: of the expert; those of `run_steps` end in the step's number.
      uri: of its checkpoint, else, whose folder may be a step: ``RUN/100#params``.
    """
    if found := _NAMED.search(name):
        return int(found[1])
    folder = os.path.basename(uri.partition("#")[0].rstrip("/"))
    found = _STEP.fullmatch(folder)
    return int(found[2]) if found else None


def _part(uri: str) -> str:
    """Return what of a step is taken where nothing is said: `#params`, or nothing."""
    return open_checkpoint(uri).uri.removeprefix(uri)


def _of_run(run: str, which: str, text: str) -> list[tuple[int, str]]:
    folder = path_of(run)
    if not folder.is_dir():
        raise MissingCheckpoint(run)
    there = _numbered(run, folder)
    if not there:
        raise UserError(
            f"{text}: {run} holds no steps, which are folders such as 100, ckpt_100, "
            "step_00000100 or checkpoint-100."
        )
    numbers = sorted(there)
    if which.startswith("last"):
        count = int(which.partition(":")[2] or 1)
        # From the end, so that of a long run only these are looked at.
        found = _finished([there[n] for n in reversed(numbers)], most=count)
        wanted = sorted(n for n in numbers if there[n] in found)
        if len(wanted) < max(count, 1):
            raise _too_few(text, numbers)
    elif ":" in which or which == "*":
        low, _, high = which.strip("*").partition(":")
        inside = [n for n in numbers if int(low or 0) <= n <= int(high or n)]
        found = _finished([there[n] for n in inside])
        wanted = [n for n in inside if there[n] in found]
    else:
        wanted = sorted(set(map(int, which.split(","))))
        if missing := [str(n) for n in wanted if n not in there]:
            raise UserError(
                f"{text}: {run} holds no step {', '.join(missing)}; {_shown(numbers)}."
            )
    if not wanted:
        raise _too_few(text, numbers)
    return [(n, os.path.join(run, there[n].name)) for n in wanted]


def _too_few(text: str, numbers: Sequence[int]) -> UserError:
    return UserError(
        f"{text}: there are not as many finished steps; {_shown(numbers)}."
    )


def _shown(numbers: Sequence[int]) -> str:
    return f"it holds {listed(map(str, numbers), mark=', ')}"


def _numbered(run: str, folder: epath.Path) -> dict[int, epath.Path]:
    """Return {number: folder} of a run's steps, finished or not."""
    found = [(_STEP.fullmatch(p.name), p) for p in folder.iterdir() if p.is_dir()]
    found = [(match, place) for match, place in found if match]
    kinds = sorted({match[1] for match, _ in found})
    if len(kinds) > 1:
        shown = ", ".join(f"{kind or ''}N" for kind in kinds)
        raise UserError(
            f"{run} holds folders of several kinds ({shown}): choose one by a pattern, "
            f"such as {run}/{kinds[-1]}*."
        )
    return _by_number((int(match[2]), place) for match, place in found)


def _of_pattern(pattern: str) -> tuple[str, list[tuple[int, str]]]:
    """Return the name of the folder before the first wildcard, and what matches."""
    before = pattern[: _WILD.search(pattern).start()].rpartition("/")[0]
    root = path_of(before or ("/" if pattern.startswith("/") else "."))
    rest = pattern[len(before) :].lstrip("/")
    places = [p for p in root.glob(rest) if p.is_dir()] if root.is_dir() else []
    if not places:
        raise UserError(f"{pattern}: no folder matches.")
    found = {}
    for place in _finished(places):
        numbers = re.findall(r"\d+", os.path.relpath(place, root))
        if not numbers:
            raise UserError(
                f"{pattern}: {place} has no number, and a run's steps go by theirs."
            )
        found[place] = int(numbers[-1])
    if not found:
        raise UserError(f"{pattern}: no folder that matches is a checkpoint.")
    there = _by_number((number, place) for place, number in found.items())
    uris = {n: os.path.join(before, os.path.relpath(there[n], root)) for n in there}
    return root.name, sorted(uris.items())


def _by_number(pairs) -> dict[int, epath.Path]:
    there: dict[int, epath.Path] = {}
    for number, place in pairs:
        if number in there:
            raise UserError(
                f"{there[number]} and {place} have the same number, {number}: which "
                "comes first?"
            )
        there[number] = place
    return there


def _finished(places: Sequence[epath.Path], most: int | None = None) -> set[epath.Path]:
    """Return the places that are whole checkpoints, the first `most`; warns of others.

    A run that goes on has one that is being written.
    """
    found, others = [], []
    for place in places:
        if most is not None and len(found) == most:
            break
        trees = items(place)
        whole = bool(trees) and is_committed(place, trees)
        (found if whole or safetensors.holds_safetensors(place) else others).append(
            place
        )
    if others:
        names = listed(sorted(p.name for p in others), mark=", ")
        warnings.warn(f"left out, no finished checkpoints: {names}", stacklevel=6)
    return set(found)
