"""The `ray` runner: steps of a sweep as tasks of a Ray cluster, a search's as actors.

One driver, which owns the workdir, and as many tasks as the cluster has room for. The
workdir is on storage that every node sees, and what a step leaves there is all that
counts: a task whose node dies is run again by Ray, elsewhere, and a step of training
goes on from its last checkpoint. A driver that dies takes its tasks with it, and the
next one finds every step that was finished.

A search's workers hold its models, so they are actors: one whose node dies is started
again by Ray, and reads the models again. Ray is imported when it is asked for, and not
before.
"""

import functools
import itertools
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from merging.runtime import preemption
from merging.runtime.errors import UserError
from merging.sweep.experiment import Experiment
from merging.sweep.pool import Ticks, one_thread, order, travelling
from merging.sweep.steps import Step
from merging.sweep.store import Store

# Of a step, or an actor, after which its own work is taken to be what kills workers.
STARTS = 10
WAIT = 0.5  # seconds for a step to end
_ACCELERATORS = ("GPU", "TPU")


def connect(resources: Mapping[str, float]) -> int:
    """Join the cluster of RAY_ADDRESS, or of this machine, or start one on it.

    Args:
      resources: {name: number} that a step needs of a node.

    Returns:
      How many steps it has room for at a time.

    Raises:
      UserError: Ray is not installed, or no node has what a step needs.
    """
    ray = _ray()
    needs = {name: need for name, need in resources.items() if need}
    if not ray.is_initialized():
        accelerated = any(needs.get(name) for name in _ACCELERATORS)
        variables = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        if not accelerated and needs.get("CPU", 1) <= 1:
            variables |= one_thread()
        try:
            ray.init(
                runtime_env={"env_vars": variables},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ConnectionError as error:
            raise UserError(
                f"there is no Ray cluster to join ({_last_line(error)}): start one"
                " (`ray start --head`), or unset RAY_ADDRESS to run on this machine."
            ) from error
    largest = {name: 0.0 for name in needs}
    for node in ray.nodes():
        for name in needs if node["Alive"] else ():
            largest[name] = max(largest[name], node["Resources"].get(name, 0.0))
    lacking = [name for name, need in needs.items() if largest[name] < need]
    if lacking:
        text = ", ".join(f"{needs[n]:g} {n} (most: {largest[n]:g})" for n in lacking)
        raise UserError(
            f"no node of the Ray cluster has what a step needs: {text}; change"
            " --config.resources, or add such nodes."
        )
    return _room(ray, needs)


class Tasks:
    """Steps as Ray tasks, for `runners.run`.

    Attributes:
      begun: keys of steps that have started.
    """

    def __init__(self, experiment: Experiment, store: Store, workers: int):
        self._ray = ray = _ray()
        self._needs = {k: need for k, need in experiment.resources.items() if need}
        self._given = ray.put((experiment, store))
        here = ray.get_runtime_context().get_node_id()
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        self._board = (
            ray.remote(_Board)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=pinned(here, soft=True),
            )
            .remote()
        )
        self._task = ray.remote(
            **_taken(self._needs),
            max_retries=-1,
            # An accelerator is free again only when the process has ended.
            max_calls=1 if set(self._needs) & set(_ACCELERATORS) else 0,
        )(_run_step)
        self._steps: dict[str, Step] = {}
        self._references: dict[Future, Any] = {}
        self.begun: set[str] = set()

    def __enter__(self) -> "Tasks":
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()
        self._ray.kill(self._board)

    @property
    def workers(self) -> int:
        """How many steps the cluster, as it is now, has room for."""
        return _room(self._ray, self._needs)

    def rank(self, step: Step) -> tuple:
        """Return its place: long chains first."""
        return order(step)

    def asked(self) -> bool:
        """Return whether to stop."""
        return preemption.asked()

    def agreed(self, step: Step) -> bool:
        """Return whether the rest may go on when a step has failed."""
        return True

    def submit(self, step: Step) -> Future:
        """Have the cluster run a step where there is room."""
        self._steps[step.key], future = step, Future()
        self._references[future] = self._task.options(name=step.name).remote(
            self._given, step, self._board
        )
        return future

    def done(self, running: Mapping[Future, Step], update) -> Iterator[Future]:
        """Yield what has ended, after a short wait; tell how far the rest is."""
        futures = {self._references[future]: future for future in running}
        ended, _ = self._ray.wait(list(futures), num_returns=1, timeout=WAIT)
        latest, starts = self._ray.get(self._board.take.remote())
        update(latest, [self._steps[key] for key in latest])
        self.begun |= starts.keys()
        for reference in ended:
            yield self._settled(futures.pop(reference), reference)
        # What was yielded is gone from `running`; the rest is still at work.
        for reference, future in futures.items():
            if starts.get(running[future].key, 0) > STARTS:
                self._ray.cancel(reference, force=True)
                del self._references[future]
                future.set_exception(
                    UserError(
                        f"its worker died {STARTS} times; most often memory runs out:"
                        " give a step more (--config.resources=CPU=2)."
                    )
                )
                yield future

    def stop(self, running: Iterable[Future]) -> None:
        """End all tasks; what was trained is as of its last checkpoint."""
        self._cancel()

    def _settled(self, future: Future, reference: Any) -> Future:
        del self._references[future]
        try:
            error = self._ray.get(reference)
        except self._ray.exceptions.RayError as lost:
            error = RuntimeError(_last_line(lost))
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(pickle.loads(error) if type(error) is bytes else error)
        return future

    def _cancel(self) -> None:
        for reference in self._references.values():
            self._ray.cancel(reference, force=True)
        self._references.clear()


