"""Paths in an object store, with what pathlib's have and a store can hold to.

A store knows whole objects only: one appears at once or not at all, and there is no
renaming, appending or locking; folders are beginnings of names. So what has several
objects is complete when the last of them is there, which whoever writes it writes last.

Through gcsfs, which tries six times, over half a minute, whatever a store refuses for a
while (429, 5xx, a connection that breaks or stalls). What is still refused then, or was
not granted, is an `Unreachable`: never taken for an object that is not there.
"""

import contextlib
import errno
import fnmatch
import functools
import importlib.util
import logging
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath
from etils.epath.gpath import PosixGPath
from etils.epath.stat_utils import StatResult

from merging.runtime.errors import Unreachable, UserError

# What is written to. More are read, where epath has something that reads them.
SCHEME = "gs://"
STALL = 60  # seconds without a byte, after which a request is made again
MOST_COMPOSED = 32  # objects in one call; the store's limit
_THREADS = 16
_FINAL = ("Forbidden", "Bad Request", "PERMISSION_DENIED", "UNAUTHENTICATED")
_CLIENTS = ("gcsfs", "aiohttp", "google", "requests", "fsspec")
_STATUSES = (
    "Forbidden",
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "CANCELLED", "UNKNOWN"),
)

if importlib.util.find_spec("gcsfs"):
    # Orbax, too, goes through epath, which would import TensorFlow to ask a store.
    os.environ.setdefault("EPATH_USE_TF", "false")


class ObjectPath(PosixGPath):
    """A name in an object store: an object's, or a folder's, which is its beginning.

    Raises:
      Unreachable: by every method that asks the store, if that does not answer.
    """

    def exists(self) -> bool:
        """Return whether there is an object of this name, or one below it."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Return whether there are objects below."""
        return (self._info() or {}).get("type") == "directory"

    def is_file(self) -> bool:
        """Return whether there is an object."""
        return (self._info() or {}).get("type") == "file"

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what lies directly below; nothing where there is nothing."""
        with _asking(self) as store:
            try:
                names = store.ls(str(self), detail=False)
            except FileNotFoundError:
                return
        for name in names:
            if name.rstrip("/") != _key(self):
                yield self / posixpath.basename(name.rstrip("/"))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield what lies directly below under a name that fits."""
        if "/" in pattern:
            raise NotImplementedError(f"a pattern of one name, not {pattern!r}")
        return (p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern))

    def find(self) -> dict["ObjectPath", int]:
        """Return {path: bytes} of all objects below."""
        with _asking(self) as store:
            found = store.find(str(self), detail=True)
        skip = len(_key(self)) + 1
        return {self / n[skip:]: int(of["size"]) for n, of in found.items() if n[skip:]}

    def read_bytes(self) -> bytes:
        """Return an object's content.

        Raises:
          FileNotFoundError: there is none.
        """
        with _asking(self) as store:
            return store.cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        """Return an object's content as UTF-8."""
        return self.read_bytes().decode()

    def read_range(self, at: int, length: int) -> bytes:
        """Return bytes from position `at`, fewer at the object's end."""
        with _asking(self) as store:
            return store.cat_file(str(self), start=at, end=at + length)

    def write_bytes(self, data: bytes) -> int:
        """Put an object in the place of whatever has this name, whole."""
        with _asking(self) as store:
            store.pipe_file(str(self), bytes(data))
        return len(data)

    def create(self, data: bytes) -> bool:
        """Put an object if there is none of this name, and say whether it is this one.

        Of several that try, one does.
        """
        with _asking(self) as store:
            try:
                store.pipe_file(str(self), data, mode="create")
            except FileExistsError:
                # Perhaps this very call's first try, whose answer was lost.
                return store.cat_file(str(self)) == data
        return True

    def replace(self, data: bytes, generation: str) -> str | None:
        """Put an object in the place of the one of a generation.

        Returns:
          Its own generation; None if another one has the name by now, or none.
        """
        bucket, _, name = _key(self).partition("/")
        how = {"uploadType": "media", "name": name, "ifGenerationMatch": generation}
        with _asking(self) as store:
            url = store.base.replace("/storage/v1/", f"/upload/storage/v1/b/{bucket}/o")
            try:
                made = store.call("POST", url, data=data, json_out=True, **how)
            except (FileExistsError, FileNotFoundError):
                return None
        return str(made["generation"])

    def compose(self, parts: Sequence["ObjectPath"]) -> None:
        """Make an object of others end to end, in their order, without moving them.

        At most `MOST_COMPOSED`; they stay.
        """
        with _asking(self) as store:
            store.merge(str(self), [str(part) for part in parts])

    def fetch(self, local: os.PathLike) -> None:
        """Copy an object to a file of this machine."""
        with _asking(self) as store:
            store.get_file(str(self), os.fspath(local))

    def send(self, local: os.PathLike) -> None:
        """Copy a file of this machine to an object, in parts, visible when whole."""
        with _asking(self) as store:
            store.put_file(os.fspath(local), str(self))

    def generation(self) -> str:
        """Return what tells an object from all others that ever have its name.

        Raises:
          FileNotFoundError: there is none.
        """
        found = self._info()
        if found is None:
            raise FileNotFoundError(str(self))
        return str(found["generation"])

    def unlink(self, missing_ok: bool = False, generation: str | None = None) -> None:
        """Remove an object; with a generation, that one only."""
        with _asking(self) as store, contextlib.ExitStack() as ignored:
            if missing_ok:
                ignored.enter_context(contextlib.suppress(FileNotFoundError))
            if generation is None:
                store.rm_file(str(self))
                return
            ignored.enter_context(contextlib.suppress(FileExistsError))
            bucket, _, name = _key(self).partition("/")
            how = {"ifGenerationMatch": generation}
            store.call("DELETE", "b/{}/o/{}", bucket, name, **how)

    def rmtree(self, missing_ok: bool = False) -> None:
        """Remove all objects below, several at a time.

        First those that say that the others are there.
        """
        found = list(self.find())
        if not found and not missing_ok:
            raise FileNotFoundError(str(self))
        remove_all([path for path in found if path.parent == self])
        remove_all([path for path in found if path.parent != self])

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: a folder is there as soon as an object in it is."""

    def stat(self) -> StatResult:
        """Return an object's bytes (`length`) and when it was made (`mtime`)."""
        found = self._info()
        if found is None:
            raise FileNotFoundError(str(self))
        made = found.get("mtime")
        return StatResult(
            is_directory=found["type"] == "directory",
            length=int(found["size"]),
            mtime=int(made.timestamp()) if made else 0,
        )

    def _info(self) -> Mapping[str, Any] | None:
        with _asking(self) as store:
            try:
                return store.info(str(self))
            except FileNotFoundError:
                return None


