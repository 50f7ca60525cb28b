"""Run steps in worker processes, each as soon as what it needs is finished.

On CPUs one single-threaded process per core does far more than one process with many
threads, since small models leave nothing to share out inside an operation. Given bases
are large: there it is one process with all threads, and a few copies of the weights.
"""

import ctypes
import multiprocessing
import os
import queue
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from merging.runtime import preemption
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import Progress
from merging.sweep.claims import Claim
from merging.sweep.settings import Settings
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Lost, Store

RETRIES = 5  # of a step whose needs turn out broken
SAVING = 20.0  # seconds for workers to save what they train
LOOK_AGAIN = 2.0  # seconds until a step that another process works on is looked at
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
_state: dict = {}


def worker_count(settings: Settings) -> int:
    """Return how many processes to run; one for large models or an accelerator."""
    if settings.workers:
        return settings.workers
    if settings.given or _on_accelerator():
        return 1
    return len(os.sched_getaffinity(0))


def run(
    pending: Sequence[Step], settings: Settings, store: Store, progress: Progress
) -> None:
    """Run the pending steps; those that a broken output spoils are run again.

    Other processes, here or elsewhere, may run steps of the same workdir: what one of
    them works on is left to it, and what needs that waits.

    Args:
      pending: unfinished steps, needs before those that need them.
    """
    workers = min(worker_count(settings), len(pending))
    _prepare_environment(store.workdir, large=bool(settings.given))
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(settings, str(store.workdir), ticks, os.getpid()),
    )
    schedule = _Schedule(pool, workers, list(pending), store, progress)
    try:
        schedule.run(ticks)
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.kill()
        schedule.give_up()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Running(NamedTuple):
    step: Step
    claim: Claim


class _Schedule:
    """Which steps wait, run here, or are another process's."""

    def __init__(self, pool, workers: int, waiting: list[Step], store, progress):
        self._pool, self._workers, self._store = pool, workers, store
        self._waiting = waiting
        self._running: dict[Future, _Running] = {}
        self._look_again: dict[str, float] = {}
        self._progress = progress
        self._shown = _Shown(progress)
        self._spoiled: Counter[str] = Counter()
        self._redone: set[str] = set()

    def run(self, ticks) -> None:
        """Return when every step is finished, by whomever."""
        while self._waiting or self._running:
            self._submit()
            if self._running:
                done, _ = wait(self._running, 0.5, FIRST_COMPLETED)
            else:
                done = ()
                time.sleep(0.5)  # others do all that is left
            self._shown.update(ticks, self._running.values())
            for future in done:
                self._settle(future)
            if preemption.asked():
                self._stop()

    def _stop(self) -> None:
        """Let the workers save the step of training that each is at, and end.

        Raises:
          Preempted: always.
        """
        for worker in multiprocessing.active_children():
            worker.terminate()
        wait(self._running, SAVING)
        raise Preempted("stopped by SIGTERM")

    def give_up(self) -> None:
        """Tell the others that they may go on with what was running here."""
        for step, claim in self._running.values():
            claim.give_up("stopped", step.name)

    def _submit(self) -> None:
        unfinished = {s.key for s in self._waiting}
        unfinished |= {step.key for step, _ in self._running.values()}
        ready = [s for s in self._waiting if not unfinished & {n.key for n in s.needs}]
        for step in sorted(ready, key=_rank):
            # One waiting job is enough to keep the workers busy. The order of the rest
            # can still change, and others may take them.
            if len(self._running) > self._workers:
                return
            if self._look_again.get(step.key, 0.0) > time.monotonic():
                continue
            if self._store.finished(step):  # by another process
                self._waiting.remove(step)
                self._shown.finish(step)
                continue
            taken = self._store.take(step)
            if taken is None:
                self._look_again[step.key] = time.monotonic() + LOOK_AGAIN
                continue
            claim, folder = taken
            self._waiting.remove(step)
            future = self._pool.submit(_run_in_worker, step, folder)
            self._running[future] = _Running(step, claim)

    def _settle(self, future: Future) -> None:
        step, claim = self._running.pop(future)
        try:
            future.result()
        except Broken as broken:
            claim.give_up("stopped", str(broken))
            self._do_again(step, broken)
        except Lost:
            self._shown.restart(step)
            self._waiting.insert(0, step)
        except Preempted:
            claim.give_up("stopped", "stopped by SIGTERM")
            raise
        except Exception as error:
            lost = not claim.held()
            first_line = (str(error) or repr(error)).splitlines()[0]
            claim.give_up("failed", first_line)
            if lost:  # its files were moved away under it
                self._shown.restart(step)
                self._waiting.insert(0, step)
                return
            if isinstance(error, UserError):
                raise UserError(f"{step.name}: {error}") from error
            raise
        else:
            claim.finish()
            self._shown.finish(step)

    def _do_again(self, step: Step, broken: Broken) -> None:
        self._spoiled[step.key] += 1
        if self._spoiled[step.key] > RETRIES:
            raise broken
        self._shown.restart(step)
        self._waiting.insert(0, step)
        redo = _spoiled(step, broken.key)
        # Several steps may find the same one broken; it is redone once.
        if redo.key not in self._redone:
            self._redone.add(redo.key)
            self._progress.message(f"warning: {broken}; doing that step again")
            self._store.discard(redo)
            self._shown.counted.pop(redo.key, None)
            self._progress.total += redo.cost
            self._waiting.insert(0, redo)