class Actors:
    """Workers that each make something once, and answer from it again and again.

    Args:
      make: called in each worker; what it returns has the methods to be called.
      resources: {name: number} that a worker takes of a node until it ends.
      most: workers, if the cluster has room for them.
    """

    def __init__(
        self, make: Callable[[], Any], resources: Mapping[str, float], most: int
    ):
        self._ray = ray = _ray()
        needs = {name: need for name, need in resources.items() if need}
        actor = ray.remote(
            **_taken(needs), max_restarts=STARTS - 1, max_task_retries=-1
        )(_Actor)
        count = min(_room(ray, needs), most)
        self._actors = [actor.remote(make) for _ in range(count)]

    def map(self, method: str, items: Iterable[Any]) -> Iterator[Any]:
        """Yield what a method of theirs returns of each item, in order.

        Raises:
          UserError: a worker died again and again.
        """
        # Trials take as long as each other: whoever has fewest is next in turn.
        turns = zip(itertools.cycle(self._actors), items, strict=False)
        asked = [actor.answer.remote(method, item) for actor, item in turns]
        try:
            for answer in map(self._ray.get, asked):
                if type(answer) is bytes:
                    raise pickle.loads(answer)
                yield answer
        except self._ray.exceptions.RayError as lost:
            raise UserError(
                f"a worker died {STARTS} times ({_last_line(lost)}); most often memory"
                " runs out: give one more (--config.resources=CPU=2). What is finished "
                "is kept."
            ) from lost

    def __enter__(self) -> "Actors":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)


class _Actor:
    """One of `Actors`; an error is answered pickled, as Ray would wrap it."""

    def __init__(self, make: Callable[[], Any]):
        # Made by the first call, whose error the driver then hears.
        self._made = functools.cache(make)

    def answer(self, method: str, item: Any) -> Any:
        try:
            return getattr(self._made(), method)(item)
        except Exception as error:
            return pickle.dumps(travelling(error))


class _Board:
    """An actor on the driver's node: how far the steps are, and who has begun."""

    def __init__(self):
        self._latest: Ticks = {}
        self._starts: Counter[str] = Counter()

    def start(self, key: str) -> None:
        self._starts[key] += 1

    def tell(self, key: str, share: float, note: str) -> None:
        self._latest[key] = (share, note)

    def take(self) -> tuple[Ticks, dict[str, int]]:
        latest, self._latest = self._latest, {}
        return latest, dict(self._starts)


def _run_step(given: tuple[Experiment, Store], step: Step, board: Any) -> bytes | None:
    """Run a step in one of Ray's processes; return its error, which Ray would wrap."""
    experiment, store = given
    experiment.load_methods()
    from merging.sweep import runners, work

    def tick(share: float, note: str = "") -> None:
        board.tell.remote(step.key, share, note or step.name)

    board.start.remote(step.key)
    try:
        work.execute(step, experiment, store, tick, runners.devices(experiment))
    except Exception as error:
        return pickle.dumps(travelling(error))
    return None


def _taken(needs: Mapping[str, float]) -> dict[str, Any]:
    """Return what Ray is to be told that a task or an actor takes of a node."""
    return {
        "num_cpus": needs.get("CPU", 0),
        "num_gpus": needs.get("GPU", 0),
        "resources": {k: n for k, n in needs.items() if k not in ("CPU", "GPU")},
    }


def _room(ray: Any, needs: Mapping[str, float]) -> int:
    """Return how many steps the living nodes have room for together, at least one."""
    room = 0
    for node in ray.nodes():
        if node["Alive"] and needs:
            have = node["Resources"]
            room += min(
                int(have.get(name, 0.0) // need) for name, need in needs.items()
            )
    return max(room, 1)


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UserError(
            "the ray runner needs Ray: pip install 'merging[ray]' (on every node)."
        ) from error
    return ray


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
