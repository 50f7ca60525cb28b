"""What a model makes of requests: log-likelihoods of choices, and texts."""

import collections
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from merging.evaluation.batches import Batches, Calls
from merging.evaluation.requests import Answers, TemplateRequests

AHEAD = 32  # batches under way: the device never waits, and memory is bounded


class Predictor(Protocol):
    """A model bound to its parameters, as far as evaluation knows it.

    A row is one of ``prefixes`` [B], then ``tokens`` [B, T], int32 ids padded on the
    right with 0, of which the first ``lengths`` [B] are the prompt.
    """

    def score(self, prefixes, tokens, lengths, firsts, segments, targets, /) -> Any:
        """Return [B, C], log p of each continuation of each prompt.

        ``firsts`` [B, C] has their first tokens. A longer one's tokens but the last
        stand in ``tokens`` behind the prompt, one continuation after the other; for
        the m-th of these, ``segments`` [B, M] has the number of its continuation (-1:
        padding) and ``targets`` [B, M] the token that follows it.
        """

    def generate(self, prefixes, tokens, lengths, max_new_tokens, eos_id, /) -> Any:
        """Return the greedy continuation [B, max_new_tokens], 0 after ``eos_id``."""


class Prediction(NamedTuple):
    """What a model makes of a set of M rows.

    Attributes:
      outputs: for a ranked set float32 [M], the log-likelihood of each row's choice;
        otherwise the M postprocessed texts.
      unconditional: float32 [M], that of the choice behind the prefix token alone; None
        if no metric of the set asks for it.
    """

    outputs: Any
    unconditional: np.ndarray | None = None


def predict(
    batches: Batches,
    predictor: Predictor,
    tick: Callable[[float], None] | None = None,
) -> list[Prediction]:
    """Return a model's predictions, in the order of the sets.

    Args:
      batches: from `prepare`.
      predictor: the model.
      tick: called after every batch with its tokens; what it raises ends the work.
    """
    tables = [np.zeros(*calls.answers) for calls in batches.calls]
    pending: collections.deque = collections.deque()

    def collect() -> None:
        table, batch, result = pending.popleft()
        answers = _to_host(result)[: len(batch.rows)]
        table[batch.rows, : answers.shape[1]] = answers
        if tick is not None:
            tick(batch.tokens)

    begun = _compiled_together(batches, predictor)
    for calls, table in zip(batches.calls, tables, strict=True):
        for batch in calls.batches:
            result = begun.pop(id(batch), None)
            if result is None:
                result = _call(calls, predictor, batch.arrays)
            pending.append((table, batch, result))
            if len(pending) > AHEAD:
                collect()
    while pending:
        collect()
    found: dict[int, Prediction] = {}
    for calls, table in zip(batches.calls, tables, strict=True):
        first = 0
        for number in calls.members:
            one = batches.sets[number]
            found[number] = _prediction(one, table[first : first + len(one.requests)])
            first += len(one.requests)
    return [found[number] for number in range(len(batches.sets))]


def _prediction(one: TemplateRequests, table: np.ndarray) -> Prediction:
    """Return a set's predictions from the answers to its requests."""
    if one.eval_set.ranked:
        alone = one.unconditional
        unconditional = None if alone is None else _pick(table, alone)
        return Prediction(_pick(table, one.answers), unconditional)
    texts = [one.eval_set.decode(ids) for ids in table[one.answers.requests].tolist()]
    made = [one.eval_set.postprocess(row, text) for row, text in enumerate(texts)]
    return Prediction(made)


def _pick(table: np.ndarray, answers: Answers) -> np.ndarray:
    return table[answers.requests, answers.choices]


def _call(calls: Calls, predictor: Predictor, arrays: tuple[Any, ...]) -> Any:
    call = predictor.generate if calls.call else predictor.score
    return call(*arrays, *calls.call)


def _compiled_together(batches: Batches, predictor: Predictor) -> dict[int, Any]:
    """Return {id: result} of the first batch of every shape, all called at once.

    Compiling keeps one core busy, and there is a program for each shape. Only where
    the batches are on the host: programs that are spread over devices must start in
    the same order everywhere.
    """
    firsts: dict[tuple, tuple] = {}
    for calls in batches.calls:
        for batch in calls.batches:
            if not isinstance(batch.arrays[0], np.ndarray):
                return {}
            shape = (calls.call, *(array.shape for array in batch.arrays))
            firsts.setdefault(shape, (calls, batch))
    with ThreadPoolExecutor(min(len(firsts), os.cpu_count() or 1)) as threads:
        started = {
            id(batch): threads.submit(_call, calls, predictor, batch.arrays)
            for calls, batch in firsts.values()
        }
        return {batch: call.result() for batch, call in started.items()}


def _to_host(array: Any) -> np.ndarray:
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)