def _rank(step: Step) -> tuple:
    """Long chains first: a sweep ends when its slowest model does."""
    order = ("data", "pretrain", "instruct", "given")
    kind = order.index(step.kind) if step.kind in order else len(order)
    return kind, -step.cost


def _spoiled(step: Step, key: str) -> Step:
    candidates = [step, *step.needs]
    return next(s for s in candidates if s.key == key)


class _Shown:
    """Keeps the progress bar at the sum of the running steps' shares."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.counted: dict[str, float] = {}

    def update(self, ticks, running: Iterable[_Running]) -> None:
        latest: dict[str, tuple[float, float, str]] = {}
        while True:
            try:
                key, cost, share, note = ticks.get_nowait()
            except queue.Empty:
                break
            latest[key] = (cost, share, note)
        for step, claim in running:
            if step.key in latest:
                claim.tell(*latest[step.key][1:])
        for key, (cost, share, note) in latest.items():
            # A late tick must not take back what is finished.
            if cost * share > self.counted.get(key, 0.0):
                self._count(key, cost * share, note)
        self.progress.tick()

    def finish(self, step: Step) -> None:
        self._count(step.key, step.cost, step.name)

    def restart(self, step: Step) -> None:
        self._count(step.key, 0.0, step.name)

    def _count(self, key: str, amount: float, note: str) -> None:
        more = amount - self.counted.get(key, 0.0)
        if more:
            self.counted[key] = amount
            self.progress.advance(more, note)


def _prepare_environment(workdir: Path, *, large: bool) -> None:
    """Set what XLA reads when a worker starts."""
    if not _on_accelerator():
        flags = os.environ.get("XLA_FLAGS", "")
        if not large and ONE_THREAD not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
    # Every worker, and every start, compiles the same few programs.
    cache = str(workdir / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _on_accelerator() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/accel0"))


def _start_worker(settings: Settings, workdir: str, ticks, parent: int) -> None:
    # Ctrl-C goes to the whole group: the parent ends the workers itself. And if the
    # parent is killed outright, they must not go on alone (PR_SET_PDEATHSIG).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    preemption.watch()
    _state.update(settings=settings, store=Store(Path(workdir)), ticks=ticks)


def _run_in_worker(step: Step, folder: Path) -> None:
    from merging.sweep import work

    ticks = _state["ticks"]

    def tick(share: float, note: str = "") -> None:
        ticks.put((step.key, step.cost, share, note or step.name))
        # A training looks itself, after it has saved its step.
        if step.kind in ("data", "merge") or not share:
            preemption.raise_if_asked()

    work.execute(step, _state["settings"], _state["store"], folder, tick)
