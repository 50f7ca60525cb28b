"""Where a checkpoint is: what a user's path means, for every command alike.

    PATH          a folder (or file) of safetensors, or a folder of Orbax
    RUN           the folder of a CheckpointManager: its latest step
    RUN/100       one of its steps
    PATH#params   a part of an Orbax tree, by the keys that lead to it
    BASE+ADAPTER  a model, as any of these, with a LoRA adapter on it (a folder of PEFT)
    OWNER/NAME    a repository of the Hugging Face Hub (`merging.runtime.hub`)

Nothing is taken for a checkpoint because of its name alone, and what is not understood
is answered with what was found and what would be taken.
"""

import os
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from merging.checkpoints import safetensors
from merging.checkpoints.errors import MissingCheckpoint
from merging.checkpoints.files import is_remote, path_of
from merging.runtime import hub
from merging.runtime.errors import UserError

TREE = "_METADATA"  # Orbax's list of a tree's leaves
COMMITTED = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Folders beside a checkpoint that is replaced. No one else names theirs so.
_NEW, _OLD = ".merging-new", ".merging-old"
# An Orbax output that we have begun: how its name ends, and the file that marks it.
PARTIAL, UNFINISHED = ".partial", "layout.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")
_MSGPACK = re.compile(r"checkpoint(_\d+)?|.*\.msgpack")
_SHOWN, _LOOKED_AT = 5, 200
_MOST_SIGNS = 20


class Location(NamedTuple):
    """A checkpoint that was found.

    Attributes:
      uri: what it is called: as the user has it, with the step that was taken.
      folder: of the checkpoint; or its file.
      subtree: the keys that were asked for, joined by `/`; "" for none.
      format: `orbax` or `safetensors`.
    """

    uri: str
    folder: epath.Path
    subtree: str
    format: str


def locate(uri: str | os.PathLike) -> Location:
    """Return the checkpoint that a path means; warns which of several steps it is.

    Raises:
      MissingCheckpoint: nothing has that name.
      UserError: it is none; says what it holds and what would be taken.
    """
    name, subtree = split(uri)
    folder = path_of(name)
    if not name or not folder.exists():
        raise _missing(uri)
    if safetensors.holds_safetensors(folder):
        if subtree:
            raise UserError(
                f"{name} holds safetensors, whose tensors are in no tree: leave out "
                f"#{subtree}."
            )
        return Location(name, folder, "", "safetensors")
    if steps := _steps(folder):
        step = steps[-1].name
        if len(steps) > 1:
            warnings.warn(
                f"{name} holds the steps {_listed([s.name for s in steps])}: the "
                f"latest, {step}, is taken. Name {os.path.join(name, steps[0].name)} "
                "for another.",
                stacklevel=3,
            )
        name, folder = os.path.join(name, step), steps[-1]
    elif not _holds_orbax(folder):
        raise _not_understood(folder, name)
    mark = f"#{subtree}" if subtree else ""
    return Location(name + mark, folder, subtree, "orbax")


def beside(path: epath.Path) -> tuple[epath.Path, epath.Path]:
    """Return where the new and the old checkpoint lie while one replaces the other."""
    return path.with_name(path.name + _NEW), path.with_name(path.name + _OLD)


def is_whole(path: epath.Path) -> bool:
    """Return whether a folder holds a checkpoint that Orbax finished."""
    return (path / COMMITTED[0]).exists()


def place_of(path: epath.Path) -> epath.Path:
    """Return where a checkpoint lies: beside its name if its replacement was cut short.

    Nothing is renamed here: another program may be replacing it at this moment.
    """
    if is_remote(path) or path.exists():
        return path
    fresh, old = beside(path)
    if not old.exists():  # someone has removed the one that had the name
        return path
    return next((place for place in (fresh, old) if is_whole(place)), path)


def _missing(uri: str | os.PathLike) -> MissingCheckpoint:
    """Return the error, which says where a save that was cut short left it."""
    folder = path_of(os.fspath(uri).partition("#")[0])
    if not folder.name or (left := place_of(folder)) == folder:
        return MissingCheckpoint(uri)
    return MissingCheckpoint(
        uri,
        f"It was being replaced, and that was cut short: rename {left.name} beside it "
        f"to {folder.name}, or save it again.",
    )


def split(uri: str | os.PathLike) -> tuple[str, str]:
    """Return the path and the subtree of `RUN/100#params`; "" if none is named.

    A `#` in a name that exists is a part of the name.
    """
    text = os.fspath(uri)
    name, subtree = text, ""
    while "#" in name and not path_of(name).exists():
        name, _, keys = name.rpartition("#")
        subtree = f"{keys}#{subtree}" if subtree else keys
    if not name or not path_of(name).exists():
        return text, ""
    return name, subtree.strip("/")


