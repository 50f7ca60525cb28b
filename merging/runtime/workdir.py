"""A workdir belongs to one config's run, and to one driver at a time."""

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from merging.runtime import locks, revision, storage
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder

CONFIG, LOCK = "config.json", "driver.json"
# What may be there before a run has claimed a workdir.
_OURS = (LOCK, "logs", "data")
# What a run's numbers may depend on beside its config.
_PACKAGES = ("merging", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Run(NamedTuple):
    """What a workdir says of its run.

    Attributes:
      config: its values.
      versions: of Python, of this code and of packages, when it began; nothing where
        they were not kept.
    """

    config: Any
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers may depend on."""
    return revision.versions(*_PACKAGES)


def claim(
    workdir: Folder, config: Mapping[str, Any], config_hash: str, kind: str
) -> None:
    """Make the workdir this config's, or see that it is.

    Only once the config is known to be possible: a corrected one would be refused.

    Args:
      workdir: made if it isn't there.
      config: kept in it, for people.
      config_hash: of all that the run's results depend on.
      kind: of run, for messages: "sweep", "training".

    Raises:
      UserError: as `require_own`.
    """
    if require_own(workdir, config_hash, kind):
        return
    workdir.mkdir(parents=True, exist_ok=True)
    record = {"config_hash": config_hash, "config": dict(config)}
    record["versions"] = versions()
    storage.write_json(workdir / CONFIG, record)


def moved(
    workdir: Folder, config: Mapping[str, Any], axes: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Return {name: (held, asked)} of a workdir's config that is this one but for axes.

    Nothing where it is the very same, where another value differs as well, and where
    there is no run.

    Args:
      workdir: may not be there.
      config: plain JSON.
      axes: names that may differ.
    """
    try:
        held = _record(workdir)["config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not isinstance(held, dict):
        return {}

    def text(of: Mapping[str, Any], name: str) -> str:  # 1 and 1.0 are not the same
        return json.dumps(of[name], sort_keys=True) if name in of else ""

    names = sorted(held.keys() | config.keys())
    differ = [name for name in names if text(held, name) != text(config, name)]
    if not set(differ) <= set(axes):
        return {}
    return {name: (held.get(name), config.get(name)) for name in differ}


def renew(workdir: Folder, config: Mapping[str, Any], config_hash: str) -> None:
    """Give a workdir, whose lock the caller holds, a config that `moved` tells of."""
    record = json.loads((workdir / CONFIG).read_text())
    record |= {"config_hash": config_hash, "config": dict(config)}
    storage.write_json(workdir / CONFIG, record)


def require_own(workdir: Folder, config_hash: str, kind: str) -> bool:
    """Return whether a workdir is this config's already; makes nothing.

    Raises:
      UserError: it holds another config's run, or something else.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is no folder; choose another --workdir.")
    held = _held(workdir)
    if held == config_hash:
        return True
    if held is not None:
        raise UserError(
            f"{workdir} holds the run of another config ({held}, and this"
            f" one is {config_hash}). To continue that run, give its config"
            f" (it is in {workdir / CONFIG}); for this one, choose another --workdir."
        )
    if any(
        found.name not in _OURS and not found.name.endswith(".tmp")
        for found in workdir.glob("*")
    ):
        raise UserError(
            f"{workdir} is not empty and holds no {kind}; choose another --workdir."
        )
    return False


def runs(workdirs: Iterable[str | os.PathLike]) -> dict[str, Run]:
    """Return {config hash: its run} of those workdirs that hold one of ours."""
    found = {}
    for workdir in workdirs:
        try:
            record = _record(storage.place(workdir))
            key, config = str(record["config_hash"]), record["config"]
            made_by = record.get("versions")
            found[key] = Run(config, made_by if isinstance(made_by, dict) else {})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _record(workdir: Folder) -> Any:
    """Return what a workdir keeps of its config; a FIFO is not waited for."""
    if not (workdir / CONFIG).is_file():
        raise FileNotFoundError(workdir / CONFIG)
    return json.loads((workdir / CONFIG).read_text())


def _held(workdir: Folder) -> str | None:
    """Return the hash of the config whose run a workdir holds; None: no run of ours.

    Ours is never half written, and another config.json may be a model's.
    """
    try:
        return str(_record(workdir)["config_hash"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextlib.contextmanager
def only_driver(workdir: Folder) -> Iterator[None]:
    """Be the one that works in a workdir, or be refused (`locks.held`).

    Raises:
      UserError: another process works here; names its host, number and command.
    """
    fresh = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)

    def taken(who: str) -> UserError:
        return UserError(
            f"{who} works in {workdir}. Wait for it, stop it, or choose another "
            "--workdir; `merging status` shows how far it is."
        )

    try:
        with locks.held(workdir / LOCK, str(workdir), taken):
            yield
    finally:
        if storage.is_remote(workdir):
            pass  # there are no empty folders
        elif fresh and [p.name for p in workdir.iterdir()] == [LOCK]:
            # Refused before anything was done: the mistake leaves nothing behind.
            with contextlib.suppress(OSError):
                (workdir / LOCK).unlink()
                workdir.rmdir()


def driver(workdir: Folder) -> dict[str, Any] | None:
    """Return who works in a workdir, or did until it was killed; None: nobody."""
    return locks.holder(workdir / LOCK)
