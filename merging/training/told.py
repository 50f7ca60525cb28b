"""What a training tells while it runs: on the terminal, in its file, to its logger."""

import contextlib
import json
from pathlib import Path
from typing import Any

from merging.runtime import processes, storage, text
from merging.runtime.loggers import Logger
from merging.runtime.progress import Progress
from merging.runtime.storage import Folder
from merging.training.run_state import RunState


class Told:
    """Keeps a training's losses, and logs them; process 0 does the writing.

    Args:
      path: gets a line for each step and each validation.
      logger: is told of each step once, however often the training was stopped.
      shown: shows how far it is, if given.
    """

    def __init__(self, path: Folder, logger: Logger, shown: Progress | None = None):
        self._file = storage.Growing(path) if processes.is_first() else None
        self._shown, self._logger = shown, logger
        self._told: RunState | None = None
        # Steps that were lost with a killed run, and are repeated, were logged then.
        self._logged = _last_step(self._file.path) if self._file else 0

    def __call__(self, now: RunState) -> None:
        """Take note of the steps since the last call."""
        if self._shown is not None:
            self._show(now, self._shown)
        if self._file is not None:
            # An earlier run may have told of steps that it could not save.
            mode = "w" if self._told is None else "a"
            records = _records(now, self._told)
            for record in records:
                if record["step"] > self._logged:
                    numbers = {k: v for k, v in record.items() if k != "step"}
                    self._logger.log(record["step"], numbers)
            with open(self._file.path, mode) as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
            self._file.settle()
        self._told = now

    def _show(self, now: RunState, shown: Progress) -> None:
        if self._told is None:
            shown.skip(now.step)  # by earlier runs, or while this one compiled
        else:
            shown.advance(now.step - self._told.step)
        note = f"loss {now.losses[-1]:.4f}"
        if len(now.validations):
            note += f", validation {now.validations[-1, 1]:.4f}"
        shown.note(note)

    def settle(self) -> None:
        """Keep all that was told, where that takes a while."""
        if self._file is not None:
            self._file.settle(now=True)


def _last_step(path: Path) -> int:
    """Return the last step of an earlier run's losses; 0 if there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def _records(now: RunState, before: RunState | None) -> list[dict[str, Any]]:
    """Return what is to be told of the steps and validations that are new."""
    first = before.step if before else 0
    validated = len(before.validations) if before else 0
    records = [
        (step + 1, 0, {"step": step + 1, "loss": text.shortest(now.losses[step])})
        for step in range(first, now.step)
    ]
    records += [
        (step, 1, {"step": int(step), "validation_loss": text.shortest(value)})
        for step, value in now.validations[validated:]
    ]
    records.sort(key=lambda record: record[:2])
    return [record for *_, record in records]
