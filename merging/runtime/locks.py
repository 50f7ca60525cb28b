"""One process at a time: a lock that ends with its holder, however that ends.

In an object store there are no locks. An object that only one can make stands for one.
Its holder writes it anew every `RENEW` seconds; one that is killed leaves it, and who
comes next takes it over: at once on the same machine, and on another after it has not
changed for `EXPIRES` seconds by its own clock. A holder that was thought dead finds
another's object in its place, and stops.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from merging.runtime import preemption
from merging.runtime.errors import Unreachable, UserError
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder

LOOK = 0.5  # seconds for one who looks at a lock to let go of it
# In object stores: seconds between two signs of life, and without one to be dead.
RENEW, EXPIRES = 20.0, 90.0
# In object stores: those of this process, and one of its threads at a time.
_ours: set[str] = set()
_taking = threading.Lock()
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
# What a record says; it begins with the first of them.
_SAID = ("host", "pid", "since", "command")
_BEGINS = b'{"host": "'
_LARGEST = 4096


@contextlib.contextmanager
def held(
    path: Folder,
    what: str,
    refusal: Callable[[str], UserError],
    remove: bool = False,
    patient: bool = True,
) -> Iterator[None]:
    """Hold the lock at a path, or be refused.

    The lock is the file system's (flock), which gives it back when this process ends,
    however it ends; the file only says who has it. Where a file system has no locks,
    the process that the file names is looked for: on this machine it can be found, and
    of another machine nothing is known, which is said.

    A file that no lock of ours has made is left as it is.

    Args:
      path: of the lock's file; its folder is there.
      what: is locked, for a warning.
      refusal: makes the error, given who has the lock: number, host, time and command.
      remove: take the file away at the end.
      patient: in a store, find out whether another machine's process still works.

    Raises:
      UserError: the refusal; or something else has the lock's name.
    """
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:200],
    }
    if isinstance(path, ObjectPath):
        lease = _Lease(path, what, record)
        lease.take(refusal, patient)
        with preemption.released(lease.end):
            yield
        return
    with _opened(path, what, refusal) as file:
        with contextlib.suppress(OSError):  # a full disk: it is locked all the same
            file.truncate(0)
            file.write(json.dumps(record).encode())
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)
            else:
                file.truncate(0)


def holder(path: Folder) -> dict[str, Any] | None:
    """Return who has a lock, or had it when it was killed; None: nobody.

    Returns:
      `host`, `pid`, `since`, `command`, and `alive`: None where that can't be known.
    """
    try:
        record = _record(_content(path))
        return None if record is None else record | {"alive": _alive(path, record)}
    except (OSError, ValueError, TypeError):
        return None


def _content(path: Folder) -> bytes:
    """Return what a lock's file says, from its beginning.

    Raises:
      OSError: there is none, or no regular file has its name.
    """
    if isinstance(path, ObjectPath):
        return path.read_bytes()
    with open(_open(path, os.O_RDONLY), "rb", buffering=0) as file:
        return os.pread(file.fileno(), _LARGEST, 0)


def _record(content: bytes) -> dict[str, Any] | None:
    """Return who a lock's file names; None if it is none, or was cut."""
    try:
        read = json.loads(content)
        return {name: read[name] for name in _SAID}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_ours(content: bytes) -> bool:
    """Return whether a lock's file may be written to: empty, a record, or a cut one."""
    if not content.strip(b"\0") or _record(content) is not None:
        return True
    try:
        json.loads(content)
    except ValueError:
        return content.startswith(_BEGINS) and b"\n" not in content
    except RecursionError:
        pass
    return False


def _not_ours(path: Folder, what: str) -> UserError:
    return UserError(
        f"{path} has the name of a lock, and {what}. It was left as it is: move it "
        "away, or choose another place."
    )


