"""A workdir: finished steps under their keys, published whole or not at all.

WORKDIR/config.json            whose run this is
WORKDIR/driver.json            who works on it; see `runtime.workdir.only_driver`
WORKDIR/part.json              which part of the grid it was last asked for
WORKDIR/data/                  training arrays and evaluation sets
WORKDIR/steps/KIND/NAME-KEY/   a finished step: output.json; of a training
                               checkpoint/, losses.jsonl and what its logger writes
WORKDIR/partial/NAME-KEY/      a step being worked on, continued after a kill
WORKDIR/failed/NAME-KEY.json   why a step failed, the last time
WORKDIR/results.jsonl          the rows of all that is finished
WORKDIR/report/
WORKDIR/compiled/              JAX's compilation cache
WORKDIR/events.jsonl           what was done when

In an object store, which renames nothing, a step is worked on in its own folder, and
finished by its output.json, which is written last; compiled/ is this machine's.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from merging.runtime import objects, processes, storage
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder
from merging.sweep.steps import Step

OUTPUT = "output.json"


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
    """The finished and unfinished steps of a workdir.

    Args:
      folder: the workdir.
      together: several processes do each step together, and call every method that
        reads an output, or changes something, alike: the first does it, all hear it.
    """

    def __init__(self, folder: Folder, together: bool = False):
        self.workdir = storage.absolute(storage.place(folder))
        self.together = together
        self.data = self.workdir / "data"
        self.results = self.workdir / "results.jsonl"
        self._known: dict[str, dict[str, Any]] = {}  # outputs, by keys

    def once(self, what: Callable[[], Any]) -> Any:
        """Return what one process finds or does, on all of them; plain JSON.

        Raises:
          UserError: there; on all of them.
        """
        return processes.broadcast(what) if self.together else what()

    def keep_part(self, part: tuple[int, int]) -> None:
        """Note which part (i, n) of the grid is asked for."""
        noted = {"part": list(part)}
        self.once(lambda: bool(storage.write_json(self.workdir / "part.json", noted)))

    def part(self) -> tuple[int, int]:
        """Return which part of the grid was asked for last; (0, 1), the whole."""
        try:
            noted = json.loads((self.workdir / "part.json").read_text())["part"]
            index, count = map(int, noted)
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 1
        return index, count

    def path(self, step: Step) -> Folder:
        """Where a step's output is once it is finished."""
        return self.workdir / "steps" / step.kind / _folder(step)

    def partial(self, step: Step) -> Folder:
        """Where it is until then; made if it isn't there."""
        path = self._unfinished(step)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _unfinished(self, step: Step) -> Folder:
        if storage.is_remote(self.workdir):
            return self.path(step)
        return self.workdir / "partial" / _folder(step)

    def begun(self, step: Step) -> bool:
        """Return whether a step was worked on and not finished."""
        return self._unfinished(step).exists() and not self.finished(step)

    def finished(self, step: Step) -> bool:
        """Return whether a step's output is there."""
        return step.key in self._known or (self.path(step) / OUTPUT).exists()

    def look(self) -> None:
        """Read all that is finished at once, where asking for each takes a while."""
        if not isinstance(self.workdir, ObjectPath):
            return
        paths = [p for p in (self.workdir / "steps").find() if p.name == OUTPUT]
        for content in objects.read_all(paths):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found = json.loads(content)
                self._known[str(found["key"])] = found

    def output(self, step: Step) -> dict[str, Any]:
        """Return what a finished step recorded.

        Raises:
          Broken: it isn't there, or not what was written.
        """
        output, reason = self.once(lambda: self._output(step))
        if reason:
            raise Broken(step.name, step.key, reason)
        return output

    def _output(self, step: Step) -> tuple[dict[str, Any], str]:
        """Return a step's output, and why it is broken."""
        if step.key in self._known:
            return self._known[step.key], ""
        try:
            output = json.loads((self.path(step) / OUTPUT).read_text())
        # Not other errors of the system: what can't be read now isn't to be redone.
        except (FileNotFoundError, ValueError) as error:
            return {}, str(error)
        if not isinstance(output, dict) or output.get("key") != step.key:
            return {}, "output.json is not this step's"
        return output, ""

    def discard(self, step: Step) -> None:
        """Forget a step's output, finished or not."""

        def discard() -> None:
            # First, or a kill would leave it as the mark of what is half removed.
            (self.path(step) / OUTPUT).unlink(missing_ok=True)
            storage.remove(self.path(step))
            storage.remove(self._unfinished(step))

        self._known.pop(step.key, None)
        self.once(discard)

    def publish(self, step: Step, output: dict[str, Any]) -> None:
        """Record a step's output and make its folder the finished one, at once."""
        self.once(lambda: self._publish(step, output))

    def _publish(self, step: Step, output: dict[str, Any]) -> None:
        path, partial = self.path(step), self.partial(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(partial / OUTPUT, {"key": step.key, **output})
        if partial != path:
            if path.exists():  # without an output: what a kill left of discarding it
                shutil.rmtree(path)
            os.rename(partial, path)
            storage.sync_folder(path.parent)
        self._failure(step).unlink(missing_ok=True)

    def fail(self, step: Step, reason: str) -> None:
        """Keep why a step failed."""
        written = {"reason": reason}
        self.once(lambda: bool(storage.write_json(self._failure(step), written)))

    def failure(self, step: Step) -> str | None:
        """Return why a step failed the last time, if it did."""
        try:
            return str(json.loads(self._failure(step).read_text())["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _failure(self, step: Step) -> Folder:
        return self.workdir / "failed" / f"{_folder(step)}.json"


def _folder(step: Step) -> str:
    return f"{step.name.replace('/', '-')}-{step.key}"
