"""An analysis' workdir: one config's, one driver's, over all processes."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merging.runtime import processes, storage, workdir


@contextlib.contextmanager
def held(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Be the one driver of a workdir that is free, or this config's.

    Raises:
      UserError: it is another's, or someone works in it.
    """
    digest = storage.digest(_plain(settings))

    def look() -> bool:
        return workdir.require_own(folder, digest, "analysis")

    processes.broadcast(look)
    with contextlib.ExitStack() as stack:
        only = workdir.only_driver(folder)
        processes.broadcast(lambda: stack.enter_context(only))
        # Again: before the lock, another driver may have made it its own.
        processes.broadcast(look)
        yield


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a workdir this config's; only once nothing of it can be refused."""
    plain = _plain(settings)
    processes.broadcast(
        lambda: workdir.claim(folder, plain, storage.digest(plain), "analysis")
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them: a tuple and a list are the same."""
    return {
        key: _plain(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in settings.items()
    }
