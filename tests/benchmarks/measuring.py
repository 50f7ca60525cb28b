"""What programs cost: seconds, memory and bytes read, of them and all they start.

Linux only: everything is read from /proc.
"""

import contextlib
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_INTERVAL = 0.02  # seconds between two looks at the memory
_LOOKS_PER_SEARCH = 10  # for new processes, which takes longer


class Command(NamedTuple):
    """A program to start: its arguments, and what to add to the environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = {}


class Usage(NamedTuple):
    """What a program and its children took.

    Attributes:
      wall: seconds from its start to its end.
      cpu: seconds of all its threads, in user and system mode.
      anonymous: most bytes of memory at a time, without mapped files.
      resident: most bytes of memory at a time, mapped files included.
      read: bytes that it read, from the page cache or not (mapped files excluded).
      from_disk: bytes that were fetched from the disk.
      load: the machine's load average (1 min) when it started.
      status: its exit status; -9 if it was killed.
      output: what it printed.
    """

    wall: float
    cpu: float
    anonymous: int
    resident: int
    read: int
    from_disk: int
    load: float
    status: int
    output: str


def measure(
    commands: Sequence[Command],
    logs: Path,
    *,
    limit: float = 3600.0,
    interval: float = _INTERVAL,
) -> list[Usage]:
    """Run programs at the same time, wait for them all, and say what each one took.

    Args:
      commands: at least one.
      logs: folder for what they print.
      limit: seconds after which SIGKILL ends what still runs.
      interval: seconds between looks at their memory. On two cores, looking every few
        milliseconds takes a tenth of the machine from what is timed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    load, start = os.getloadavg()[0], time.perf_counter()
    started: list[_Started] = []
    try:
        for number, command in enumerate(commands):
            started.append(_Started(command, logs / f"{number}.log"))
        with _sampling(started, start + limit, interval):
            return [one.wait(load) for one in started]
    finally:
        for one in started:
            one.kill()


class _Started:
    """A program that runs in a session of its own, by which its children are known."""

    def __init__(self, command: Command, log: Path):
        self._log = log
        self._begin = time.perf_counter()
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command.arguments,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.tree = {self.pid}
        self.anonymous = self.resident = 0

    def look(self) -> None:
        """Take note of the memory in use now."""
        found = [_memory(pid) for pid in self.tree]
        self.anonymous = max(self.anonymous, sum(anon for anon, _ in found))
        self.resident = max(self.resident, sum(rss for _, rss in found))

    def wait(self, load: float) -> Usage:
        """Wait for its end and return what it took."""
        # The counters of a process are gone once it is waited for in earnest.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        wall = time.perf_counter() - self._begin
        read = _numbers(Path(f"/proc/{self.pid}/io"))
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Usage(
            wall=wall,
            cpu=usage.ru_utime + usage.ru_stime,
            anonymous=self.anonymous,
            resident=self.resident,
            read=read["rchar"],
            from_disk=read["read_bytes"],
            load=load,
            status=self._process.returncode,
            output=self._log.read_text(errors="replace"),
        )

    def kill(self) -> None:
        """End it and its children; nothing happens to one that has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def _sampling(
    started: Sequence[_Started], deadline: float, interval: float
) -> Iterator[None]:
    done = threading.Event()

    def sample() -> None:
        looks = 0
        while not done.wait(interval):
            if looks % _LOOKS_PER_SEARCH == 0:
                sessions = _sessions()
                for one in started:
                    one.tree = {one.pid} | sessions.get(one.pid, set())
            looks += 1
            for one in started:
                one.look()
                if time.perf_counter() > deadline:
                    one.kill()

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _sessions() -> dict[int, set[int]]:
    """Return {session: its processes}."""
    found: dict[int, set[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name, in brackets, may hold anything; the session is sixth.
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2]
                found.setdefault(int(fields.split()[3]), set()).add(int(entry))
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Return a process's anonymous and resident bytes; nothing if it has ended."""
    try:
        found = _numbers(Path(f"/proc/{pid}/status"))
    except OSError:
        return 0, 0
    return found.get("RssAnon", 0) * 1024, found.get("VmRSS", 0) * 1024


def _numbers(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        if number.isdigit():
            found[key] = int(number)
    return found


def machine() -> dict[str, str | int | float]:
    """Return what timings depend on, in words and numbers."""
    cpu = Path("/proc/cpuinfo").read_text()
    names = [x.partition(":")[2].strip() for x in cpu.splitlines() if "model name" in x]
    memory = _numbers(Path("/proc/meminfo"))["MemTotal"]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
