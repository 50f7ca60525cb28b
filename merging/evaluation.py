"""What a model scores on tasks, from functions that score and generate.

Rows of all datasets that ask for the same kind of call share batches: sorted by
length, cut into a fixed batch size, padded to a multiple of 16 tokens. Many
small datasets cost little more than one large, and few shapes are compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from merging.errors import UserError
from merging.tasks import EvalSet, load, load_suite

__all__ = [
    "EvalSet",
    "Predict",
    "Prepared",
    "Score",
    "evaluate",
    "load",
    "load_suite",
    "outputs",
    "prepare",
]

LENGTHS = 16  # batches are padded to a multiple of this many tokens


class Predict(Protocol):
    """A model bound to its parameters, as far as evaluation knows it.

    Tokens are int32 ids [B, T] without BOS, padded on the right with 0; a row's real
    tokens are the first ``lengths`` [B].
    """

    def score(self, tokens, prompt_lengths, lengths) -> Any:
        """Return [B], the sum of log p of ``tokens[prompt_length:length]``."""

    def score_choices(self, tokens, lengths, choices) -> Any:
        """Return [B, C], log p of ``choices`` [B, C] as the token after the prompt."""

    def generate(self, tokens, lengths, max_new_tokens: int, eos_id: int) -> Any:
        """Return the greedy continuation [B, max_new_tokens], 0 after ``eos_id``."""


class Score(NamedTuple):
    """A dataset's value of one metric, in 0..1, and the number of examples."""

    dataset: str
    metric: str
    value: float
    examples: int


class Prepared(NamedTuple):
    """Evaluation sets cut into batches once, to be evaluated with many models."""

    eval_sets: tuple[EvalSet, ...]
    jobs: tuple["_Job", ...]


class _Job(NamedTuple):
    """Batches of one kind of call, and where each set's rows are in the results."""

    call: Callable[..., Any]
    batches: list["_Batch"]
    sets: list[tuple[int, Any]]  # (index of the set, index into the results)


class _Batch(NamedTuple):
    rows: np.ndarray  # the job's rows, without the repeats that fill the last batch
    arrays: tuple[Any, ...]


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
    for eval_set, answer in zip(eval_sets.eval_sets, answers, strict=True):
        for metric in eval_set.metrics:
            for name, value in metric(eval_set.targets, answer).items():
                score = Score(eval_set.dataset, name, float(value), eval_set.examples)
                scores.append(score)
    return scores


def outputs(prepared: Prepared, predict: Predict) -> list[Any]:
    """Return what a model says, in the order of the sets.

    For a ranked set float32 [M], the log-likelihood of each row's choice; otherwise
    the M postprocessed texts.
    """
    # Dispatch everything before waiting for anything, so that the device is never
    # idle while the host unpacks.
    pending = [
        [job.call(predict, *batch.arrays) for batch in job.batches]
        for job in prepared.jobs
    ]
    answers: list[Any] = [None] * len(prepared.eval_sets)
    for job, results in zip(prepared.jobs, pending, strict=True):
        pairs = zip(job.batches, results, strict=True)
        parts = [_to_host(result)[: len(batch.rows)] for batch, result in pairs]
        order = np.concatenate([batch.rows for batch in job.batches])
        table = np.concatenate(parts)[np.argsort(order)]
        for i, where in job.sets:
            answers[i] = _answer(prepared.eval_sets[i], table[where])
    return answers


def prepare(
    eval_sets: Sequence[EvalSet], *, batch_size: int = 256, sharding: Any = None
) -> Prepared:
    """Cut sets into batches; do it once and evaluate many models with the result.

    Args:
      eval_sets: from ``load`` or ``load_suite``.
      batch_size: rows per call, always exactly this many.
      sharding: a ``jax.sharding.NamedSharding`` for the first axis, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``; the batches are put there now.
        By default they stay NumPy arrays and go where the model is.

    Raises:
      UserError: no sets, a batch size below 1, or one that the mesh does not divide.
    """
    if not eval_sets:
        raise UserError("no datasets to evaluate")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: needs 1 or more")
    place = _placement(batch_size, sharding)
    kinds: dict[tuple, list[int]] = {}
    for i, eval_set in enumerate(eval_sets):
        kinds.setdefault(_kind(eval_set), []).append(i)
    build = {"choices": _choices_job, "score": _score_job, "generate": _generate_job}
    jobs = [
        build[kind](list(eval_sets), members, batch_size, place, *rest)
        for (kind, *rest), members in kinds.items()
    ]
    return Prepared(tuple(eval_sets), tuple(jobs))


def _placement(batch_size: int, sharding: Any) -> Callable[[np.ndarray], Any]:
    if sharding is None:
        return lambda array: array
    import jax

    try:
        sharding.shard_shape((batch_size,))
    except ValueError as error:
        raise UserError(
            f"a batch of {batch_size} does not split evenly over {sharding}: choose "
            "a multiple of the data axis"
        ) from error
    return lambda array: jax.device_put(array, sharding)


