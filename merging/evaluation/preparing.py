"""Evaluation sets → batches of few shapes, made once and used for many models."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation.questions import Question, Where, generated, ranked
from merging.evaluation.shapes import Shape, Shapes, chosen_shapes, dealt
from merging.runtime.errors import UserError
from merging.tasks import EvalSet


class Prepared(NamedTuple):
    """Evaluation sets cut into batches once, to be evaluated with many models.

    Attributes:
      eval_sets: the sets.
      jobs: all batches, by kind of call.
      where: for each set, where its answers are.
      padding: share of all slots that hold no token of a row.
    """

    eval_sets: tuple[EvalSet, ...]
    jobs: tuple["Job", ...]
    where: tuple[Where, ...]
    padding: float

    @property
    def batches(self) -> int:
        """The number of calls that evaluating takes."""
        return sum(len(job.batches) for job in self.jobs)


class Job(NamedTuple):
    """Batches of one kind of call, and an empty table for their results."""

    call: Callable[..., Any]
    batches: list["Batch"]
    table: np.ndarray


class Batch(NamedTuple):
    """Rows of a job's table, without the repeats that fill it, and the arguments."""

    rows: np.ndarray
    arrays: tuple[Any, ...]


def prepare(
    eval_sets: Sequence[EvalSet],
    *,
    batch_size: int = 256,
    sharding: Any = None,
    shapes: Shapes | None = None,
) -> Prepared:
    """Cut sets into batches; do it once and evaluate many models with the result.

    Args:
      eval_sets: from ``load`` or ``load_suite``.
      batch_size: rows per call, always exactly this many.
      sharding: a ``jax.sharding.NamedSharding`` for the first axis, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``; the batches are put there now,
        each process's part by that process. By default they stay NumPy arrays and go
        where the model is.
      shapes: what to pad to, from ``chosen_shapes`` of all sets that the model will
        see; of these sets by default.

    Raises:
      UserError: no sets, a batch size below 1 or one that the mesh does not divide,
        shapes that do not hold the rows.
    """
    if not eval_sets:
        raise UserError("no datasets to evaluate")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: needs 1 or more")
    place = _placement(batch_size, sharding)
    kinds: dict[tuple, list[int]] = {}
    for i, eval_set in enumerate(eval_sets):
        kind = () if eval_set.ranked else (eval_set.max_new_tokens, eval_set.eos_id)
        kinds.setdefault(kind, []).append(i)
    shapes = shapes or chosen_shapes(eval_sets)
    jobs: list[Job] = []
    where: list[Any] = [None] * len(eval_sets)
    used = 0
    for kind, members in kinds.items():
        sets = [eval_sets[i] for i in members]
        questions, found = (generated if kind else ranked)(sets, len(jobs))
        most = max(len(question.ways) for question in questions)
        if most > shapes.ways:
            raise UserError(f"{most} choices, and shapes with room for {shapes.ways}")
        jobs.append(_job(questions, kind, batch_size, place, shapes))
        used += sum(question.length + 1 for question in questions)
        for i, place_of in zip(members, found, strict=True):
            where[i] = place_of
    filled = [np.shape(batch.arrays[1]) for job in jobs for batch in job.batches]
    slots = sum(rows * (width + 1) for rows, width in filled)
    return Prepared(tuple(eval_sets), tuple(jobs), tuple(where), 1 - used / slots)


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
    return lambda array: jax.make_array_from_callback(
        array.shape, sharding, lambda part: array[part]
    )


def _job(
    questions: list[Question], kind: tuple, batch_size: int, place, shapes: Shapes
) -> Job:
    batches = []
    own = shapes.generated if kind else shapes.ranked
    for shape, rows in dealt(questions, own, batch_size):
        part = [questions[i] for i in rows]
        part += part[-1:] * (batch_size - len(part))
        arrays = _prompts(part, shape)
        arrays += () if kind else _continuations(part, shapes.ways, shape)
        batches.append(Batch(np.array(rows), tuple(place(array) for array in arrays)))
    if kind:
        table = np.zeros((len(questions), kind[0]), np.int32)
        return Job(lambda predict, *a: predict.generate(*a, *kind), batches, table)
    table = np.zeros((len(questions), shapes.ways), np.float32)
    return Job(lambda predict, *a: predict.score(*a), batches, table)


def _prompts(part: list[Question], shape: Shape) -> tuple[np.ndarray, ...]:
    """Return openers, tokens and prompt lengths."""
    tokens = np.zeros((len(part), shape.width), np.int32)
    for row, question in zip(tokens, part, strict=True):
        parts = [question.prompt, *(way[:-1] for way in question.ways)]
        row[: question.length] = np.concatenate(parts)
    openers = np.array([question.opener for question in part], np.int32)
    lengths = np.array([len(question.prompt) for question in part], np.int32)
    return openers, tokens, lengths


def _continuations(
    part: list[Question], ways: int, shape: Shape
) -> tuple[np.ndarray, ...]:
    """Return firsts, owners and targets, as ``Predict.score`` explains them."""
    firsts = np.zeros((len(part), ways), np.int32)
    owners = np.full((len(part), shape.tail), -1, np.int32)
    targets = np.zeros((len(part), shape.tail), np.int32)
    for row, question in enumerate(part):
        firsts[row, : len(question.ways)] = [way[0] for way in question.ways]
        if question.tail:
            sizes = [len(way) - 1 for way in question.ways]
            owners[row, : question.tail] = np.repeat(np.arange(len(sizes)), sizes)
            following = np.concatenate([way[1:] for way in question.ways])
            targets[row, : question.tail] = following
    return firsts, owners, targets
