"""Evaluation sets → batches of few shapes, made once and used for many models."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.errors import UserError
from merging.tasks import EvalSet
from merging.tasks.metrics import MEASURES

STEP = 16  # short rows are padded to a multiple of this many tokens
# More continuations than this go behind a second copy of their prompt.
WAYS, TAIL = 32, 512


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
    where: tuple["Where", ...]
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


class Where(NamedTuple):
    """A set's answers: a job, an index into its table; `alone`: see ``Output``."""

    job: int
    rows: Any
    alone: Any


class _Question(NamedTuple):
    """A prompt and its continuations: one row of a batch."""

    opener: int
    prompt: np.ndarray
    ways: list[np.ndarray]

    @property
    def tail(self) -> int:
        """Tokens that stand behind the prompt."""
        return sum(len(way) - 1 for way in self.ways)

    @property
    def length(self) -> int:
        """Tokens of the row, its opener not among them."""
        return len(self.prompt) + self.tail


def prepare(
    eval_sets: Sequence[EvalSet], *, batch_size: int = 256, sharding: Any = None
) -> Prepared:
    """Cut sets into batches; do it once and evaluate many models with the result.

    Args:
      eval_sets: from ``load`` or ``load_suite``.
      batch_size: rows per call, always exactly this many.
      sharding: a ``jax.sharding.NamedSharding`` for the first axis, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``; the batches are put there now,
        each process's part by that process. By default they stay NumPy arrays and go
        where the model is.

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
        generated = (eval_set.max_new_tokens, eval_set.eos_id)
        kinds.setdefault(() if eval_set.ranked else generated, []).append(i)
    jobs: list[Job] = []
    where: list[Any] = [None] * len(eval_sets)
    used = slots = 0
    for kind, members in kinds.items():
        sets = [eval_sets[i] for i in members]
        questions, found = (_generated if kind else _ranked)(sets, len(jobs))
        for i, place_of in zip(members, found, strict=True):
            where[i] = place_of
        job = _job(questions, kind, batch_size, place)
        jobs.append(job)
        used += sum(question.length + 1 for question in questions)
        slots += sum(np.shape(b.arrays[1])[1] + 1 for b in job.batches) * batch_size
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


def _ranked(sets: list[EvalSet], job: int) -> tuple[list[_Question], list[Where]]:
    questions: list[_Question] = []
    where = []
    for one in sets:
        prompts, choices = _rows(one)
        at = _ask(questions, one, prompts, choices, one.groups)
        alone = None
        if any(_unconditional(metric) for metric in one.metrics):
            unlike = {choice.tobytes(): choice for choice in choices}
            number = {key: i for i, key in enumerate(unlike)}
            nothing = [np.zeros(0, np.int32)] * len(unlike)
            same = np.zeros(len(unlike), np.int32)
            found = _ask(questions, one, nothing, list(unlike.values()), same)
            rows = [number[choice.tobytes()] for choice in choices]
            alone = tuple(index[rows] for index in found)
        where.append(Where(job, at, alone))
    return questions, where


def _ask(
    questions: list[_Question], one: EvalSet, prompts, choices, groups
) -> tuple[np.ndarray, np.ndarray]:
    """Add rows' questions; return each row's question and place among its choices."""
    at, previous = [], None
    for prompt, choice, group in zip(prompts, choices, groups, strict=True):
        key = (group, prompt.tobytes())
        last = questions[-1] if questions else None
        full = last and (len(last.ways) == WAYS or last.tail + len(choice) - 1 > TAIL)
        if key != previous or full:
            questions.append(_Question(*_opened(one, prompt), []))
            previous = key
        questions[-1].ways.append(choice)
        at.append((len(questions) - 1, len(questions[-1].ways) - 1))
    return tuple(np.array(at).T)


def _generated(sets: list[EvalSet], job: int) -> tuple[list[_Question], list[Where]]:
    questions: list[_Question] = []
    where = []
    for one in sets:
        start = len(questions)
        prompts, _ = _rows(one)
        questions += [_Question(*_opened(one, prompt), []) for prompt in prompts]
        where.append(Where(job, slice(start, len(questions)), None))
    return questions, where


def _unconditional(metric: Callable[..., dict]) -> bool:
    measure = MEASURES.get(metric.__name__)
    return measure is not None and measure.unconditional


def _rows(one: EvalSet) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the rows' prompts and continuations without padding."""
    return tuple(
        [row[:length] for row, length in zip(table, lengths, strict=True)]
        for table, lengths in (
            (one.prompts, one.prompt_lengths),
            (one.continuations, one.continuation_lengths),
        )
    )


