"""Files of a checkpoint, local or in an object store, read as a stranger's.

A name stays in its folder, and only regular files are opened: a FIFO would never end,
and a device answers to being read. Of however many files, a few are open at a time.
"""

import contextlib
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from merging.checkpoints.descriptors import Descriptors
from merging.checkpoints.errors import CorruptCheckpoint
from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import is_remote

# Of 65 models in shards of 5 GB a block reads 65 files; systems allow 256 or more.
MOST_OPEN = 128
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class Stamp(NamedTuple):
    """What changes when a local file does, as far as its file system tells."""

    inode: int
    size: int
    modified: int


class RangeFile:
    """A file to read ranges of, from any thread.

    Args:
      path: local, or an object store's.

    Raises:
      UserError: it is no regular file.
      CorruptCheckpoint: the system can't read it.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        self._key = None if is_remote(path) else (os.fspath(path), stamp(path))
        self.size = size(path)
        if self._key is not None:
            # At the program's end the system closes what is open.
            weakref.finalize(self, _OPEN.close, self._key).atexit = False

    def read(self, at: int, length: int) -> bytes:
        """Return bytes; fewer at the file's end."""
        with reading(self.path):
            if self._key is not None:
                with _OPEN.of(self._key) as descriptor:
                    return os.pread(descriptor, length, at)
            if isinstance(self.path, ObjectPath):
                return self.path.read_range(at, min(length, self.size - at))
            with self.path.open("rb") as file:
                file.seek(at)
                return file.read(length)

    def read_into(self, at: int, out: np.ndarray, leaf: str) -> None:
        """Fill `out`, bytes, from position `at`; the leaf is named if that fails."""
        done = 0
        with reading(self.path, leaf), contextlib.ExitStack() as stack:
            descriptor = None
            if self._key is not None:
                descriptor = stack.enter_context(_OPEN.of(self._key))
            while done < len(out):
                if descriptor is not None:
                    got = os.preadv(descriptor, [out[done:]], at + done)
                else:
                    part = self.read(at + done, len(out) - done)
                    got = len(part)
                    out[done : done + got] = np.frombuffer(part, np.uint8)
                if not got:
                    raise CorruptCheckpoint(
                        self.path, f"{leaf} ends {len(out) - done} bytes too early"
                    )
                done += got

    def require_unchanged(self) -> None:
        """Refuse what was read if the local file was written to or replaced meanwhile.

        Raises:
          UserError: it was.
        """
        if self._key is not None and stamp(self.path) != self._key[1]:
            raise _changed(self.path)


def path_of(name: str) -> epath.Path:
    """Return a path that Orbax takes: absolute, or an object store's."""
    if name.startswith(storage.KEPT_IN):
        return storage.place(name, "checkpoint")
    return epath.Path(name if is_remote(name) else os.path.abspath(name))


def stamp(path: str | os.PathLike) -> Stamp:
    """Return a local file's stamp, without opening it.

    Raises:
      UserError: it is no regular file.
      CorruptCheckpoint: there is none, or the system can't tell.
    """
    with reading(path):
        return _stamp(path, os.stat(path))


def size(path: epath.Path) -> int:
    """Return a file's bytes, without opening it; raises as `stamp`."""
    if not is_remote(path):
        return stamp(path).size
    with reading(path):
        return path.stat().length


def read_small(path: epath.Path, most: int) -> bytes:
    """Return a whole file.

    Raises:
      UserError: it is no regular file.
      CorruptCheckpoint: it has more bytes than that, or the system can't read it.
    """
    file = RangeFile(path)
    if file.size > most:
        raise CorruptCheckpoint(path, f"its {file.size} bytes are more than any has")
    return file.read(0, file.size)


def lies_in(folder: epath.Path, name: str) -> bool:
    """Return whether `name`, or `sub/name`, is a file's in this very folder.

    A link may lead elsewhere only as the Hugging Face cache has it: its snapshots
    link into `blobs` of the same cache entry.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(map(_is_plain, parts)):
        return False
    if is_remote(folder):
        return True
    here = Path(folder).resolve()
    # A folder of a snapshot is one as well, such as `original` of Meta's.
    entry = next((p.parent for p in here.parents[:2] if p.name == "snapshots"), None)
    blobs = entry and entry / "blobs"
    return (here / name).resolve().parent in ((here / name).parent, blobs)


@contextlib.contextmanager
def reading(path: object, leaf: str = "") -> Iterator[None]:
    """Name the file (and leaf) that the system could not read."""
    try:
        yield
    except (PermissionError, UserError):
        raise
    except OSError as error:
        of = f" while reading {leaf}" if leaf else ""
        raise CorruptCheckpoint(path, f"{error.strerror or error}{of}") from error


def _open_regular(key: tuple[str, Stamp]) -> int:
    path, expected = key
    stamp(path)  # opening a device may do something
    # A FIFO that has taken the file's place since must not keep us waiting.
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if _stamp(path, os.fstat(number)) != expected:
            raise _changed(path)
    except BaseException:
        os.close(number)
        raise
    return number


_OPEN = Descriptors(MOST_OPEN, _open_regular)


def _stamp(path: str | os.PathLike, found: os.stat_result) -> Stamp:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "something else")
        raise UserError(f"{os.fspath(path)} is {what}, not a file.")
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


def _changed(path: str | os.PathLike) -> UserError:
    return UserError(
        f"{os.fspath(path)} was changed while it was being read; leave it alone, and "
        "start again."
    )


def _is_plain(name: str) -> bool:
    return (
        bool(name)
        and name not in (".", "..")
        and name.isprintable()
        and not set(name) & set("/\\")
    )
