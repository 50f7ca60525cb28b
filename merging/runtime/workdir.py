"""A workdir belongs to one config's run, and to one driver at a time."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merging.runtime import storage
from merging.runtime.errors import UserError

CONFIG, LOCK = "config.json", "driver.json"
_OURS = (CONFIG, LOCK, "logs")


def claim(
    workdir: Path, config: Mapping[str, Any], config_hash: str, kind: str
) -> None:
    """Make the workdir this config's, or see that it is.

    Args:
      workdir: made if it isn't there.
      config: kept in it, for people.
      config_hash: of all that the run's results depend on.
      kind: of run, for messages: "sweep", "training".

    Raises:
      UserError: it holds another config's run, or something else.
    """
    path = workdir / CONFIG
    if path.exists():
        try:
            held = json.loads(path.read_text())["config_hash"]
        except (ValueError, KeyError, TypeError):
            held = None
        if held == config_hash:
            return
        if held is not None:
            raise UserError(
                f"{workdir} holds the run of another config ({held}, and this"
                f" one is {config_hash}).\nTo continue that run, give its config"
                f" (it is in {path}); for this one, choose another --workdir."
            )
    elif any(
        found.name not in _OURS and not found.name.endswith(".tmp")
        for found in workdir.glob("*")
    ):
        raise UserError(
            f"{workdir} is not empty and holds no {kind}; choose another --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, {"config_hash": config_hash, "config": dict(config)})


@contextlib.contextmanager
def only_driver(workdir: Path) -> Iterator[None]:
    """Be the one that works in a workdir, or be refused.

    The lock is the file system's (flock), which gives it back when this process ends,
    however it ends; the file only says who has it. Where a file system has no locks,
    the process that the file names is looked for: on this machine it can be found, and
    of another machine nothing is known, which is said.

    Raises:
      UserError: another process works here; names its host, number and command.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(workdir, driver(workdir)) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            _look_for(workdir, driver(workdir))
        file.truncate(0)
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv)[:200],
        }
        file.write(json.dumps(record))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def driver(workdir: Path) -> dict[str, Any] | None:
    """Return who works in a workdir, or did until it was killed; None: nobody."""
    try:
        record = json.loads((workdir / LOCK).read_text())
        return record | {"alive": _alive(workdir, record)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(workdir: Path, record: Mapping[str, Any]) -> bool | None:
    """Return whether a driver still works; None where that can't be known."""
    with open(workdir / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            if record["host"] != socket.gethostname():
                return None
            return Path(f"/proc/{int(record['pid'])}").exists()
    return False


def _look_for(workdir: Path, found: Mapping[str, Any] | None) -> None:
    if found is None:
        return
    if found["alive"]:
        raise _taken(workdir, found)
    if found["alive"] is None:
        print(
            f"warning: the file system of {workdir} has no locks; see to it that the "
            f"process {found['pid']} on {found['host']} no longer works there.",
            file=sys.stderr,
        )


def _taken(workdir: Path, found: Mapping[str, Any] | None) -> UserError:
    who = "another process"
    if found is not None:
        who = f"process {found['pid']} on {found['host']}, since {found['since']}"
        who += f" ({found['command']}),"
    return UserError(
        f"{who} works in {workdir}. Wait for it, stop it, or choose another --workdir; "
        "`merging status` shows how far it is."
    )
