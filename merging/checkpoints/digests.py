"""What a checkpoint's bytes are, every one of them; each file is hashed once.

A digest of a file is kept in the user's cache, under all that its file system says of
it: where it is, its size, and when it or its entry was changed last.
"""

import concurrent.futures
import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from etils import epath

from merging.checkpoints.files import RangeFile, is_remote, reading
from merging.checkpoints.source import Source
from merging.runtime import compilations, storage
from merging.runtime.errors import UserError, listed

_PART = 2**23
_THREADS = 4
# A file may be written again within one tick of its clock.
_SETTLED_NS = 2 * 10**9


def content(source: Source) -> dict[str, str]:
    """Return {file: SHA-256 of all its bytes} of a checkpoint.

    Raises:
      UserError: a file was changed meanwhile.
      CorruptCheckpoint: one can't be read.
    """
    paths = source.paths()
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "digest") as threads:
        return dict(zip(paths, threads.map(of_file, paths.values()), strict=True))


def of_file(path: epath.Path) -> str:
    """Return the SHA-256 of a file, from the user's cache if it was hashed before."""
    before = changed_at(path)
    place = _cache() / storage.digest(*_name(path), *before, length=32)
    if kept := _kept(place):
        return kept
    file = RangeFile(path)
    found = _hash(file, file.size)
    if changed_at(path) != before:
        raise UserError(f"{path} was changed while it was being read; start again.")
    if not is_remote(path) and time.time_ns() - max(before[1:]) > _SETTLED_NS:
        try:
            storage.write_bytes(place, found.encode())
        except UserError:  # no place to keep it: it is hashed again the next time
            pass
    return found


def of_beginning(path: epath.Path, length: int) -> str:
    """Return the SHA-256 of a file's first bytes, read now.

    Raises:
      UserError: it is no regular file.
      CorruptCheckpoint: it is shorter, or can't be read.
    """
    return _hash(RangeFile(path), length)


def changed_at(path: epath.Path) -> tuple[int, int, int]:
    """Return a file's size, when it was written to last, and its entry, in ns.

    A program can set the first of these times, and not the second. An object has one.

    Raises:
      CorruptCheckpoint: it can't be found any more.
    """
    with reading(path):
        if not is_remote(path):
            found = os.stat(path)
            return found.st_size, found.st_mtime_ns, found.st_ctime_ns
        found = path.stat()
        made = int(found.mtime or 0) * 10**9
        return found.length, made, made


def stamps(sources: Iterable[Source]) -> list[list]:
    """Return [file, size, when it was written to last in ns] of all files, as JSON.

    Digests of places tell checkpoints apart without reading them; that a file was not
    written to between two moments is for its storage to say. A copy that keeps the
    time counts as the same file, and so does one with other permissions.
    """
    return [
        [str(path), *changed_at(path)[:2]]
        for source in sources
        for path in source.paths().values()
    ]


def require_unchanged(before: list[list], sources: Iterable[Source]) -> None:
    """Refuse to go on if a file was changed since `stamps` gave these.

    Raises:
      UserError: some were; lists them.
    """
    now = stamps(sources)
    changed = {file for file, *_ in set(map(tuple, now)) - set(map(tuple, before))}
    if changed:
        raise UserError(
            f"changed while they were read: {listed(sorted(changed))}. Nothing was "
            "published; leave the inputs alone, and start again."
        )


def _name(path: epath.Path) -> list[str | int]:
    """Return what else a digest is kept under: of a local file, its entry on disk."""
    if is_remote(path):
        return [os.fspath(path)]
    found = os.stat(path)
    return [os.path.abspath(path), found.st_dev, found.st_ino]


def _hash(file: RangeFile, length: int) -> str:
    """Return the SHA-256 of a file's first bytes."""
    buffer, found = np.empty(min(_PART, max(length, 1)), np.uint8), hashlib.sha256()
    for at in range(0, length, _PART):
        part = buffer[: min(_PART, length - at)]
        file.read_into(at, part, file.path.name)
        found.update(part)
    return found.hexdigest()


def _cache() -> Path:
    return compilations.user_cache() / "digests"


def _kept(place: Path) -> str | None:
    try:
        text = place.read_text()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None
