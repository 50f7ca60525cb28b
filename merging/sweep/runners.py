"""Where the steps of a sweep run: `inline` in this process, or `local` in a pool.

On CPUs one single-threaded process per core does far more than one process with many
threads, since small models leave nothing to share out inside an operation: that is
`local`. Large models, given bases and accelerators want all devices for every step, and
a few copies of the weights: that is `inline`, in one process, or in all processes of a
slice together, each of which goes through the same steps.

`ray` runs them on the nodes of a Ray cluster (`on_ray`).

Each runs a step as soon as what it needs is finished, `local` and `ray` long chains
first, and `inline` neighbours of the grid together, as they share their models.
"""

import contextlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import Any

import jax
from jax.sharding import Mesh

from merging import models
from merging.runtime import preemption, processes, sharding
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import Progress
from merging.sweep import on_ray
from merging.sweep.experiment import Experiment
from merging.sweep.pool import (
    Pool,
    Ticks,
    on_accelerator,
    share_compilations,
)
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store

RETRIES = 5  # of a step whose needs turn out broken
FAILURES = 5  # of steps, after which the reason is taken to be in all of them
TOGETHER = 20.0  # seconds for all processes to say that a step failed


def chosen(experiment: Experiment) -> tuple[str, int]:
    """Return the runner, and how many processes it runs: the config's, or what fits."""
    large = bool(experiment.pretrained_bases) or on_accelerator()
    meshed = any(size != 1 for name, size in experiment.mesh.items() if name != "data")
    together = jax.distributed.is_initialized() or processes.process_id()[1] > 1
    fits = "inline" if large or meshed or together else "local"
    runner = experiment.runner or fits
    if runner == "inline":
        return runner, 1
    if runner == "ray":
        return runner, on_ray.connect(experiment.resources)
    return runner, experiment.workers or len(os.sched_getaffinity(0))


def run(
    pending: Sequence[Step], experiment: Experiment, store: Store, progress: Progress
) -> None:
    """Run the pending steps; those that a broken output spoils are run again.

    A step that fails takes with it those that need it; the others are run.

    Args:
      pending: unfinished steps, needs before those that need them; of several
        processes, the same for all.
      experiment: what they belong to.
      store: the workdir.
      progress: told the cost of what is done, as it is done.

    Raises:
      UserError: steps failed, each of which is named; or a worker process died.
      RuntimeError: likewise, and one of them by a fault of ours or of a user's method.
      Preempted: the system asked to stop; what was trained is saved.
    """
    runner, workers = chosen(experiment)
    make = {"inline": _Inline, "local": Pool, "ray": on_ray.Tasks}[runner]
    shown = _Shown(progress)
    waiting, running = list(pending), {}
    spoiled: Counter[str] = Counter()
    failed: dict[Step, BaseException] = {}
    with make(experiment, store, min(workers, len(pending))) as where:
        while running or (waiting and len(failed) < FAILURES):
            # One that waits in line is enough to keep the workers busy, and the order
            # of the rest can still change.
            room = 0 if len(failed) >= FAILURES else where.workers + 1 - len(running)
            for step in _next(waiting, running, room, where.rank):
                waiting.remove(step)
                running[where.submit(step)] = step
            for future in where.done(running, shown.update):
                step, error = running.pop(future), future.exception()
                if error is None:
                    shown.finish(step)
                elif isinstance(error, Broken) and spoiled[step.key] < RETRIES:
                    waiting[:0] = _again(step, error, spoiled, store, shown)
                elif isinstance(error, (Preempted, BrokenExecutor)):
                    raise _stopped(error, where, running | {future: step})
                elif not where.agreed(step):
                    raise error
                else:
                    failed[step] = error
                    _fail(step, error, waiting, store, progress)
            if where.asked():
                raise _stopped(Preempted(), where, running)
    if failed:
        raise _failure(failed, waiting)


def _next(
    waiting: Sequence[Step], running: Mapping, room: int, rank: Callable[[Step], Any]
) -> list[Step]:
    """Return the steps to submit now, as many as there is room for."""
    unfinished = {step.key for step in (*waiting, *running.values())}
    ready = [s for s in waiting if not unfinished & {need.key for need in s.needs}]
    return sorted(ready, key=rank)[: max(room, 0)]


def _again(
    step: Step, broken: Broken, spoiled: Counter, store: Store, shown: "_Shown"
) -> list[Step]:
    """Return what is to be done again: the broken step, once, and this one."""
    spoiled[step.key] += 1
    shown.restart(step)
    redo = next(s for s in (step, *step.needs) if s.key == broken.key)
    # Several steps may find the same one broken.
    if redo is step or spoiled[f"redone/{redo.key}"]:
        return [step]
    spoiled[f"redone/{redo.key}"] += 1
    shown.progress.message(f"warning: {broken}; doing that step again")
    store.discard(redo)
    shown.counted.pop(redo.key, None)
    shown.progress.total += redo.cost
    return [redo, step]


