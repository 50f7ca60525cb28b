"""A workdir belongs to one config's run, and to one driver at a time."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merging.runtime import locks, storage
from merging.runtime.errors import UserError

CONFIG, LOCK = "config.json", "driver.json"
_OURS = (LOCK, "logs")


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
    held = _held(path)
    if held == config_hash:
        return
    if held is not None:
        raise UserError(
            f"{workdir} holds the run of another config ({held}, and this"
            f" one is {config_hash}).\nTo continue that run, give its config"
            f" (it is in {path}); for this one, choose another --workdir."
        )
    if any(
        found.name not in _OURS and not found.name.endswith(".tmp")
        for found in workdir.glob("*")
    ):
        raise UserError(
            f"{workdir} is not empty and holds no {kind}; choose another --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, {"config_hash": config_hash, "config": dict(config)})


def _held(path: Path) -> str | None:
    """Return the hash of the config whose run a workdir holds; None: no run of ours.

    Ours is never half written, and another config.json may be a model's.
    """
    try:
        return str(json.loads(path.read_text())["config_hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def only_driver(workdir: Path) -> Iterator[None]:
    """Be the one that works in a workdir, or be refused (`locks.held`).

    Raises:
      UserError: another process works here; names its host, number and command.
    """
    workdir.mkdir(parents=True, exist_ok=True)

    def taken(who: str) -> UserError:
        return UserError(
            f"{who} works in {workdir}. Wait for it, stop it, or choose another "
            "--workdir; `merging status` shows how far it is."
        )

    with locks.held(workdir / LOCK, str(workdir), taken):
        yield


def driver(workdir: Path) -> dict[str, Any] | None:
    """Return who works in a workdir, or did until it was killed; None: nobody."""
    return locks.holder(workdir / LOCK)
