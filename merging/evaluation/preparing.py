"""Evaluation sets → batches of few shapes, made once and used for many models."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.errors import UserError
from merging.tasks import EvalSet
from merging.tasks.metrics import MEASURES

STEP = 16  # rows are padded to a multiple of this many tokens
# A further length is worth compiling for if it saves this share of all tokens.
WORTH, LENGTHS = 0.03, 8
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
    eval_sets: Sequence[EvalSet],
    *,
    batch_size: int = 256,
    sharding: Any = None,
    widths: Sequence[int] = (),
) -> Prepared:
    """Cut sets into batches; do it once and evaluate many models with the result.

    Args:
      eval_sets: from ``load`` or ``load_suite``.
      batch_size: rows per call, always exactly this many.
      sharding: a ``jax.sharding.NamedSharding`` for the first axis, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``; the batches are put there now,
        each process's part by that process. By default they stay NumPy arrays and go
        where the model is.
      widths: lengths to pad to, from ``widths`` of all sets that the model will see;
        of these sets by default.

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
    asked: list[tuple[tuple, list[_Question]]] = []
    where: list[Any] = [None] * len(eval_sets)
    for kind, members in kinds.items():
        sets = [eval_sets[i] for i in members]
        questions, found = (_generated if kind else _ranked)(sets, len(asked))
        asked.append((kind, questions))
        for i, place_of in zip(members, found, strict=True):
            where[i] = place_of
    lengths = np.array([q.length for _, questions in asked for q in questions])
    chosen = chosen_widths(lengths, widths)
    jobs = [_job(questions, k, batch_size, place, chosen) for k, questions in asked]
    used = np.sum(lengths + 1)
    shapes = [np.shape(b.arrays[1]) for job in jobs for b in job.batches]
    slots = sum(rows * (width + 1) for rows, width in shapes)
    return Prepared(tuple(eval_sets), tuple(jobs), tuple(where), 1 - used / slots)


def lengths(eval_sets: Sequence[EvalSet]) -> np.ndarray:
    """Return the tokens of every row that evaluating these sets takes."""
    by_kind = ([s for s in eval_sets if s.ranked == ranked] for ranked in (True, False))
    questions = [
        question
        for sets, ask in zip(by_kind, (_ranked, _generated), strict=True)
        for question in ask(sets, 0)[0]
    ]
    return np.array([question.length for question in questions])


def chosen_widths(lengths: np.ndarray, widths: Sequence[int] = ()) -> tuple[int, ...]:
    """Return few widths that all rows fit into with little padding, ascending.

    Args:
      lengths: tokens of the rows.
      widths: what was chosen before, for more rows; it stands if these fit.
    """
    if len(widths) and lengths.max() <= widths[-1]:
        return tuple(widths)
    # With its opener a row then has a multiple of 16 tokens.
    needed = -(-(lengths + 1) // STEP) * STEP - 1
    ends, counts = np.unique(needed, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: tokens of the rows up to the j-th width, if that is one of those chosen.
    cost, chosen = ends * before[1:], [(int(end),) for end in ends]
    best, found = cost[-1], chosen[-1]
    for _ in range(min(LENGTHS, len(ends)) - 1):
        steps = [
            cost[:j] + ends[j] * (before[j + 1] - before[1 : j + 1])
            for j in range(1, len(ends))
        ]
        last = [int(np.argmin(step)) for step in steps]
        chosen = [chosen[0]] + [
            (*chosen[i], int(ends[j + 1])) for j, i in enumerate(last)
        ]
        cost = np.array([cost[0], *(step.min() for step in steps)])
        if best - cost[-1] < WORTH * best:
            break
        best, found = cost[-1], chosen[-1]
    return found


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


def _job(
    questions: list[_Question], kind: tuple, batch_size: int, place, widths
) -> Job:
    batches = []
    # Without branches a plain causal mask will do, and nothing is read off but the
    # prompt's last place.
    for branched in (False, True):
        group = [i for i, q in enumerate(questions) if bool(q.tail) == branched]
        ways = _power(max((len(questions[i].ways) for i in group), default=0), 2)
        for chunk in _chunks(group, questions, batch_size):
            part = [questions[i] for i in chunk]
            arrays = _prompts(part, batch_size, widths)
            arrays += () if kind else _continuations(part, batch_size, ways)
            batches.append(Batch(chunk, tuple(place(array) for array in arrays)))
    if kind:
        table = np.zeros((len(questions), kind[0]), np.int32)
        return Job(lambda predict, *a: predict.generate(*a, *kind), batches, table)
    most = _power(max(len(question.ways) for question in questions), 2)
    table = np.zeros((len(questions), most), np.float32)
    return Job(lambda predict, *a: predict.score(*a), batches, table)


def _chunks(group: list[int], questions, batch_size: int) -> Iterator[np.ndarray]:
    lengths = np.array([questions[i].length for i in group], np.int64)
    order = np.array(group, np.int64)[np.argsort(lengths, kind="stable")]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _filled(part: list[_Question], batch_size: int) -> list[_Question]:
    return part + part[-1:] * (batch_size - len(part))


def _prompts(part: list[_Question], batch_size: int, widths) -> tuple[np.ndarray, ...]:
    """Return openers, tokens and prompt lengths."""
    filled = _filled(part, batch_size)
    longest = max(question.length for question in part)
    width = next(width for width in widths if width >= longest)
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
    room = max(_power(longest, 4), STEP) if longest else 0
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


def _power(least: int, base: int) -> int:
    """Return the smallest power of a base that is no smaller; few shapes compile."""
    power = 1
    while power < least:
        power *= base
    return power
