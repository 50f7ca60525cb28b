"""What a long run tells its owner: progress with the time left, events, cost.

Clocks, terminals and processes are read here and nowhere below.
"""

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from merging.runtime import storage
from merging.runtime.text import duration


class EventLog:
    """JSON lines in a file, one event each, safe to append to from many processes.

    In an object store, of one process; there the lines are written from time to time.

    Args:
      path: the file, made with its folders; None writes nothing, as processes other
        than the first of a group want it.
    """

    def __init__(self, path: str | storage.Folder | None):
        self._file = None if path is None else storage.Growing(storage.place(path))

    def write(self, event: str, **fields: Any) -> None:
        """Append one event: its UTC time, its name, and JSON-able fields."""
        if self._file is None:
            return
        self._file.path.parent.mkdir(parents=True, exist_ok=True)
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        line = json.dumps(record | {"event": event} | fields) + "\n"
        with open(self._file.path, "a+b", buffering=0) as file:
            # Looking at the last byte and writing must not be parted by a neighbour.
            # Some network file systems have no locks; an append is one call there, too.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if end := file.seek(0, 2):
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    line = "\n" + line  # a process was killed in the middle of its line
            file.write(line.encode())
        self._file.settle()

    def settle(self) -> None:
        """Have an object store take all that was written."""
        if self._file is not None:
            self._file.settle(now=True)


class Progress:
    """Work done and time left of a run whose steps have known relative costs.

    On a terminal it is one live line; elsewhere it is a plain line at most every few
    seconds, so that a log file stays short. The time left is the remaining weight at
    the rate of this process so far, so weights in any unit will do, seconds being one.

        with Progress(total=120.0, label="sweep") as progress:
            progress.skip(20.0)                    # done by an earlier run
            for step in steps:
                progress.note(step.name)
                step.run()
                progress.advance(step.weight)

    Args:
      total: the sum of all weights.
      label: what runs, for the line's start.
      log: where to record each step as an event.
      interval: the least number of seconds between two plain lines.
      stream: where the line goes; standard error, so that results can be piped.
      clock: seconds, for tests.
      check: called after each step; what it raises ends the run.
    """

    def __init__(
        self,
        total: float,
        label: str,
        *,
        log: EventLog | None = None,
        interval: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[], None] | None = None,
    ):
        self._check = check
        self.total, self.label, self.done = float(total), label, 0.0
        self._skipped = 0.0
        self._note = ""
        self._log = log or EventLog(None)
        self._interval, self._clock = interval, clock
        self._stream = stream or sys.stderr
        self._start = self._stepped = clock()
        self._printed = float("-inf")
        self._live = _live_line(self, self._stream) if self._stream.isatty() else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._log.settle()
        self.tick(now=True)
        if self._live:
            self._live.stop()

    def advance(self, weight: float = 1.0, note: str = "") -> None:
        """Count finished work, and say what it was."""
        self.done += weight
        self._stepped = self._clock()
        if note:
            self._note = note
        self._log.write(
            "advance",
            label=self.label,
            note=note,
            weight=weight,
            done=self.done,
            total=self.total,
            elapsed=round(self.elapsed, 3),
        )
        self.tick()
        if self._check is not None:
            self._check()

    def skip(self, weight: float) -> None:
        """Count work that an earlier run finished; it says nothing about the rate."""
        self.done += weight
        self._skipped += weight
        self.tick()

    def remains(self, weight: float) -> None:
        """Say how much is left, where the total was a guess."""
        self.total = self.done + weight
        self.tick()

    def note(self, text: str) -> None:
        """Say what is being done now."""
        self._note = text
        self.tick()

    def tick(self, *, now: bool = False) -> None:
        """Show the present state; cheap to call often while waiting for workers."""
        if self._live:
            self._live.update(0, completed=self.done, total=self.total, refresh=True)
        elif now or self._clock() - self._printed >= self._interval:
            self._printed = self._clock()
            print(self, file=self._stream, flush=True)

    def message(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    @property
    def elapsed(self) -> float:
        """Seconds since this process began."""
        return self._clock() - self._start

    @property
    def time_left(self) -> float | None:
        """Seconds left; None until this run has done a hundredth of its own work."""
        worked = self.done - self._skipped
        if self.done >= self.total:
            return 0.0
        # The first steps start processes and compile; their rate says little.
        if worked < (self.total - self._skipped) / 100 or self._stepped <= self._start:
            return None
        # Measured at the last finished step, then counted down by the clock.
        needed = (self.total - self.done) * (self._stepped - self._start) / worked
        return max(0.0, needed - (self._clock() - self._stepped))

    def __str__(self) -> str:
        """Return the state in words: share, elapsed, left, and the current step."""
        share = self.done / self.total if self.total else 1.0
        left = self.time_left
        left_text = "time left unknown" if left is None else f"{duration(left)} left"
        text = f"{self.label} {min(share, 1):4.0%}, {duration(self.elapsed)} so far"
        return ", ".join(filter(None, [text, left_text, self._note]))


class Timer:
    """Wall time of a block: `with Timer() as timer: ...; timer.seconds`."""

    seconds = 0.0

    def __enter__(self) -> "Timer":
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.seconds = time.perf_counter() - self._start


def _live_line(progress: Progress, stream: TextIO) -> Any:
    """Return rich's bar, and beside it the state in words; it counts down by itself."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Live
    from rich.table import Column

    # Formatted anew at every refresh, so that the time left goes on while a step runs.
    column = Column(no_wrap=True, overflow="ellipsis")
    words = TextColumn("{task.fields[state]}", markup=False, table_column=column)
    live = Live(
        BarColumn(24), words, console=Console(file=stream), refresh_per_second=2
    )
    live.add_task("", total=progress.total, state=progress)
    return live
