"""Who works on what, among any number of processes that share a folder.

A claim is a file `NAME.GENERATION`, created exclusively, that says who holds it and
changes with every heartbeat of its holder. Nobody deletes another's claim. A claim
whose holder is gone is succeeded: whoever creates the next generation has it, and of
several who try one succeeds. A holder that was only asleep finds its successor there.

No two clocks are compared. A holder on this machine is gone when its process is; one
elsewhere when its claim has not changed for `EXPIRES` seconds of the watcher's clock.
Needs what NFS, Lustre and local disks give, exclusive creation and atomic renames;
object stores mounted as folders mostly don't.
"""

import contextlib
import functools
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

BEAT = 10.0  # seconds between heartbeats
EXPIRES = 90.0  # seconds without one after which a holder counts as gone


class Holder(NamedTuple):
    """What a claim says of whoever holds it, or held it last.

    Attributes:
      host, pid: the process.
      machine: the boot and the process namespace in which the pid means something.
      started: the process's start, in the kernel's ticks; a pid alone is used again.
      state: "running", "stopped" (to be continued) or "failed".
      note: what it is doing, or the error's first line.
      share: of the work, 0 to 1.
      beats: heartbeats so far.
    """

    host: str
    pid: int
    machine: str
    started: int
    state: str = "running"
    note: str = ""
    share: float = 0.0
    beats: int = 0

    def gone(self) -> bool:
        """Return whether it is certain that nobody holds the claim any more."""
        if self.state != "running":
            return True
        return self.machine == _machine() and _started(self.pid) != self.started


class Claims:
    """The claims in one folder, seen from this process.

    Args:
      folder: on storage that all share; made when needed.
      beat: seconds between the heartbeats of claims taken here.
      expires: seconds without one after which another's claim is taken over.
    """

    def __init__(self, folder: Path, beat: float = BEAT, expires: float = EXPIRES):
        self.folder, self.beat, self.expires = Path(folder), beat, expires
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def take(self, name: str) -> "Claim | None":
        """Return the claim, now held by this process, or None: another has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self._newest(name)
        if newest >= 0 and not self._over(self._path(name, newest)):
            return None
        path = self._path(name, newest + 1)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        os.close(file)
        return Claim(self, name, newest + 1)

    def holder(self, name: str) -> tuple[Holder, float] | None:
        """Return who has or had a claim, and when it last changed; None: nobody.

        The time is the storage's, in seconds since 1970.
        """
        path = self._path(name, self._newest(name))
        try:
            return _parsed(path.read_bytes()), path.stat().st_mtime
        except (OSError, ValueError, TypeError):
            return None

    def _over(self, path: Path) -> bool:
        """Return whether a claim is over: given up, or its holder is gone."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return False  # its work has just been finished
        with contextlib.suppress(ValueError, TypeError):
            if _parsed(content).gone():
                return True
        before, since = self._seen.get(path, (None, 0.0))
        now = time.monotonic()
        if content != before:
            self._seen[path] = (content, now)
            return False
        return now - since >= self.expires

    def _newest(self, name: str) -> int:
        """Return a claim's last generation, or -1."""
        found = [-1]
        for entry in self.folder.glob(f"{_escaped(name)}.*"):
            number = entry.name[len(name) + 1 :]
            if number.isdigit():
                found.append(int(number))
        return max(found)

    def _path(self, name: str, generation: int) -> Path:
        return self.folder / f"{name}.{generation}"


class Claim:
    """A claim that this process holds; it beats in the background until it ends.

    Attributes:
      generation: how many had it before.
    """

    def __init__(self, claims: Claims, name: str, generation: int):
        self.name, self.generation = name, generation
        self._claims = claims
        self._path = claims._path(name, generation)
        self._holder = Holder(
            socket.gethostname(), os.getpid(), _machine(), _started(os.getpid())
        )
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._write()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """Return whether the claim is still this process's."""
        path = self._claims._path(self.name, self.generation + 1)
        return self._path.exists() and not path.exists()

    def tell(self, share: float, note: str) -> None:
        """Say how far the work is; told with the next heartbeat."""
        self._holder = self._holder._replace(share=round(share, 3), note=note)

    def give_up(self, state: str, note: str = "") -> None:
        """End the claim with its work unfinished: "stopped" or "failed".

        The next to ask takes it at once; until then it says why.
        """
        self._end()
        self._holder = self._holder._replace(state=state, note=note)
        self._write()

    def finish(self) -> None:
        """End the claim after its work was published, and tidy up behind it."""
        self._end()
        for generation in range(self.generation + 1):
            self._claims._path(self.name, generation).unlink(missing_ok=True)

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._claims.beat):
            # Shared storage that hiccups is no reason to stop; a successor is.
            with contextlib.suppress(OSError):
                if not self.held():
                    return
                self._holder = self._holder._replace(beats=self._holder.beats + 1)
                self._write()

    def _write(self) -> None:
        """Put the record in place, unless the file is gone."""
        text = json.dumps(self._holder._asdict()).encode()
        with self._lock, contextlib.suppress(FileNotFoundError):
            # Opened anew for each beat: NFS shows others what was closed.
            with open(self._path, "r+b") as file:
                file.write(text)
                file.truncate()


def _parsed(content: bytes) -> Holder:
    """Return a claim's record.

    Raises:
      ValueError, TypeError: it is half written, or not one.
    """
    return Holder(**json.loads(content))


def _escaped(name: str) -> str:
    """Return a name that a glob takes literally."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@functools.cache
def _machine() -> str:
    """Return what tells where pids can be compared: the boot and its namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"  # then heartbeats decide


def _started(pid: int) -> int:
    """Return a process's start in ticks since boot; -1 if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    # The name, in parentheses, may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])
