"""How a run ends before its time: asked to by the system, or by another process's end.

SIGTERM is how TPU maintenance, Slurm and Kubernetes announce that a machine is taken
away. It sets a flag; long loops look at it between two pieces of work, keep what they
have and raise `Preempted`. Several processes hear it from whichever got the signal. And
when one of them fails, the others, which may wait for it in a collective without end,
are told its error and end, too.

All ends are safe at any moment, for what is on disk is always valid: this is about
losing little work, and about not hanging.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from merging.runtime.errors import PREEMPTED, Preempted

POLL = 1.0  # seconds between two looks at what the other processes say
LINGER = 5.0  # seconds to end by oneself after another process has
_ASKED, _ENDED = "merging/asked", "merging/ended"
# What JAX's collectives say of a process that is gone (Gloo, NCCL, its own service).
_LOST = ("Connection closed", "Connection reset", "Gloo", "NCCL", "UNAVAILABLE")

_asked = threading.Event()
_over = threading.Event()
_held: list[Callable[[], object]] = []
_reason: list[str] = []
_others: list[Any] = []  # the coordination client and this process's number


def watch() -> None:
    """Begin to listen for SIGTERM; from the main thread, again without effect."""
    if signal.getsignal(signal.SIGTERM) is _note:
        return
    # The main thread may be inside a compiled program for minutes, where Python runs
    # no handler; the byte in this pipe wakes a thread at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGTERM, _note)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_wake, args=(read,), daemon=True).start()


def asked() -> bool:
    """Return whether this process, or another of the job, was asked to stop."""
    return _asked.is_set()


def reason() -> str:
    """Return why this process was asked to stop."""
    return _reason[-1] if _reason else "stopped by SIGTERM"


def ask(why: str) -> None:
    """Have this process and the others of the job stop, as SIGTERM does."""
    _reason.append(why)
    _tell()


def grace() -> float:
    """Return the seconds that this process has to end once it was asked to."""
    return float(os.environ.get("MERGING_GRACE") or 25)


def raise_if_asked() -> None:
    """End the work here if it was asked to stop.

    For work whose pieces are independent; where processes must stop at the same one,
    see `merging.runtime.processes.preempted`.

    Raises:
      Preempted: it was.
    """
    if asked():
        raise Preempted(reason())


def join_others(client: Any, process: int) -> None:
    """Begin to hear from the other processes, and to tell them.

    Args:
      client: JAX's coordination client.
      process: this one's number.
    """
    _others[:] = [client, process]
    thread = threading.Thread(target=_listen, daemon=True)
    thread.start()
    # Before JAX takes down what is listened to.
    atexit.register(lambda: (_over.set(), thread.join()))


def end(status: int, reason: str) -> None:
    """Tell the other processes why this one ends early, and exit; no-op when alone.

    The first that says so is believed. It does not return in a job of several: an
    orderly exit would wait for processes that wait for this one.

    Args:
      status: the exit status.
      reason: the error, of which the first line is shown.
    """
    if not _others:
        return
    _over.set()
    client, process = _others
    line = (reason.splitlines() or [""])[0]
    record = {"process": process, "status": status, "reason": line}
    try:
        client.key_value_set(_ENDED, json.dumps(record), allow_overwrite=False)
    except Exception:  # another was first, or process 0 is gone
        pass
    if process == 0:
        # It holds what the others read, and JAX aborts them once it is gone.
        time.sleep(LINGER + 3 * POLL)
    _exit(status)


def lost(error: BaseException) -> bool:
    """Return whether an error only says that another process is no longer there.

    If that one told why it ended, this process ends likewise and nothing is returned.
    """
    if not _others or not any(words in str(error) for words in _LOST):
        return False
    time.sleep(LINGER + 3 * POLL)
    return True


@contextlib.contextmanager
def released(release: Callable[[], object]) -> Iterator[None]:
    """Call this when the context ends, and also where a process is ended at once."""
    _held.append(release)
    try:
        yield
    finally:
        _held.remove(release)
        release()


def _note(signum: int, frame: object) -> None:
    _asked.set()


def _wake(read: int) -> None:
    while number := os.read(read, 1):
        if number[0] == signal.SIGTERM:
            break
    _tell()


def _tell() -> None:
    _be_asked()
    if _others:
        try:
            _others[0].key_value_set(_ASKED, "1", allow_overwrite=True)
        except Exception:  # process 0 is gone; this one ends anyway
            pass


def _be_asked() -> None:
    """Set the flag, and see that the process ends even if nothing looks at it."""
    _asked.set()
    most = grace()
    killer = threading.Timer(
        most,
        lambda: _exit(PREEMPTED, f"not at a good place after {most:g} s, stopping."),
    )
    killer.daemon = True
    killer.start()


def _listen() -> None:
    client, process = _others
    while not _over.wait(POLL):
        try:
            said = dict(client.key_value_dir_get("merging/"))
        except Exception:
            return  # process 0 is gone; JAX ends this process itself
        if _ASKED in said and not asked():
            _be_asked()
        if _ENDED in said:
            record = json.loads(said[_ENDED])
            if record["process"] == process:
                return
            _follow(record)


def _follow(record: dict[str, Any]) -> None:
    """End as another process did, which this one may be waiting for."""
    if record["status"] == PREEMPTED:
        _asked.set()
        time.sleep(LINGER)
        text = f"process {record['process']} was preempted."
    else:
        text = f"process {record['process']} failed first: {record['reason']}"
    if not _over.is_set():  # else this process is ending by itself
        _exit(record["status"], text)


def _exit(status: int, text: str = "") -> None:
    if text:
        print(f"merging: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for release in list(_held):
        # Which may take longer than there is time for.
        thread = threading.Thread(target=release, daemon=True)
        thread.start()
        thread.join(LINGER)
    os._exit(status)
