"""The folder of an output that is being written, and the mark that makes it ours.

    OUT.partial/layout.json     the mark, with what OUT will hold
    OUT.partial/checkpoint/     what will be OUT
    OUT.partial/.merge/ …       what is kept beside it until then

Only a folder with the mark is written to, and only what has these names is removed.
"""

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from merging.checkpoints import files
from merging.checkpoints.location import UNFINISHED
from merging.runtime import storage
from merging.runtime.errors import UserError, listed
from merging.runtime.storage import Folder

CONTENT = "checkpoint"
# What a merge keeps: its journal, and the folder that an adapter is made of. What an
# output in an object store is joined of.
JOURNAL, COORDINATES = ".merge", "coordinates"
PIECES, JOINED = "pieces", "joined"
# In the order in which they are removed: the journal tells whose the others are.
_KEPT = (PIECES, JOINED, CONTENT, f"{COORDINATES}.partial", JOURNAL)
_MADE_BY = "merging: a checkpoint that is being written"
_LARGEST = 2**28
_HALF = f".{UNFINISHED}.*.tmp"  # a mark that a kill left half written


def begin(folder: Folder, layout: Mapping[str, Any]) -> None:
    """Make an unfinished output's folder, or go on with one of the same layout.

    Raises:
      UserError: it holds another layout, or what we did not make.
    """
    wanted = json.loads(json.dumps({"made_by": _MADE_BY, **layout}))
    if isinstance(folder, Path) and folder.is_symlink():
        raise _not_ours(folder, "is a link")
    folder.mkdir(parents=True, exist_ok=True)
    found = _mark(folder)
    if found is None:
        if not all(fnmatch.fnmatch(path.name, _HALF) for path in folder.iterdir()):
            raise _not_ours(folder, "exists, and is no output that was begun here")
        storage.write_json(folder / UNFINISHED, wanted)
    elif was_published(folder):
        _clear(folder)
        storage.write_json(folder / UNFINISHED, wanted)
    elif found != wanted:
        raise UserError(
            f"{folder} holds the unfinished output of another merge, laid out "
            "differently. Delete it to start anew, or choose another output."
        )


def is_begun(folder: Folder) -> bool:
    """Return whether a folder has our mark."""
    return _mark(folder) is not None


def was_published(folder: Folder) -> bool:
    """Return whether this is what a kill left of an output that had got its name."""
    return (
        isinstance(folder, Path)
        and not folder.is_symlink()
        and is_begun(folder)
        and not (folder / CONTENT).exists()
    )


def require_only(content: Path, names: Iterable[str]) -> None:
    """Refuse what would be published with an output, and was not made for it.

    Args:
      content: the folder that will be the output.
      names: of the output's files and folders, or of files in these.

    Raises:
      UserError: it holds something else.
    """
    ours = {name.split("/")[0] for name in names}
    found = {path.name for path in content.iterdir()} - ours
    # What macOS and NFS lay into folders that are looked at.
    others = sorted(x for x in found if x != ".DS_Store" and not x.startswith(".nfs"))
    if others:
        raise UserError(
            f"{content} holds {listed(others)}, not made here. Move it away and give "
            "the command again, or choose another output."
        )


def remove(folder: Folder) -> None:
    """Remove what is ours, the mark last: until then it says that the rest is ours.

    It stays with what a file system does not let go of yet, such as NFS of open files.
    """
    _clear(folder)
    if any((folder / name).exists() for name in _KEPT):
        return
    (folder / UNFINISHED).unlink(missing_ok=True)
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):  # something that is not ours is left in it
            os.rmdir(folder)


def _clear(folder: Folder) -> None:
    for name in _KEPT:
        storage.remove(folder / name)
    for half in list(folder.glob(_HALF)):
        half.unlink(missing_ok=True)


def _mark(folder: Folder) -> dict[str, Any] | None:
    """Return an unfinished output's mark; None if there is none of ours."""
    path = files.path_of(os.fspath(folder / UNFINISHED))
    if not path.exists():
        return None
    try:
        found = json.loads(files.read_small(path, _LARGEST))
        return found if found["made_by"] == _MADE_BY else None
    except (ValueError, KeyError, TypeError, RecursionError):  # or a UserError
        return None


def _not_ours(folder: Folder, what: str) -> UserError:
    return UserError(f"{folder} {what}. Move it away, or choose another output.")