def _opened(one: EvalSet, prompt: np.ndarray) -> tuple[int, np.ndarray]:
    """Return what the model sees first, and the rest of the prompt.

    A tokenizer that opens texts with nothing leaves that to the prompt's own first
    token, and to the end mark, which parts texts, where the prompt is empty.
    """
    if one.bos_id is not None:
        return one.bos_id, prompt
    if len(prompt):
        return int(prompt[0]), prompt[1:]
    return one.eos_id, prompt


def _job(questions: list[_Question], kind: tuple, batch_size: int, place) -> Job:
    batches = []
    # Without branches a plain causal mask will do, and nothing is read off but the
    # prompt's last place.
    for branched in (False, True):
        group = [i for i, q in enumerate(questions) if bool(q.tail) == branched]
        ways = max((len(questions[i].ways) for i in group), default=0)
        for chunk in _chunks(group, questions, batch_size):
            part = [questions[i] for i in chunk]
            arrays = _prompts(part, batch_size)
            arrays += () if kind else _continuations(part, batch_size, ways)
            batches.append(Batch(chunk, tuple(place(array) for array in arrays)))
    if kind:
        table = np.zeros((len(questions), kind[0]), np.int32)
        return Job(lambda predict, *a: predict.generate(*a, *kind), batches, table)
    most = max(len(question.ways) for question in questions)
    table = np.zeros((len(questions), most), np.float32)
    return Job(lambda predict, *a: predict.score(*a), batches, table)


def _chunks(group: list[int], questions, batch_size: int) -> Iterator[np.ndarray]:
    lengths = np.array([questions[i].length for i in group], np.int64)
    order = np.array(group, np.int64)[np.argsort(lengths, kind="stable")]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _filled(part: list[_Question], batch_size: int) -> list[_Question]:
    return part + part[-1:] * (batch_size - len(part))


def _prompts(part: list[_Question], batch_size: int) -> tuple[np.ndarray, ...]:
    """Return openers, tokens and prompt lengths."""
    filled = _filled(part, batch_size)
    # With its opener a row then has a multiple of 16 tokens.
    width = _rounded(max(question.length for question in part) + 1) - 1
    tokens = np.zeros((batch_size, width), np.int32)
    for row, question in zip(tokens, filled, strict=True):
        parts = [question.prompt, *(way[:-1] for way in question.ways)]
        row[: question.length] = np.concatenate(parts)
    openers = np.array([question.opener for question in filled], np.int32)
    lengths = np.array([len(question.prompt) for question in filled], np.int32)
    return openers, tokens, lengths


def _continuations(
    part: list[_Question], batch_size: int, ways: int
) -> tuple[np.ndarray, ...]:
    """Return firsts, owners and targets, as ``Predict.score`` explains them."""
    firsts = np.zeros((batch_size, ways), np.int32)
    longest = max(question.tail for question in part)
    room = 1 << (longest - 1).bit_length() if longest else 0
    owners = np.full((batch_size, room), -1, np.int32)
    targets = np.zeros((batch_size, room), np.int32)
    for row, question in enumerate(_filled(part, batch_size)):
        firsts[row, : len(question.ways)] = [way[0] for way in question.ways]
        if question.tail:
            sizes = [len(way) - 1 for way in question.ways]
            owners[row, : question.tail] = np.repeat(np.arange(len(sizes)), sizes)
            following = np.concatenate([way[1:] for way in question.ways])
            targets[row, : question.tail] = following
    return firsts, owners, targets


def _rounded(length: int) -> int:
    """Return a length of which there are few: at most an eighth longer, past 128."""
    step = max(STEP, 1 << max((length - 1).bit_length() - 4, 0))
    return -(-length // step) * step