def _stopped(
    error: BaseException,
    where: "_Inline | Pool | on_ray.Tasks",
    running: Mapping[Future, Step],
) -> Exception:
    """Return what ends the run before its time, after the workers have saved theirs."""
    # A job's processes may all be sent SIGTERM: a worker can be the first to say so.
    if isinstance(error, Preempted) or preemption.asked():
        where.stop(running)
        return Preempted(preemption.reason())
    at = [step.name for step in running.values() if step.key in where.begun]
    return UserError(
        f"a worker process died, at one of: {', '.join(at) or 'its first step'}.\n"
        "Most often memory ran out: run fewer at a time, say --config.workers=1."
        " What is finished is kept."
    )


def _fail(
    step: Step,
    error: BaseException,
    waiting: list[Step],
    store: Store,
    progress: Progress,
) -> None:
    """Keep why a step failed, and that it leaves the ones that need it undone."""
    reason = _reason(error)
    with contextlib.suppress(UserError):  # of a full disk, say, which failed the step
        store.fail(step, reason)
    lost = {step.key}
    for other in list(waiting):  # needs come before those that need them
        if lost & {need.key for need in other.needs}:
            lost.add(other.key)
            waiting.remove(other)
    others = f", and with it {len(lost) - 1} that need it" if len(lost) > 1 else ""
    progress.message(f"failed: {step.name}: {reason}{others}")


def _failure(failed: Mapping[Step, BaseException], waiting: Sequence) -> Exception:
    """Return what says which steps failed, as a fault if one of them is."""
    one = len(failed) == 1
    lines = [f"{step.name}: {error}" for step, error in failed.items()]
    text = lines[0] if one else "\n".join([f"{len(failed)} steps failed:", *lines])
    if waiting:
        text += f"\nThat many failed, so {len(waiting)} others were not begun."
    faults = [e for e in failed.values() if not isinstance(e, UserError)]
    if not faults:
        return UserError(text)
    fault = RuntimeError(text)
    fault.__cause__ = faults[0]
    return fault


def _reason(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]


class _Inline:
    """One step at a time, in this process and any others, with all their devices."""

    workers = 0  # beside the one that is submitted
    begun: frozenset[str] = frozenset()

    def __init__(self, experiment: Experiment, store: Store, workers: int):
        self._experiment, self._store = experiment, store
        self._mesh = devices(experiment)
        self._failures = 0
        share_compilations(store.workdir)

    def __enter__(self) -> "_Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rank(self, step: Step) -> int:
        """Return 0: neighbours of the grid have models in common."""
        return 0

    def asked(self) -> bool:
        """Return whether to stop: the same on every process."""
        return processes.preempted()

    def agreed(self, step: Step) -> bool:
        """Return whether a step has failed on all processes, so that they may go on."""
        self._failures += 1
        return processes.all_here(f"failed/{self._failures}/{step.key}", TOGETHER)

    def submit(self, step: Step) -> Future:
        return Future()

    def done(self, running: dict[Future, Step], update) -> Iterator[Future]:
        from merging.sweep import work

        ((future, step),) = running.items()

        def tick(share: float, note: str = "") -> None:
            update({step.key: (share, note or step.name)}, [step])
            # A training looks itself, after it has saved its step.
            if step.kind in ("data", "merge") and self.asked():
                raise Preempted(preemption.reason())

        try:
            work.execute(step, self._experiment, self._store, tick, self._mesh)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        yield future

    def stop(self, running: Iterable[Future]) -> None:
        pass


def placed(experiment: Experiment, runner: str) -> str:
    """Return where each step runs, for a person; "" for a single device."""
    mesh = devices(experiment) if runner == "inline" else None
    if mesh is None:
        return ""
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f" on {mesh.size} devices ({axes}) of {processes.count()} processes"


def devices(experiment: Experiment) -> Mesh | None:
    """Return the mesh of all devices of all processes; None for the only device.

    Raises:
      UserError: a mesh that does not use them, or does not divide a batch or a leaf.
    """
    sizes = experiment.mesh
    if jax.device_count() == 1 and math.prod(map(abs, sizes.values())) == 1:
        return None
    mesh = sharding.make_mesh(sizes)
    for size, base in itertools.product(experiment.sizes, experiment.bases):
        models.abstract(experiment.decoder(size, base), mesh)
    if experiment.trains():
        sharding.rows_here(mesh, experiment.batch_size)
    return mesh


class _Shown:
    """Keeps the progress bar at the sum of the running steps' shares."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.counted: dict[str, float] = {}

    def update(self, latest: Ticks, steps: Iterable[Step]) -> None:
        for step in steps:
            share, note = latest[step.key]
            # A late tick must not take back what is finished.
            if step.cost * share > self.counted.get(step.key, 0.0):
                self._count(step, step.cost * share, note)
        self.progress.tick()

    def finish(self, step: Step) -> None:
        self._count(step, step.cost, step.name)

    def restart(self, step: Step) -> None:
        self._count(step, 0.0, step.name)

    def _count(self, step: Step, amount: float, note: str) -> None:
        more = amount - self.counted.get(step.key, 0.0)
        if more:
            self.counted[step.key] = amount
            self.progress.advance(more, note)
