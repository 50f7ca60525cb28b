"""Where the steps of a sweep run: `inline` in this process, `local` in a pool of them.

On CPUs one single-threaded process per core does far more than one process with many
threads, since small models leave nothing to share out inside an operation: that is
`local`. Large models, pretrained bases and accelerators want one process with all
threads or all devices, and a few copies of the weights: that is `inline`.

Either runs a step as soon as what it needs is finished, long chains first.
"""

import ctypes
import multiprocessing
import os
import queue
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from merging.runtime import preemption
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import Progress
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store

RETRIES = 5  # of a step whose needs turn out broken
SAVING = 20.0  # seconds for workers to save what they train
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
_FIRST = ("data", "pretrain", "instruct", "load")
# {step's key: (share done, note)}
Ticks = dict[str, tuple[float, str]]


def chosen(experiment: Experiment) -> tuple[str, int]:
    """Return the runner, and how many processes it runs: the config's, or what fits."""
    large = bool(experiment.pretrained_bases) or _on_accelerator()
    runner = experiment.runner or ("inline" if large else "local")
    if runner == "inline":
        return runner, 1
    return runner, experiment.workers or len(os.sched_getaffinity(0))


def run(
    pending: Sequence[Step], experiment: Experiment, store: Store, progress: Progress
) -> None:
    """Run the pending steps; those that a broken output spoils are run again.

    Args:
      pending: unfinished steps, needs before those that need them.
      experiment: what they belong to.
      store: the workdir.
      progress: told the cost of what is done, as it is done.

    Raises:
      UserError: of a step, whose name it is given.
      Preempted: the system asked to stop; what was trained is saved.
    """
    runner, workers = chosen(experiment)
    make = {"inline": _Inline, "local": _Local}[runner]
    shown = _Shown(progress)
    waiting, running = list(pending), {}
    spoiled: Counter[str] = Counter()
    with make(experiment, store, min(workers, len(pending))) as where:
        while waiting or running:
            unfinished = {step.key for step in (*waiting, *running.values())}
            ready = [
                s for s in waiting if not unfinished & {need.key for need in s.needs}
            ]
            # One that waits in line is enough to keep the workers busy, and the order
            # of the rest can still change.
            room = where.workers + 1 - len(running)
            for step in sorted(ready, key=_rank)[: max(room, 0)]:
                waiting.remove(step)
                running[where.submit(step)] = step
            for future in where.done(running, shown.update):
                step = running.pop(future)
                try:
                    future.result()
                except Broken as broken:
                    waiting[:0] = _again(step, broken, spoiled, store, shown)
                except Preempted:
                    raise
                except Exception as error:
                    store.fail(step, (str(error) or repr(error)).splitlines()[0])
                    if isinstance(error, UserError):
                        raise UserError(f"{step.name}: {error}") from error
                    raise
                else:
                    shown.finish(step)
            if preemption.asked():
                where.stop(running)
                raise Preempted("stopped by SIGTERM")


def _rank(step: Step) -> tuple:
    """Long chains first: a sweep ends when its slowest model does."""
    kind = _FIRST.index(step.kind) if step.kind in _FIRST else len(_FIRST)
    return kind, -step.cost


def _again(
    step: Step, broken: Broken, spoiled: Counter, store: Store, shown: "_Shown"
) -> list[Step]:
    """Return what is to be done again: the broken step, once, and this one."""
    spoiled[step.key] += 1
    if spoiled[step.key] > RETRIES:
        raise broken
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


class _Inline:
    """One step at a time, in this process, with all its threads or devices."""

    workers = 0  # beside the one that is submitted

    def __init__(self, experiment: Experiment, store: Store, workers: int):
        self._experiment, self._store = experiment, store
        self._told: Callable[[Step, float, str], None] = lambda *_: None
        _share_compilations(store.workdir)

    def __enter__(self) -> "_Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, step: Step) -> Future:
        return Future()

    def done(self, running: dict[Future, Step], update) -> Iterator[Future]:
        from merging.sweep import work

        ((future, step),) = running.items()

        def tick(share: float, note: str = "") -> None:
            update({step.key: (share, note or step.name)}, [step])
            _stop_here(step, share)

        try:
            work.execute(step, self._experiment, self._store, tick)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        yield future

    def stop(self, running: Iterable[Future]) -> None:
        pass


class _Local:
    """A pool of processes, each with one thread."""

    def __init__(self, experiment: Experiment, store: Store, workers: int):
        if not _on_accelerator():
            flags = os.environ.get("XLA_FLAGS", "")
            if not experiment.pretrained_bases and ONE_THREAD not in flags:
                os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
        _share_compilations(store.workdir)
        context = multiprocessing.get_context("spawn")
        self._ticks, self.workers = context.Queue(), workers
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(experiment, store, self._ticks, os.getpid()),
        )
        self._steps: dict[str, Step] = {}

    def __enter__(self) -> "_Local":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for worker in multiprocessing.active_children():
                worker.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, step: Step) -> Future:
        self._steps[step.key] = step
        return self._pool.submit(_run_in_worker, step)

    def done(self, running: dict[Future, Step], update) -> Iterator[Future]:
        found, _ = wait(running, 0.5, FIRST_COMPLETED)
        latest: Ticks = {}
        while True:
            try:
                key, share, note = self._ticks.get_nowait()
            except queue.Empty:
                break
            latest[key] = (share, note)
        update(latest, [self._steps[key] for key in latest])
        yield from found

    def stop(self, running: Iterable[Future]) -> None:
        """Let the workers save the step of training that each is at, and end."""
        for worker in multiprocessing.active_children():
            worker.terminate()
        wait(running, SAVING)


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


def _share_compilations(workdir: Path) -> None:
    """Have every worker, and every start, find the programs that one compiled.

    JAX reads these when it is imported first, which in this process may have been.
    """
    import jax

    cache = str(workdir / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _on_accelerator() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/accel0"))


_state: dict[str, Any] = {}


def _start_worker(experiment: Experiment, store: Store, ticks, parent: int) -> None:
    # Ctrl-C goes to the whole group: the parent ends the workers itself. And if the
    # parent is killed outright, they must not go on alone (PR_SET_PDEATHSIG).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    preemption.watch()
    experiment.load_methods()
    _state.update(experiment=experiment, store=store, ticks=ticks)


def _run_in_worker(step: Step) -> None:
    from merging.sweep import work

    def tick(share: float, note: str = "") -> None:
        _state["ticks"].put((step.key, share, note or step.name))
        _stop_here(step, share)

    work.execute(step, _state["experiment"], _state["store"], tick)


def _stop_here(step: Step, share: float) -> None:
    # A training looks itself, after it has saved its step.
    if step.kind in ("data", "merge") or not share:
        preemption.raise_if_asked()
