"""Run steps in worker processes, each as soon as what it needs is finished.

On CPUs one single-threaded process per core does far more than one process with many
threads, since small models leave nothing to share out inside an operation.
"""

import ctypes
import multiprocessing
import os
import queue
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from merging.errors import UserError
from merging.sweep.settings import Settings
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store
from merging.telemetry import Progress

RETRIES = 5  # of a step whose needs turn out broken
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
_state: dict = {}


def worker_count(settings: Settings) -> int:
    """Return how many processes to run; one where there is an accelerator."""
    if settings.workers:
        return settings.workers
    if _on_accelerator():
        return 1
    return len(os.sched_getaffinity(0))


def run(
    pending: Sequence[Step], settings: Settings, store: Store, progress: Progress
) -> None:
    """Run the pending steps; those that a broken output spoils are run again.

    Args:
      pending: unfinished steps, needs before those that need them.
    """
    _prepare_environment(store.workdir)
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    workers = min(worker_count(settings), len(pending))
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(settings, str(store.workdir), ticks, os.getpid()),
    )
    try:
        _schedule(pool, workers, list(pending), store, progress, ticks)
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _schedule(pool, workers: int, waiting: list[Step], store, progress, ticks):
    running: dict[Future, Step] = {}
    shown = _Shown(progress)
    spoiled: Counter[str] = Counter()
    redone: set[str] = set()
    while waiting or running:
        unfinished = {s.key for s in waiting} | {s.key for s in running.values()}
        ready = [s for s in waiting if not unfinished & {n.key for n in s.needs}]
        # One waiting job per worker is enough to keep it busy; the order of the rest
        # can still change.
        room = 2 * workers - len(running)
        for step in sorted(ready, key=_rank)[: max(0, room)]:
            waiting.remove(step)
            running[pool.submit(_run_in_worker, step)] = step
        done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
        shown.update(ticks)
        for future in done:
            step = running.pop(future)
            try:
                future.result()
            except Broken as broken:
                spoiled[step.key] += 1
                if spoiled[step.key] > RETRIES:
                    raise
                shown.restart(step)
                waiting.insert(0, step)
                redo = _spoiled(step, broken.key)
                # Several steps may find the same one broken; it is redone once.
                if redo.key not in redone:
                    redone.add(redo.key)
                    progress.message(f"warning: {broken}; doing that step again")
                    store.discard(redo)
                    shown.counted.pop(redo.key, None)
                    progress.total += redo.cost
                    waiting.insert(0, redo)
                continue
            except UserError as error:
                raise UserError(f"{step.name}: {error}") from error
            shown.finish(step)


def _rank(step: Step) -> tuple:
    """Long chains first: a sweep ends when its slowest model does."""
    order = ("data", "pretrain", "instruct")
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

    def update(self, ticks) -> None:
        latest: dict[str, tuple[float, float, str]] = {}
        while True:
            try:
                key, cost, share, note = ticks.get_nowait()
            except queue.Empty:
                break
            latest[key] = (cost, share, note)
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


def _prepare_environment(workdir: Path) -> None:
    """Set what XLA reads when a worker starts."""
    if not _on_accelerator():
        flags = os.environ.get("XLA_FLAGS", "")
        if ONE_THREAD not in flags:
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
    _state.update(settings=settings, store=Store(Path(workdir)), ticks=ticks)


def _run_in_worker(step: Step) -> None:
    from merging.sweep import work

    ticks = _state["ticks"]

    def tick(share: float, note: str = "") -> None:
        ticks.put((step.key, step.cost, share, note or step.name))

    work.execute(step, _state["settings"], _state["store"], tick)
