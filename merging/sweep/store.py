"""A workdir: finished steps under their keys, published whole or not at all.

WORKDIR/config.json            whose run this is
WORKDIR/data/                  training arrays and evaluation sets
WORKDIR/steps/KIND/NAME-KEY/   a finished step: checkpoint/, output.json
WORKDIR/partial/NAME-KEY/      a step being worked on, continued after a kill
WORKDIR/results.jsonl          the rows of all that is finished
WORKDIR/report/
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merging.errors import UserError
from merging.sweep.steps import Step


class Broken(RuntimeError):
    """A finished step whose output can't be read; it has to be redone.

    Attributes:
      key: the step's key.
    """

    def __init__(self, name: str, key: str, reason: str):
        super().__init__(name, key, reason)
        self.name, self.key, self.reason = name, key, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Store:
    """The finished and unfinished steps of a workdir."""

    def __init__(self, workdir: Path):
        self.workdir = Path(workdir).absolute()

    @property
    def data(self) -> Path:
        """Where the suite's arrays are cached."""
        return self.workdir / "data"

    @property
    def results(self) -> Path:
        """The rows of all finished steps."""
        return self.workdir / "results.jsonl"

    def claim(self, config: dict[str, Any], config_hash: str) -> None:
        """Make the workdir this config's, or see that it is.

        Raises:
          UserError: it holds another config's run.
        """
        path = self.workdir / "config.json"
        if path.exists():
            try:
                held = json.loads(path.read_text())["config_hash"]
            except (ValueError, KeyError, TypeError):
                held = None
            if held == config_hash:
                return
            if held is not None:
                raise UserError(
                    f"{self.workdir} holds the run of another config ({held}, and this"
                    f" one is {config_hash}).\nTo continue that run, give its config"
                    f" (it is in {path}); for this one, choose another --workdir."
                )
        elif any(not p.name.endswith(".tmp") for p in self.workdir.glob("*")):
            raise UserError(
                f"{self.workdir} is not empty and holds no sweep; choose another "
                "--workdir."
            )
        self.workdir.mkdir(parents=True, exist_ok=True)
        record = {"config_hash": config_hash, "config": config}
        _write_json(path, record)

    def path(self, step: Step) -> Path:
        """Where a step's output is once it is finished."""
        return self.workdir / "steps" / step.kind / _folder(step)

    def finished(self, step: Step) -> bool:
        """Return whether a step's output is there."""
        return (self.path(step) / "output.json").exists()

    def output(self, step: Step) -> dict[str, Any]:
        """Return what a finished step recorded.

        Raises:
          Broken: it can't be read.
        """
        try:
            output = json.loads((self.path(step) / "output.json").read_text())
        except (OSError, ValueError) as error:
            raise Broken(step.name, step.key, str(error)) from error
        if not isinstance(output, dict) or output.get("key") != step.key:
            raise Broken(step.name, step.key, "output.json is not this step's")
        return output

    def discard(self, step: Step) -> None:
        """Forget a step's output, finished or not."""
        shutil.rmtree(self.path(step), ignore_errors=True)
        shutil.rmtree(self._partial(step), ignore_errors=True)

    @contextlib.contextmanager
    def working(self, step: Step) -> Iterator[Path | None]:
        """Give the folder to work in, or None when the step is finished already.

        One process at a time works on a step; another waits here, and a killed one
        leaves its folder for the next to continue.
        """
        partial = self._partial(step)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with open(partial.with_name(partial.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.finished(step):
                yield None
                return
            partial.mkdir(exist_ok=True)
            yield partial

    def publish(self, step: Step, output: dict[str, Any]) -> None:
        """Record a step's output and make its folder the finished one, at once."""
        partial, path = self._partial(step), self.path(step)
        _write_json(partial / "output.json", {"key": step.key, **output})
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(partial, path)

    def _partial(self, step: Step) -> Path:
        return self.workdir / "partial" / _folder(step)


def _folder(step: Step) -> str:
    return f"{step.name.replace('/', '-')}-{step.key}"


def _write_json(path: Path, value: Any) -> None:
    """Write, flush to the disk, and only then take the final name."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(fresh, "w") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
