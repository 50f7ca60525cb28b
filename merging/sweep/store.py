"""A workdir: finished steps under their keys, published whole or not at all.

WORKDIR/config.json            whose run this is
WORKDIR/data/                  training arrays and evaluation sets
WORKDIR/steps/KIND/NAME-KEY/   a finished step: checkpoint/, output.json
WORKDIR/partial/NAME-KEY.G/    a step being worked on, continued after a kill
WORKDIR/claims/NAME-KEY.G      who works on it, the G-th to do so (see claims.py)
WORKDIR/results.jsonl          the rows of all that is finished
WORKDIR/report/
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merging.runtime import storage, workdir
from merging.sweep.claims import Claim, Claims, Holder
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


class Lost(RuntimeError):
    """Another process has taken over the step, since this one seemed to be gone."""


class Store:
    """The finished and unfinished steps of a workdir, which many processes may share.

    Args:
      folder: the workdir, on a file system that all of them see.
    """

    def __init__(self, folder: Path):
        self.workdir = Path(folder).absolute()
        self.claims = Claims(self.workdir / "claims")

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
        workdir.claim(self.workdir, config, config_hash, "sweep")

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
        """Forget a step's output, finished or not, unless another works on it anew."""
        claim = self.claims.take(_folder(step))
        if claim is None:
            return
        with contextlib.suppress(FileNotFoundError):
            # At once, for those that look; removing takes a while.
            away = self._partial(step, claim.generation).with_suffix(".broken")
            away.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.path(step), away)
            shutil.rmtree(away, ignore_errors=True)
        for left in self._unfinished(step):
            shutil.rmtree(left, ignore_errors=True)
        claim.finish()

    def take(self, step: Step) -> tuple[Claim, Path] | None:
        """Claim a step; return the claim and the folder to work in.

        The folder holds what an earlier holder left; that one, should it wake up, no
        longer finds it. None: another process works on the step, or finished it.
        """
        claim = self.claims.take(_folder(step))
        if claim is None:
            return None
        if self.finished(step):
            claim.finish()
            return None
        partial = self._partial(step, claim.generation)
        for left in self._unfinished(step):
            with contextlib.suppress(OSError):  # it was published, or two were left
                os.rename(left, partial)
        partial.mkdir(parents=True, exist_ok=True)
        return claim, partial

    def holder(self, step: Step) -> tuple[Holder, float] | None:
        """Return who works or worked on a step, see `Claims.holder`."""
        return self.claims.holder(_folder(step))

    def publish(self, step: Step, partial: Path, output: dict[str, Any]) -> None:
        """Record a step's output and make its folder the finished one, at once.

        Raises:
          Lost: the folder is another process's by now.
        """
        path = self.path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.write_json(partial / "output.json", {"key": step.key, **output})
            if path.exists() and not self.finished(step):
                shutil.rmtree(path, ignore_errors=True)
            os.rename(partial, path)
        except OSError as error:
            if self.finished(step) or not partial.exists():
                shutil.rmtree(partial, ignore_errors=True)
                raise Lost(step.name) from error
            raise

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Let one process at a time do this; the others wait here for their turn."""
        while (claim := self.claims.take(what)) is None:
            time.sleep(0.2)
        try:
            yield
        finally:
            claim.finish()

    def _partial(self, step: Step, generation: int) -> Path:
        return self.workdir / "partial" / f"{_folder(step)}.{generation}"

    def _unfinished(self, step: Step) -> list[Path]:
        """Return what is left of those who worked on a step, the latest first."""
        found = self._partial(step, 0).parent.glob(f"{_folder(step)}.*")
        numbered = [p for p in found if p.suffix[1:].isdigit()]
        return sorted(numbered, key=lambda p: -int(p.suffix[1:]))


def _folder(step: Step) -> str:
    return f"{step.name.replace('/', '-')}-{step.key}"
