"""The trials of a search: asked of Optuna, kept as lines, asked again after a stop.

The study lives in memory. After a stop it is asked for the same trials again, in the
same order with the same seed, and told what their lines say: a search that was killed
goes on with the very trials that it would have made. Optuna's own storages would keep
less: they hold CMA-ES's state as a pickle, and know no order of asking.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime import processes
from merging.runtime.errors import UserError
from merging.sweep.space import Dimension, Space, grid_points

LEARNING = ("tpe", "cmaes")  # ask by what they were told
SAMPLERS = (*LEARNING, "grid", "random")


class Trial(NamedTuple):
    """A finished trial.

    Attributes:
      number: from 0, in the order of asking.
      point: {dimension's label: number}.
      value: the objective.
      line: all that is kept of it.
    """

    number: int
    point: dict[str, float]
    value: float
    line: dict[str, Any]


Evaluate = Callable[[Sequence[tuple[int, dict[str, float]]]], Iterator[dict[str, Any]]]


def search(
    found: Space,
    evaluate: Evaluate,
    *,
    sampler: str,
    trials: int,
    batch: int,
    workers: int,
    seed: int,
    points: int,
    begin: Sequence[Mapping[str, float]],
    kept: Mapping[int, Mapping[str, Any]],
) -> Iterator[Trial]:
    """Yield all trials in their order, those that are kept without evaluating them.

    Args:
      found: the space.
      evaluate: ``[(number, point)] -> lines``, each with its `value`, in that order.
      sampler: one of `SAMPLERS`.
      trials: how many; a grid has as many as it has points.
      batch: asked for at a time, before any of them is known.
      workers: that evaluate at once. Of a grid, or at random, they are all asked: what
        is asked next does not depend on what is known.
      seed: of the sampler.
      points: of a grid, in each dimension.
      begin: points to try first.
      kept: {number: line} of earlier starts.

    Raises:
      UserError: a kept trial is not what is asked for.
    """
    import optuna

    study = _study(found, sampler, seed, batch)
    if sampler == "grid":
        begin = grid_points(found, points)
        trials = len(begin)
    for point in begin:
        study.enqueue_trial(dict(point))
    together = batch if sampler in LEARNING else max(batch, workers)
    ranges = {d.label: _distribution(d) for d in found.dimensions}
    for first in range(0, trials, together):
        asked = [study.ask(ranges) for _ in range(min(together, trials - first))]
        # Process 0's: another's last bits may differ, and a merge is of all of them.
        points = processes.broadcast(
            lambda asked=asked: [dict(t.params) for t in asked]
        )
        pairs = list(zip(asked, points, strict=True))
        new = [(t.number, point) for t, point in pairs if t.number not in kept]
        lines = evaluate(new) if new else iter(())
        for trial, point in pairs:
            line = kept.get(trial.number) or next(lines)
            if line["point"] != point:
                raise UserError(
                    f"trial {trial.number} of this workdir is not what Optuna "
                    f"{optuna.__version__} proposes now: choose another --workdir."
                )
            study.tell(trial, line["value"])
            yield Trial(trial.number, point, line["value"], dict(line))


def _distribution(one: Dimension) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if one.whole:
        return IntDistribution(int(one.low), int(one.high))
    return FloatDistribution(one.low, one.high)


def _study(found: Space, sampler: str, seed: int, batch: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = optuna.samplers
    with warnings.catch_warnings():
        # Options that Optuna calls experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler == "tpe":
            chosen = samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=batch > 1
            )
        elif sampler == "cmaes":
            chosen = samplers.CmaEsSampler(seed=seed)
        else:
            chosen = samplers.RandomSampler(seed=seed)
        return optuna.create_study(sampler=chosen, direction="maximize")


class Lines:
    """Records in a file, a line of JSON each; one that was torn by a kill is dropped.

    Of several processes the first reads and writes; all have the same records.

    Args:
      path: the file.
      keys: that every record has.

    Raises:
      UserError: a line that is none.
    """

    def __init__(self, path: Path, *keys: str):
        self._path = path
        self.read: list[dict[str, Any]] = processes.broadcast(
            lambda: _records(path, keys)
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one record, and see it stored."""
        self.read.append(dict(record))
        if not processes.is_first():
            return
        with open(self._path, "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _records(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records of a file, and cut off what a kill has torn."""
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(path, len(whole))
    found: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines()):
        try:
            found.append(dict(json.loads(line)))
            if not found[-1].keys() >= {*keys}:
                raise ValueError(line)
        except (ValueError, TypeError, RecursionError):
            raise UserError(
                f"{path}:{number + 1} is no line of a search; choose another --workdir."
            ) from None
    return found