def _kind(eval_set: EvalSet) -> tuple:
    """Return what may share batches: sets of the same kind."""
    if not eval_set.ranked:
        return "generate", eval_set.max_new_tokens, eval_set.eos_id
    first = np.searchsorted(eval_set.groups, eval_set.groups)
    one_prompt = np.array_equal(
        eval_set.prompts, eval_set.prompts[first]
    ) and np.array_equal(eval_set.prompt_lengths, eval_set.prompt_lengths[first])
    one_token = (eval_set.continuation_lengths == 1).all()
    return ("choices",) if one_prompt and one_token else ("score",)


def _choices_job(eval_sets, members, batch_size, place) -> _Job:
    """One forward for each prompt, all its one-token choices read off at once."""
    sets = [eval_sets[i] for i in members]
    firsts = [np.searchsorted(s.groups, np.arange(s.examples)) for s in sets]
    # (example, place among its choices) of each row.
    columns = [
        np.arange(len(s.groups)) - first[s.groups]
        for s, first in zip(sets, firsts, strict=True)
    ]
    width = max(int(c.max()) + 1 for c in columns)
    tables, where, offset = [], [], 0
    for i, s, column in zip(members, sets, columns, strict=True):
        table = np.zeros((s.examples, width), np.int32)
        table[s.groups, column] = s.continuations[:, 0]
        tables.append(table)
        where.append((i, (offset + s.groups, column)))
        offset += s.examples
    lengths = [s.prompt_lengths[f] for s, f in zip(sets, firsts, strict=True)]
    lengths = np.concatenate(lengths)
    tokens = _stacked([s.prompts[f] for s, f in zip(sets, firsts, strict=True)])
    extra = (lengths, np.concatenate(tables))
    batches = _batches(tokens, lengths, extra, batch_size, place)
    return _Job(lambda predict, *a: predict.score_choices(*a), batches, where)


def _score_job(eval_sets, members, batch_size, place) -> _Job:
    sets = [eval_sets[i] for i in members]
    starts = np.concatenate([s.prompt_lengths for s in sets])
    lengths = starts + np.concatenate([s.continuation_lengths for s in sets])
    tokens = np.zeros((len(lengths), lengths.max()), np.int32)
    position = np.arange(tokens.shape[1])
    prompts = _stacked([s.prompts for s in sets])
    choices = _stacked([s.continuations for s in sets])
    before = position < starts[:, None]
    tokens[before] = prompts[np.arange(prompts.shape[1]) < starts[:, None]]
    used = np.arange(choices.shape[1]) < (lengths - starts)[:, None]
    tokens[~before & (position < lengths[:, None])] = choices[used]
    batches = _batches(tokens, lengths, (starts, lengths), batch_size, place)
    where = _slices(members, [len(s.groups) for s in sets])
    return _Job(lambda predict, *a: predict.score(*a), batches, where)


def _generate_job(eval_sets, members, batch_size, place, new_tokens, eos_id) -> _Job:
    sets = [eval_sets[i] for i in members]
    lengths = np.concatenate([s.prompt_lengths for s in sets])
    tokens = _stacked([s.prompts for s in sets])
    batches = _batches(tokens, lengths, (lengths,), batch_size, place)
    where = _slices(members, [len(s.groups) for s in sets])
    return _Job(
        lambda predict, *a: predict.generate(*a, new_tokens, eos_id), batches, where
    )


def _slices(members: list[int], sizes: list[int]) -> list[tuple[int, slice]]:
    ends = np.cumsum(sizes).tolist()
    return [
        (i, slice(end - size, end))
        for i, size, end in zip(members, sizes, ends, strict=True)
    ]


def _stacked(tables: list[np.ndarray]) -> np.ndarray:
    width = max(table.shape[1] for table in tables)
    return np.concatenate(
        [np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables]
    )


def _batches(tokens, lengths, extra, batch_size: int, place) -> list[_Batch]:
    """Cut rows sorted by length; the last batch is filled with repeats of a row."""
    order = np.argsort(lengths, kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        filled = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
        width = max(-(-int(lengths[rows].max()) // LENGTHS), 1) * LENGTHS
        padded = np.zeros((batch_size, width), np.int32)
        kept = tokens[filled, :width]
        padded[:, : kept.shape[1]] = kept
        arrays = (padded, *(array[filled] for array in extra))
        batches.append(_Batch(rows, tuple(place(array) for array in arrays)))
    return batches


def _to_host(array: Any) -> np.ndarray:
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def _answer(eval_set: EvalSet, result: np.ndarray) -> Any:
    if eval_set.ranked:
        return result
    texts = [eval_set.decode(ids) for ids in result.tolist()]
    return [eval_set.postprocess(row, text) for row, text in enumerate(texts)]