class _Lease:
    """A lock in a store: an object that is written anew for as long as it is held.

    Args:
      path: of the object.
      what: is locked.
      record: who holds it.
    """

    def __init__(self, path: ObjectPath, what: str, record: Mapping[str, Any]):
        self._path, self._what, self._record = path, what, record
        self._over, self._mine = threading.Event(), ""
        self._thread = threading.Thread(target=self._live, daemon=True)

    def take(self, refusal: Callable[[str], UserError], patient: bool) -> None:
        """Make the object, or take it over from a process that is gone."""
        name = str(self._path)
        with _taking:
            if name in _ours:
                raise refusal(_named(holder(self._path)))
            _ours.add(name)
        try:
            self._make(refusal, patient)
        except BaseException:
            _ours.discard(name)
            raise
        self._thread.start()

    def _make(self, refusal: Callable[[str], UserError], patient: bool) -> None:
        while not self._path.create(self._content()):
            try:
                # Before what it says: who has it by then, if another, keeps it.
                before = self._path.generation()
                content = self._path.read_bytes()
            except FileNotFoundError:
                continue
            if not _is_ours(content):
                raise _not_ours(self._path, "is no lock")
            found = holder(self._path)
            alive = found is not None and _runs(found)
            if alive is None and patient:
                alive = self._is_renewed(before, found)
            if alive is not False:
                raise refusal(_named(holder(self._path) or found))
            self._path.unlink(missing_ok=True, generation=before)
        self._mine = self._path.generation()

    def end(self) -> None:
        """Take the object away, if it is still this process's."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join(LOOK)
        self._remove()
        _ours.discard(str(self._path))

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True, generation=self._mine)

    def _content(self) -> bytes:
        # Of every time another: no two objects of a holder are the same.
        return json.dumps({**self._record, "renewed": time.time()}).encode()

    def _is_renewed(self, before: str, found: Mapping[str, Any]) -> bool:
        """Return whether another machine's lock changes in due time; not if it goes."""
        print(
            f"{_named(found)} has the lock of {self._what}: waiting up to "
            f"{EXPIRES:.0f} s to see whether it is alive.",
            file=sys.stderr,
        )
        until = time.monotonic() + EXPIRES
        while time.monotonic() < until:
            preemption.raise_if_asked()
            time.sleep(min(EXPIRES / 30, 2))
            try:
                now = self._path.generation()
            except FileNotFoundError:
                return False
            if now != before:
                return True
        return False

    def _live(self) -> None:
        while not self._over.wait(RENEW):
            try:
                renewed = self._path.replace(self._content(), self._mine)
                if renewed is None and self._is_own():  # an answer was lost
                    renewed = self._path.generation()
            except (OSError, Unreachable):
                continue  # nobody else can reach it either
            if renewed is None:
                return self._lost()
            self._mine = renewed
            if self._over.is_set():  # it ended while the store took its time
                self._remove()

    def _is_own(self) -> bool:
        try:
            read = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return False
        return all(read.get(name) == value for name, value in self._record.items())

    def _lost(self) -> None:
        if self._over.is_set():
            return
        preemption.ask(
            f"the lock of {self._what} is no longer this process's, which was silent "
            f"for more than {EXPIRES:.0f} s: {_named(holder(self._path))} has it"
        )


def _opened(path: Path, what: str, refusal: Callable[[str], UserError]) -> BinaryIO:
    """Return the lock's file, locked."""
    while True:
        file = open(_made(path), "r+b", buffering=0)
        if not _is_ours(os.pread(file.fileno(), _LARGEST, 0)):
            file.close()
            raise _not_ours(path, "is no lock")
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            raise refusal(_named(holder(path))) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _look_for(path, what, refusal)
            return file
        # The last holder may have taken the file away after it was opened here.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _made(path: Path) -> int:
    """Return a descriptor of the lock's file, made if there is none.

    Raises:
      UserError: something else has its name, or it can't be made.
    """
    try:
        return _open(path, os.O_RDWR | os.O_CREAT)
    except IsADirectoryError:
        raise _not_ours(path, "is a folder") from None
    except OSError as error:
        if path.is_symlink():
            raise _not_ours(path, "is a link") from None
        raise UserError(
            f"cannot write {path}: {error.strerror}; change that or choose another "
            "place."
        ) from error


def _open(path: Path, how: int) -> int:
    """Open a regular file, through no link; a FIFO would never answer.

    Raises:
      OSError: it is none.
    """
    number = os.open(
        path, how | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode=0o666
    )
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no file", os.fspath(path))
    return number


def _lock(file: BinaryIO) -> None:
    """Lock a file, which one who looks whether it is locked does for a moment, too.

    Raises:
      BlockingIOError: another process holds the lock.
      OSError: the file system has no locks.
    """
    until = time.monotonic() + LOOK
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK / 10)


def _alive(path: Folder, record: Mapping[str, Any]) -> bool | None:
    """Return whether a lock's holder still works; None where that can't be known."""
    if isinstance(path, ObjectPath):
        return str(path) in _ours or _runs(record)
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return _runs(record)
    return False


def _runs(record: Mapping[str, Any]) -> bool | None:
    """Return whether a process runs; None if it is another machine's."""
    if record["host"] != socket.gethostname():
        return None
    # A container that is started again gives the same numbers again.
    if int(record["pid"]) == os.getpid():
        return False
    return Path(f"/proc/{int(record['pid'])}").exists()


def _look_for(path: Path, what: str, refusal: Callable[[str], UserError]) -> None:
    found = holder(path)
    if found is None:
        return
    if found["alive"]:
        raise refusal(_named(found))
    if found["alive"] is None:
        print(
            f"warning: the file system of {what} has no locks; see to it that the "
            f"process {found['pid']} on {found['host']} no longer works there.",
            file=sys.stderr,
        )


def _named(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "another process"
    who = f"process {found['pid']} on {found['host']}, since {found['since']}"
    return f"{who} ({found['command']}),"
