"""What a model makes of requests: log-likelihoods of choices, and texts."""

import collections
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from merging.evaluation.batches import Batch, Batches
from merging.evaluation.requests import TemplateRequests
from merging.runtime.sharding import to_host

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

    def generate(self, prefixes, tokens, lengths, max_new_tokens, end_ids, /) -> Any:
        """Return the greedy continuation [B, max_new_tokens].

        It is 0 after the first of ``end_ids``, a tuple.
        """


class Prediction(NamedTuple):
    """What a model makes of a set of M rows.

    Attributes:
      outputs: for a ranked set, or of references, float32 [M], the log-likelihood of
        each row's choice; otherwise the M postprocessed texts.
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
    table = answers(batches, predictor, tick)
    ends = np.cumsum([len(one.requests) for one in batches.sets])
    parts = np.split(table, ends[:-1])
    return [_prediction(*pair) for pair in zip(batches.sets, parts, strict=True)]


def answers(
    batches: Batches,
    predictor: Predictor,
    tick: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Return a model's answers [R, width] to all requests, sets one after the other.

    To one to score what `score` returns of it, to one to generate its token ids; 0 in
    what is left of a row.

    Args:
      batches, predictor, tick: as of `predict`; `score` may return further columns.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    pending: collections.deque = collections.deque()

    def collect() -> None:
        batch, result = pending.popleft()
        found.append((batch.requests, to_host(result)[: len(batch.requests)]))
        if tick is not None:
            tick(batch.tokens)

    begun = _compiled_together(batches, predictor)
    for number, batch in enumerate(batches.batches):
        result = begun.pop(number, None)
        pending.append((batch, _call(predictor, batch) if result is None else result))
        if len(pending) > AHEAD:
            collect()
    while pending:
        collect()
    width = max(part.shape[1] for _, part in found)
    # Log-likelihoods and token ids alike are exact in float64.
    table = np.zeros((sum(len(one.requests) for one in batches.sets), width))
    for numbers, part in found:
        table[numbers, : part.shape[1]] = part
    return table


def _prediction(one: TemplateRequests, table: np.ndarray) -> Prediction:
    """Return a set's predictions from the answers to its requests [R, width]."""
    if one.answers is None:
        ids = table[:, : one.eval_set.max_new_tokens].astype(int).tolist()
        texts = enumerate(map(one.eval_set.decode, ids))
        return Prediction([one.eval_set.postprocess(row, text) for row, text in texts])
    alone = one.unconditional
    scores = table.astype(np.float32)
    return Prediction(scores[one.answers], None if alone is None else scores[alone])


def _call(predictor: Predictor, batch: Batch) -> Any:
    call = predictor.generate if batch.call else predictor.score
    return call(*batch.arrays, *batch.call)


def _compiled_together(batches: Batches, predictor: Predictor) -> dict[int, Any]:
    """Return {number: result} of the first batch of every shape, all called at once.

    Compiling keeps one core busy, and there is a program for each shape. Only where
    the batches are on the host: programs that are spread over devices must start in
    the same order everywhere.
    """
    firsts: dict[tuple, int] = {}
    for number, batch in enumerate(batches.batches):
        if not isinstance(batch.arrays[0], np.ndarray):
            return {}
        shape = (batch.call, *(array.shape for array in batch.arrays))
        firsts.setdefault(shape, number)
    with ThreadPoolExecutor(min(len(firsts), os.cpu_count() or 1)) as threads:
        calls = {
            number: threads.submit(_call, predictor, batches.batches[number])
            for number in firsts.values()
        }
        return {number: call.result() for number, call in calls.items()}
