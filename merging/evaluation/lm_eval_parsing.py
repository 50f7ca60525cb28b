"""What lm-evaluation-harness parses again and again, parsed once.

Whatever it is asked for, the harness first parses all of its task files (14,000 of them
in 0.4.13), to know their names. What one says follows from the files alone, so it is
kept in the user's cache, for as long as no file there has changed; which tasks there
are, and what becomes of them, is left to the harness. And of a task's templates it
compiles each anew for every example.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval import utils

from merging.runtime import compilations, storage
from merging.runtime.errors import UserError

_TEMPLATES = 2**10


@contextlib.contextmanager
def once(root: Path | None = None) -> Iterator[None]:
    """Have the harness find what it parsed before.

    Args:
      root: folder of its own tasks.
    """
    try:  # these are its internals, of 0.4.13; another may have others
        from lm_eval.tasks import _index as index

        read, compiled = index.load_yaml, utils.env.from_string
    except (ImportError, AttributeError):
        yield
        return
    root = root or Path(lm_eval.tasks.__file__).parent
    index.load_yaml = files = _Files(root, read)
    utils.env.from_string = functools.lru_cache(_TEMPLATES)(compiled)
    try:
        yield
    finally:
        index.load_yaml, utils.env.from_string = read, compiled
        files.keep()


class _Files:
    """What the files under a folder say, from the user's cache or as the harness reads.

    Args:
      root: the folder.
      read: what the harness reads one with.
    """

    def __init__(self, root: Path, read: Any):
        self._root, self._read = root, read
        self._prefix, self._new = os.path.join(root, ""), dict[str, str]()
        name = f"{storage.digest(str(root))}.json"
        self._place = compilations.user_cache() / "lm_eval" / name

    def __call__(
        self, path: Path, *, resolve_func: bool = True, recursive: bool = True
    ) -> Any:
        name = os.fspath(path)
        plain = recursive and not resolve_func and name.startswith(self._prefix)
        if plain and (text := self._said.get(name)):
            return json.loads(text)  # anew each time: the harness changes it
        found = self._read(path, resolve_func=resolve_func, recursive=recursive)
        if plain and (text := _exact(found)):
            self._new[name] = text
        return found

    def keep(self) -> None:
        """Keep what was read, unless a file has changed meanwhile."""
        if self._new and self._files == _fingerprint(self._root):
            record = {"files": self._files, "said": self._said | self._new}
            with contextlib.suppress(UserError):  # a cache is not worth a failure
                storage.write_json(self._place, record)

    @functools.cached_property
    def _files(self) -> str:
        return _fingerprint(self._root)

    @functools.cached_property
    def _said(self) -> dict[str, str]:
        """What each file says, as JSON."""
        try:
            record = json.loads(self._place.read_bytes())
            return dict(record["said"]) if record["files"] == self._files else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _fingerprint(root: Path) -> str:
    """Return a digest of names, sizes and times of all files: any may be included."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            with contextlib.suppress(OSError):  # a link that leads nowhere
                status = os.stat(os.path.join(folder, name))
                found.append([folder, name, status.st_size, status.st_mtime_ns])
    return storage.digest(found)


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
