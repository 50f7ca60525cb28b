"""Steps of a sweep that do what their names say, in no time."""

import dataclasses
import os
import signal
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path

from merging.runtime import preemption
from merging.runtime.errors import Preempted, UserError
from merging.sweep.steps import Step
from merging.sweep.store import Store


class TwoPartError(Exception):
    """An error that can be pickled, and not read again, as many libraries have."""

    def __init__(self, one: str, other: str):
        super().__init__(f"{one} {other}")


@dataclasses.dataclass
class Fakes:
    """What a runner asks of an experiment; workers that load its methods fake steps."""

    runner: str
    workers: int = 2
    pretrained_bases: tuple[str, ...] = ()
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
    resources: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"CPU": 1.0}
    )
    sizes: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()

    def trains(self) -> bool:
        return False

    def load_methods(self) -> None:
        work = types.ModuleType("merging.sweep.work")
        work.execute = execute
        sys.modules[work.__name__] = work


def step(name: str, *needs: Step) -> Step:
    return Step("expert", name, {"name": name}, needs, 1.0)


def execute(step: Step, experiment: Fakes, store: Store, tick, mesh=None) -> None:
    tick(0.0)
    if step.name == "mistaken":
        raise UserError("the rate is too high")
    if step.name == "odd":
        raise TwoPartError("an odd", "error")
    if step.name == "killed":
        _meet(store, 2)
        time.sleep(0.5)  # its tick is on the way
        os.kill(os.getpid(), signal.SIGKILL)
    if step.name == "stopped":
        _meet(store, 2)
        os.kill(os.getpid(), signal.SIGTERM)
        _save(store, step, 0.0)
    if step.name == "lost":  # with its node, the first time
        mark = store.workdir / "lost.met"
        if not mark.exists():
            mark.touch()
            time.sleep(600)
    if step.name == "fatal":
        os.kill(os.getpid(), signal.SIGKILL)
    if step.name == "slow to save":
        _meet(store, 2)
        _save(store, step, 0.5)
    store.publish(step, {})


class Answers:
    """What an actor makes: it says who it is, and how often it was asked."""

    def __init__(self, folder: Path):
        self._folder, self._asked = folder, 0

    def told(self, name: str) -> tuple[str, int, int]:
        self._asked += 1
        if name == "mistaken":
            raise UserError("the rate is too high")
        if name == "odd":
            raise TwoPartError("an odd", "error")
        mark = self._folder / "lost.met"
        if name == "fatal" or name == "lost" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return name, os.getpid(), self._asked


def _meet(store: Store, count: int) -> None:
    """Wait until so many steps are at it."""
    (store.workdir / f"{os.getpid()}.met").touch()
    _wait(lambda: len(list(store.workdir.glob("*.met"))) >= count)


def _save(store: Store, step: Step, seconds: float) -> None:
    """As a training does: see that it is asked to stop, save, and say so."""
    _wait(preemption.asked)
    time.sleep(seconds)
    (store.workdir / f"{step.name}.saved").touch()
    raise Preempted("stopped by SIGTERM")


def _wait(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def finished(store: Store) -> set[str]:
    return {path.name.rpartition("-")[0] for path in store.workdir.glob("steps/*/*")}
