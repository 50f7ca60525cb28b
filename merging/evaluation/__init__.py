"""What a model scores on tasks, from functions that score and generate.

Rows of all datasets that ask for the same kind of call share batches of a fixed size,
padded to few shapes. All choices of a prompt are one row, behind a prompt that is
computed once.
"""

import collections
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from merging.evaluation.fitting import fit
from merging.evaluation.preparing import Prepared, prepare
from merging.evaluation.questions import lengths
from merging.evaluation.shapes import Shape, Shapes, chosen_shapes
from merging.tasks import EvalSet, load, load_suite
from merging.tasks.metrics import MEASURES

__all__ = [
    "EvalSet",
    "Output",
    "Predict",
    "Prepared",
    "Score",
    "Shape",
    "Shapes",
    "chosen_shapes",
    "counts",
    "evaluate",
    "fit",
    "lengths",
    "load",
    "load_suite",
    "outputs",
    "prepare",
]

AHEAD = 32  # batches under way: the device never waits, and memory is bounded


class Predict(Protocol):
    """A model bound to its parameters, as far as evaluation knows it.

    A row is ``openers`` [B], then ``tokens`` [B, T], int32 ids padded on the right with
    0, of which the first ``lengths`` [B] are the prompt.
    """

    def score(self, openers, tokens, lengths, firsts, owners, targets) -> Any:
        """Return [B, C], log p of each continuation of each prompt.

        ``firsts`` [B, C] has their first tokens. A longer one's tokens but the last
        stand in ``tokens`` behind the prompt, one continuation after the other; for
        the m-th of these, ``owners`` [B, M] has the number of its continuation (-1:
        padding) and ``targets`` [B, M] the token that follows it.
        """

    def generate(self, openers, tokens, lengths, max_new_tokens, eos_id) -> Any:
        """Return the greedy continuation [B, max_new_tokens], 0 after ``eos_id``."""


class Score(NamedTuple):
    """A dataset's value of one metric, in 0..1, and the number of examples."""

    dataset: str
    metric: str
    value: float
    examples: int


class Output(NamedTuple):
    """What a model says to a set of M rows.

    Attributes:
      said: for a ranked set float32 [M], the log-likelihood of each row's choice;
        otherwise the M postprocessed texts.
      alone: float32 [M], that of the choice behind the opening token alone; None if no
        metric of the set asks for it.
    """

    said: Any
    alone: np.ndarray | None = None


def evaluate(
    eval_sets: Sequence[EvalSet] | Prepared,
    predict: Predict,
    *,
    batch_size: int = 256,
    sharding: Any = None,
) -> list[Score]:
    """Return the scores of a model, set by set, metric by metric.

    Rank classification takes the choice of the highest summed log-likelihood, ties
    the first; generation is greedy. The values depend neither on the batch size nor
    on the order or company of the sets.

    Args:
      eval_sets: sets, or what ``prepare`` made of them, for many models.
      predict: the model.
      batch_size, sharding: as in ``prepare``, which ignores them for ``Prepared``.

    Raises:
      UserError: as ``prepare``.
    """
    if not isinstance(eval_sets, Prepared):
        eval_sets = prepare(eval_sets, batch_size=batch_size, sharding=sharding)
    scores = []
    answers = outputs(eval_sets, predict)
    for eval_set, output in zip(eval_sets.eval_sets, answers, strict=True):
        for metric in eval_set.metrics:
            found = metric(eval_set.targets, _judged(metric.__name__, output))
            for name, value in found.items():
                score = Score(eval_set.dataset, name, float(value), eval_set.examples)
                scores.append(score)
    return scores


def counts(eval_set: EvalSet, output: Output) -> dict[str, np.ndarray]:
    """Return ``{metric: [N, k]}``, what each example adds, for the set's metrics.

    See ``merging.tasks.metrics.MEASURES``; metrics that are not there are left out.
    """
    names = [metric.__name__ for metric in eval_set.metrics]
    return {
        name: MEASURES[name].counts(eval_set.targets, _judged(name, output))
        for name in names
        if name in MEASURES
    }


def outputs(
    prepared: Prepared, predict: Predict, tick: Callable[[], None] | None = None
) -> list[Output]:
    """Return what a model says, in the order of the sets.

    Args:
      prepared: the sets.
      predict: the model.
      tick: called after every batch; what it raises ends the work.
    """
    tables = [job.table.copy() for job in prepared.jobs]
    pending: collections.deque = collections.deque()

    def collect() -> None:
        table, batch, result = pending.popleft()
        found = _to_host(result)[: len(batch.rows)]
        table[batch.rows, : found.shape[1]] = found
        if tick is not None:
            tick()

    begun = _compiled_together(prepared, predict)
    for job, table in zip(prepared.jobs, tables, strict=True):
        for batch in job.batches:
            result = begun.pop(id(batch), None)
            if result is None:
                result = job.call(predict, *batch.arrays)
            pending.append((table, batch, result))
            if len(pending) > AHEAD:
                collect()
    while pending:
        collect()
    answers = []
    for eval_set, where in zip(prepared.eval_sets, prepared.where, strict=True):
        found = tables[where.job][where.rows]
        if not eval_set.ranked:
            texts = [eval_set.decode(ids) for ids in found.tolist()]
            found = [eval_set.postprocess(row, text) for row, text in enumerate(texts)]
        alone = None if where.alone is None else tables[where.job][where.alone]
        answers.append(Output(found, alone))
    return answers


def _compiled_together(prepared: Prepared, predict: Predict) -> dict[int, Any]:
    """Return {id: result} of the first batch of every shape, all called at once.

    Compiling keeps one core busy, and there is a program for each shape. Only where
    the batches are on the host: programs that are spread over devices must start in
    the same order everywhere.
    """
    firsts: dict[tuple, tuple] = {}
    for job in prepared.jobs:
        for batch in job.batches:
            if not isinstance(batch.arrays[0], np.ndarray):
                return {}
            shape = (id(job), *(array.shape for array in batch.arrays))
            firsts.setdefault(shape, (job, batch))
    with ThreadPoolExecutor(min(len(firsts), os.cpu_count() or 1)) as threads:
        started = {
            id(batch): threads.submit(job.call, predict, *batch.arrays)
            for job, batch in firsts.values()
        }
        return {batch: call.result() for batch, call in started.items()}


def _judged(metric: str, output: Output) -> Any:
    """Return what a metric judges."""
    if metric in MEASURES and MEASURES[metric].unconditional:
        return output.said - output.alone
    return output.said


def _to_host(array: Any) -> np.ndarray:
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)