def split_adapter(uri: str | os.PathLike) -> tuple[str, str | None]:
    """Return the model and the adapter of `BASE+ADAPTER`; None if none is named.

    A `+` in a name that exists is a part of the name.
    """
    text = os.fspath(uri)
    if "+" not in text or path_of(split(text)[0]).exists():
        return text, None
    places = [i for i, letter in enumerate(text) if letter == "+"]
    for place in reversed(places[:_MOST_SIGNS]):
        model, adapter = text[:place], text[place + 1 :]
        there = model and adapter and path_of(adapter).exists()
        if there and path_of(split(model)[0]).exists():
            return model, adapter
    return text, None


def folders_of(uri: str | os.PathLike) -> tuple[epath.Path, ...]:
    """Return where the config and tokenizer files are that go with a path.

    In the folder (or the file's); for a step of a CheckpointManager, before that in its
    run's folder.

    Raises:
      MissingCheckpoint: nothing has that name.
    """
    place = hub.fetched(os.fspath(uri), weights=False)
    folder = path_of(split(split_adapter(place)[0])[0])
    if not folder.exists():
        raise _missing(uri)
    if not folder.is_dir():
        return (folder.parent,)
    run = folder.parent if folder.name.isdecimal() else folder
    steps = _steps(run) if run.is_dir() else []
    if folder == run:
        folder = steps[-1] if steps else folder
    return (run, folder) if steps else (folder,)


def items(folder: epath.Path) -> list[epath.Path]:
    """Return the folders of an Orbax checkpoint's trees: itself, or some in it."""
    if (folder / TREE).exists():
        return [folder]
    return [place for place in _folders_in(folder) if (place / TREE).exists()]


def is_committed(folder: epath.Path, trees: list[epath.Path]) -> bool:
    """Return whether Orbax has finished a checkpoint with these trees."""
    places = (folder, *trees)
    return any((place / mark).exists() for place in places for mark in COMMITTED)


def _steps(folder: epath.Path) -> list[epath.Path]:
    """Return the steps of a CheckpointManager's folder, up to its latest finished one.

    Nothing, if it is no such folder.
    """
    if not folder.is_dir() or any((folder / m).exists() for m in (TREE, *COMMITTED)):
        return []
    found = [place for place in _folders_in(folder) if place.name.isdecimal()]
    found.sort(key=lambda place: int(place.name))
    while found:
        trees = items(found[-1])
        if trees and is_committed(found[-1], trees):
            break
        found.pop()
    return found


def _holds_orbax(folder: epath.Path) -> bool:
    """Return whether Orbax wrote this, whole or not."""
    if not folder.is_dir():
        return False
    known = (TREE, *COMMITTED)
    return any((folder / name).exists() for name in known) or bool(items(folder))


def _folders_in(folder: epath.Path) -> Iterator[epath.Path]:
    return (place for place in sorted(folder.iterdir()) if place.is_dir())


def _not_understood(folder: epath.Path, name: str) -> UserError:
    if folder.name.endswith(PARTIAL) and (folder / UNFINISHED).exists():
        return UserError(
            f"{name} is the unfinished output of a merge or a conversion: give its "
            "command again, and it is finished."
        )
    inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    inside = inside[:_LOOKED_AT]
    if pickles := [p.name for p in inside if p.suffix in _PICKLES]:
        return UserError(
            f"{name} holds {_listed(pickles)}; safetensors and Orbax are read here. "
            "PyTorch's files are pickles, which can run code when they are opened: "
            "save the model as safetensors first (save_pretrained of transformers "
            "does). A llama in a GGUF file is imported by merging convert."
        )
    holds = "is a file" if not folder.is_dir() else "is empty"
    if folder.is_dir() and inside:
        holds = f"holds {_listed([p.name for p in inside])}"
    lines = [
        f"{name} is no checkpoint that is read here; it {holds}. Taken are a folder of "
        f"safetensors, one of Orbax (with {TREE} in it or in a folder of it), and a "
        "CheckpointManager's, with its steps."
    ]
    if better := [p.name for p in inside if _is_checkpoint(p)]:
        wanted = _listed([os.path.join(name, p) for p in better])
        lines.append(f"Inside are {wanted}: name one of these.")
        if len(better) == 1:
            lines[-1] = f"{wanted} is one: name that."
    if any(p.is_file() and _MSGPACK.fullmatch(p.name) for p in inside):
        lines.append(
            "A msgpack file of Flax is read by flax.serialization.msgpack_restore; "
            "save the tree again with Orbax."
        )
    return UserError("\n".join(lines))


def _is_checkpoint(place: epath.Path) -> bool:
    if not place.is_dir():
        return False
    found = safetensors.holds_safetensors(place) or _holds_orbax(place)
    return bool(found or _steps(place))


def _listed(names: list[str]) -> str:
    """Return names for a message: a few of many, and nothing a terminal would obey."""
    shown = [n if n.isprintable() else repr(n) for n in names]
    if len(shown) <= _SHOWN:
        return ", ".join(shown)
    first, last = ", ".join(shown[: _SHOWN - 1]), shown[-1]
    return f"{first}, … {last} ({len(shown)} of them)"
