"""One process at a time: a lock that ends with its holder, however that ends.

In an object store there are no locks. An object that only one can make stands for one,
and a holder that is killed leaves it: on the same machine that is seen, and of another
machine's it is said what to remove.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from merging.runtime import preemption
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder

LOOK = 0.5  # seconds for one who looks at a lock to let go of it
# In object stores: those of this process, and one of its threads at a time.
_ours: set[str] = set()
_taking = threading.Lock()
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def held(
    path: Folder, what: str, refusal: Callable[[str], UserError], remove: bool = False
) -> Iterator[None]:
    """Hold the lock at a path, or be refused.

    The lock is the file system's (flock), which gives it back when this process ends,
    however it ends; the file only says who has it. Where a file system has no locks,
    the process that the file names is looked for: on this machine it can be found, and
    of another machine nothing is known, which is said.

    Args:
      path: of the lock's file; its folder is there.
      what: is locked, for a warning.
      refusal: makes the error, given who has the lock: number, host, time and command.
      remove: take the file away at the end.

    Raises:
      UserError: the refusal.
    """
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:200],
    }
    if isinstance(path, ObjectPath):
        mine = _take(path, json.dumps(record).encode(), refusal)
        with preemption.released(lambda: _let_go(path, mine)):
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
        read = json.loads(path.read_text())
        record = {name: read[name] for name in ("host", "pid", "since", "command")}
        return record | {"alive": _alive(path, record)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take(path: ObjectPath, record: bytes, refusal: Callable[[str], UserError]) -> str:
    """Make a lock's object, or take it over from a process that this machine lost.

    Returns:
      The object's generation.
    """
    with _taking:
        if str(path) in _ours:
            raise refusal(_named(holder(path)))
        while not path.create(record):
            try:
                # Before what it says: who has it by then, if another, keeps it.
                before = path.generation()
            except FileNotFoundError:
                continue
            found = holder(path)
            if found is None or found["alive"] is False:
                path.unlink(missing_ok=True, generation=before)
                continue
            error = refusal(_named(found))
            if found and found["alive"] is None:
                error = UserError(
                    f"{error} If it no longer runs there, it was killed and has left "
                    f"its lock; remove that: gcloud storage rm {path}"
                )
            raise error
        _ours.add(str(path))
        return path.generation()


def _let_go(path: ObjectPath, mine: str) -> None:
    path.unlink(missing_ok=True, generation=mine)
    _ours.discard(str(path))


def _opened(path: Path, what: str, refusal: Callable[[str], UserError]) -> BinaryIO:
    """Return the lock's file, locked."""
    while True:
        file = open(path, "a+b", buffering=0)
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