def connect(uri: str, name: str) -> ObjectPath:
    """Return a path in an object store.

    Args:
      uri: with its scheme.
      name: of the setting that it is, for the message.

    Raises:
      UserError: what talks to the store is not installed, or no bucket is named.
    """
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(f"{name} {uri}: gs:// needs gcsfs: pip install 'merging[gcs]'.")
    if not uri.removeprefix(SCHEME).strip("/"):
        raise UserError(f"{name} {uri}: name a bucket, and a folder in it.")
    _configure()
    return ObjectPath(uri)


def remove_all(paths: Sequence[ObjectPath]) -> None:
    """Remove objects, several at a time; those that are gone already are no matter."""
    with ThreadPoolExecutor(_THREADS, "remove") as threads:
        list(threads.map(lambda path: path.unlink(missing_ok=True), paths))


def read_all(paths: Sequence[ObjectPath]) -> list[bytes]:
    """Return the contents of objects, several of which are read at a time."""
    with ThreadPoolExecutor(_THREADS, "read") as threads:
        return list(threads.map(ObjectPath.read_bytes, paths))


@contextlib.contextmanager
def _asking(path: ObjectPath) -> Iterator[Any]:
    """Give the store that a path is in, and name it should it not answer."""
    try:
        yield epath.backend.fsspec_backend.fs(SCHEME)
    except FileNotFoundError:
        number = errno.ENOENT
        raise FileNotFoundError(number, "there is no such object", str(path)) from None
    except (FileExistsError, IsADirectoryError, UserError):
        raise
    except Exception as error:
        raise unreachable(path, error) from error


def unreachable(path: object, error: BaseException) -> Unreachable:
    """Return what an error of the store's client says, or of TensorStore."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    reason = ": ".join(filter(None, [type(error).__name__, first]))
    return Unreachable(str(path), reason, _is_passing(error))


def is_outage(error: BaseException) -> bool:
    """Return whether an error says that a store did not answer, or refused.

    And not that something isn't there, or is not what it should be. TensorStore's are
    told by their words, the client's by where they come from.
    """
    ours = type(error).__module__.split(".")[0] in _CLIENTS
    return ours or str(error).startswith(_STATUSES)


def _is_passing(error: BaseException) -> bool:
    """Return whether an error is of the network or the store, and not of what we are.

    The client's own words; TensorStore begins its with the status of gRPC.
    """
    code = getattr(error, "code", getattr(error, "status", None))
    if str(code).isdigit():
        return int(code) in (408, 429) or int(code) >= 500
    if type(error).__module__.split(".")[0] == "google":  # credentials
        return False
    return not str(error).startswith(_FINAL)


@functools.cache
def _configure() -> None:
    """Say how the store is asked, also by Orbax, which goes there through epath."""
    import aiohttp
    import fsspec

    # It logs with a traceback what it raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

    patience = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
    # What other processes write is to be seen.
    settings = {"use_listings_cache": False, "session_kwargs": {"timeout": patience}}
    fsspec.config.conf["gcs"] = settings | fsspec.config.conf.get("gcs", {})


def _key(path: ObjectPath) -> str:
    """Return a path as the store has it, without its scheme."""
    return str(path).removeprefix(SCHEME).rstrip("/")
