"""A workdir belongs to one config's run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merging.runtime import storage
from merging.runtime.errors import UserError

CONFIG = "config.json"


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
    # Looked at first: another process may be starting here, and writes this one
    # file before any other.
    others = [
        found.name
        for found in workdir.glob("*")
        if not found.name.endswith(".tmp") and found.name != "logs"
    ]
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
    elif others:
        raise UserError(
            f"{workdir} is not empty and holds no {kind}; choose another --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, {"config_hash": config_hash, "config": dict(config)})
