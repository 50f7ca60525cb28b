"""A pool of processes that run steps, each with one thread; the `local` runner's.

A sweep's workers run steps, whose outputs are in storage; a search's hold its models,
and answer from them. One ends with the driver, however that ends, and never goes on
alone.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import queue
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from merging.runtime import preemption, storage
from merging.runtime.errors import UserError
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Store

_FIRST = ("data", "pretrain", "instruct", "load")
SAVING = 0.8  # of the time to end in, for workers to save what they train
# {step's key: (share done, note)}
Ticks = dict[str, tuple[float, str]]


class Pool:
    """A pool of processes, each with one thread.

    Attributes:
      workers: how many.
      begun: keys of steps that workers were or are at.
    """

    def __init__(self, experiment: Experiment, store: Store, workers: int):
        large = experiment.pretrained_bases or on_accelerator()
        variables = {} if large else one_thread()
        share_compilations(store.workdir)
        context = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())  # the caller's own
        self._ticks, self.workers = context.Queue(), workers
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(experiment, store, self._ticks, os.getpid(), variables),
        )
        self._seen: set[BaseProcess] = set()
        self._steps: dict[str, Step] = {}
        self.begun: set[str] = set()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for worker in self._processes():
                worker.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def rank(self, step: Step) -> tuple:
        """Return its place: long chains first, as the slowest model ends a sweep."""
        return order(step)

    def asked(self) -> bool:
        """Return whether to stop."""
        return preemption.asked()

    def agreed(self, step: Step) -> bool:
        """Return whether the rest may go on when a step has failed."""
        return True

    def submit(self, step: Step) -> Future:
        """Have a step run by the next worker that is free."""
        self._steps[step.key] = step
        with _born_deaf():
            return self._pool.submit(_run_in_worker, step)

    def done(self, running: dict[Future, Step], update) -> Iterator[Future]:
        """Yield what has ended, after a short wait; tell how far the rest is."""
        found, _ = wait(running, 0.5, FIRST_COMPLETED)
        self._seen |= self._processes()
        if not found and any(worker.exitcode is not None for worker in self._seen):
            # The executor waits for those workers that there were when it last heard of
            # anything; of a later one's death it hears with the next thing.
            with contextlib.suppress(BrokenExecutor):
                self._pool.submit(os.getpid)
        latest: Ticks = {}
        while True:
            try:
                key, share, note = self._ticks.get_nowait()
            except queue.Empty:
                break
            latest[key] = (share, note)
        update(latest, [self._steps[key] for key in latest])
        self.begun |= latest.keys()
        yield from found

    def stop(self, running: Iterable[Future]) -> None:
        """Let the workers save the step of training that each is at, and end."""
        for worker in self._processes():
            worker.terminate()
        # The rest is for the driver, which writes the rows of what is finished.
        wait(running, SAVING * preemption.grace())

    def _processes(self) -> set[BaseProcess]:
        return set(multiprocessing.active_children()) - self._others


class Actors:
    """Processes that each make something once, and answer from it again and again.

    On CPUs each has one thread.

    Args:
      make: called in each process; what it returns has the methods to be called.
      workers: how many, at most: they are started as they are needed.
    """

    def __init__(self, make: Callable[[], Any], workers: int):
        self._others = set(multiprocessing.active_children())  # the caller's own
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_actor,
            initargs=(make, os.getpid(), {} if on_accelerator() else one_thread()),
        )

    def map(self, method: str, items: Iterable[Any]) -> Iterator[Any]:
        """Yield what a method of theirs returns of each item, in order.

        Raises:
          UserError: a process died.
        """
        with _born_deaf():
            found = self._pool.map(functools.partial(_answer, method), items)
        try:
            yield from found
        except BrokenExecutor as error:
            raise UserError(
                "a worker process died. Most often memory ran out: run fewer at a time,"
                " say --config.workers=1. What is finished is kept."
            ) from error

    def __enter__(self) -> "Actors":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for worker in set(multiprocessing.active_children()) - self._others:
                worker.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _born_deaf() -> Iterator[None]:
    """Start processes that Ctrl-C, which goes to the whole group, does not end.

    The driver ends them itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def order(step: Step) -> tuple:
    """Return a step's place among those that could run now: long chains first."""
    kind = _FIRST.index(step.kind) if step.kind in _FIRST else len(_FIRST)
    return kind, -step.cost


def share_compilations(workdir: storage.Folder) -> None:
    """Have every worker, and every start, find the programs that one compiled.

    JAX reads these when it is imported first, which in this process may have been.
    """
    import jax

    cache = str(storage.scratch(workdir) / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def one_thread() -> dict[str, str]:
    """Return the environment of a process that is to compute on one core.

    XLA makes its pool of PJRT_NPROC threads, when a process computes first.
    """
    return {"PJRT_NPROC": "1"}


def on_accelerator() -> bool:
    """Return whether JAX will use something else than CPUs, without asking it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/accel0"))


_state: dict[str, Any] = {}


def _start_worker(
    experiment: Experiment,
    store: Store,
    ticks: Any,
    parent: int,
    variables: dict[str, str],
) -> None:
    _end_with(parent)
    os.environ.update(variables)
    preemption.watch()
    experiment.load_methods()
    _state.update(experiment=experiment, store=store, ticks=ticks)


def _start_actor(
    make: Callable[[], Any], parent: int, variables: dict[str, str]
) -> None:
    _end_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the driver's to answer
    os.environ.update(variables)
    # Made by the first call, whose error the driver then hears.
    _state["made"] = functools.cache(make)


def _answer(method: str, item: Any) -> Any:
    try:
        return getattr(_state["made"](), method)(item)
    except Exception as error:
        raise travelling(error) from error


def _end_with(parent: int) -> None:
    """Have this process killed when its parent is (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _run_in_worker(step: Step) -> None:
    from merging.sweep import work

    def tick(share: float, note: str = "") -> None:
        _state["ticks"].put((step.key, share, note or step.name))
        _stop_here(step, share)

    try:
        work.execute(step, _state["experiment"], _state["store"], tick)
    except Exception as error:
        raise travelling(error) from error


def travelling(error: Exception) -> Exception:
    """Return an error that the driver can read; one that it can't ends the pool.

    Errors of libraries, and of a user's methods, need not be fit for that.
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _stop_here(step: Step, share: float) -> None:
    """End a step that was asked to stop, where a tick is a good place for that.

    Raises:
      Preempted: it was.
    """
    # A training looks itself, after it has saved its step.
    if step.kind in ("data", "merge") or not share:
        preemption.raise_if_asked()
