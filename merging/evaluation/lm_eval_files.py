"""What lm-evaluation-harness's own task files say, kept for the next command.

Whatever it is asked for, the harness parses all of its files first (14,000 of them in
0.4.13), to know their names. What one says follows from the files alone, so it is kept
in the user's cache, for as long as no file there has changed; which tasks there are,
and what becomes of them, is left to the harness.
"""

import contextlib
import functools
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.tasks

from merging.runtime import compilations, storage
from merging.runtime.errors import UserError


@contextlib.contextmanager
def kept(root: Path | None = None) -> Iterator[None]:
    """Have what its index reads of its own files come from the user's cache.

    Args:
      root: folder of the harness's own tasks.
    """
    try:  # these are its internals, of 0.4.13; another may have others
        index = importlib.import_module("lm_eval.tasks._index")
        read = index.load_yaml
    except (ImportError, AttributeError):
        yield
        return
    root = root or Path(lm_eval.tasks.__file__).parent
    place = compilations.user_cache() / "lm_eval" / f"{storage.digest(str(root))}.json"
    of = functools.cache(lambda: _fingerprint(root))
    said = functools.cache(lambda: _said(place, of()))
    new: dict[str, str] = {}

    def load(path: Path, *, resolve_func: bool = True, recursive: bool = True) -> Any:
        plain = recursive and not resolve_func and path.is_relative_to(root)
        name = os.fspath(path)
        if plain and name in said():
            return json.loads(said()[name])  # anew each time: the harness changes it
        found = read(path, resolve_func=resolve_func, recursive=recursive)
        if plain and (text := _exact(found)):
            new[name] = text
        return found

    index.load_yaml = load
    try:
        yield
    finally:
        index.load_yaml = read
        if new and of() == _fingerprint(root):
            with contextlib.suppress(UserError):  # a cache is not worth a failure
                storage.write_json(place, {"files": of(), "said": said() | new})


def _fingerprint(root: Path) -> str:
    """Return a digest of names, sizes and times of all files: any may be included."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            status = os.stat(os.path.join(folder, name))
            found.append([folder, name, status.st_size, status.st_mtime_ns])
    return storage.digest(found)


def _said(place: Path, of: str) -> dict[str, str]:
    """Return what files of that fingerprint say, as JSON, by path; {} if unknown."""
    try:
        record = json.loads(place.read_bytes())
        return dict(record["said"]) if record["files"] == of else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _exact(value: Any) -> str | None:
    """Return a value as JSON; None if it does not come back as it was."""
    try:
        text = json.dumps(value)
        return text if _same(json.loads(text), value) else None
    except (TypeError, ValueError):
        return None


def _same(one: Any, other: Any) -> bool:
    """Whether values are equal, and of equal types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
