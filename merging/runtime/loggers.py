"""Where a run's numbers go while it runs: TensorBoard, Weights & Biases, trackio.

A logger takes {name: number} at a step. It is opened by its name, and its library is
imported then and not before. What a run is resumed under is its folder.
"""

import contextlib
import importlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from merging.runtime import storage
from merging.runtime.errors import UserError, nearest

NONE = "none"
_PROJECT, _EVENTS = "merging", "tensorboard"
_LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


class Logger(Protocol):
    """Takes a run's numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by their names, such as ``loss``; steps come in their order."""


@contextlib.contextmanager
def opened(
    name: str, folder: storage.Folder, config: Mapping[str, Any]
) -> Iterator[Logger]:
    """Give a logger for a run, new or resumed, and have it write all in the end.

    Args:
      name: ``tensorboard``, ``wandb``, ``trackio`` or ``none``.
      folder: of the run; event files go to its ``tensorboard``. Services call the run
        by its last part.
      config: what the run was asked for.

    Raises:
      UserError: an unknown name, or a library that is not installed.
    """
    require_known(name)
    here = storage.scratch(folder)
    library = None if name == NONE else _library(name)
    if library is None:
        yield _Nothing()
        return
    if name == "tensorboard":
        logger: _TensorBoard | _Service = _TensorBoard(library, here)
    else:
        logger = _Service(library, name, here, config)
    try:
        yield logger
    finally:
        logger.close()
        storage.keep(folder, here / _EVENTS)


def require_known(name: str) -> None:
    """Raise a UserError, with what to install, unless a logger can be opened."""
    if name not in (*_LIBRARIES, NONE):
        raise nearest("logger", name, (*_LIBRARIES, NONE))
    if name != NONE:
        _library(name)


class _Nothing:
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take nothing."""


class _TensorBoard:
    """Event files, without TensorFlow. A further start of a run adds a file."""

    def __init__(self, library: Any, folder: Path):
        # By default a file is called by the second, and of two starts one is lost.
        mark = f".{secrets.token_hex(4)}"
        place = str(folder / _EVENTS)
        self._writer = library.SummaryWriter(place, filename_suffix=mark)
        self.close = self._writer.close

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


class _Service:
    """W&B and trackio; the project is WANDB_PROJECT or TRACKIO_PROJECT, or ours."""

    def __init__(self, library: Any, name: str, folder: Path, config: Mapping):
        # Two folders of one name are two runs; W&B knows them by an id.
        mark = storage.digest(str(folder.absolute()), length=8)
        how: dict[str, Any] = dict(name=f"{folder.name}-{mark}")
        if name == "wandb":
            how |= dict(id=mark, dir=str(folder))
        how["project"] = os.environ.get(f"{name.upper()}_PROJECT") or _PROJECT
        self._run = library.init(config=dict(config), resume="allow", **how)
        self.close = self._run.finish

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)


def _library(name: str) -> Any:
    library = _LIBRARIES[name]
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(
            f"logger {name} can't be opened ({error}): pip install {library}, or "
            f"choose another of {', '.join((*_LIBRARIES, NONE))}."
        ) from None
