"""Rows of evaluation sets → questions: a prompt, and what may follow it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.tasks import EvalSet
from merging.tasks.metrics import MEASURES

# More continuations than this go behind a second copy of their prompt.
WAYS, TAIL = 32, 512


class Where(NamedTuple):
    """A set's answers: a job, an index into its table; `alone`: see ``Output``."""

    job: int
    rows: Any
    alone: Any


class Question(NamedTuple):
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


def lengths(eval_sets: Sequence[EvalSet]) -> np.ndarray:
    """Return the tokens of every row that evaluating these sets takes."""
    questions, _ = ranked([s for s in eval_sets if s.ranked], 0)
    others, _ = generated([s for s in eval_sets if not s.ranked], 0)
    return np.array([question.length for question in questions + others])


def ranked(sets: list[EvalSet], job: int) -> tuple[list[Question], list[Where]]:
    """Return the questions of ranked sets: choices of one prompt share a question.

    Args:
      sets: the sets.
      job: number of the job that answers them.

    Returns:
      The questions, and for each set where its rows' answers are.
    """
    questions: list[Question] = []
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
    questions: list[Question], one: EvalSet, prompts, choices, groups
) -> tuple[np.ndarray, np.ndarray]:
    """Add rows' questions; return each row's question and place among its choices."""
    at, previous = [], None
    for prompt, choice, group in zip(prompts, choices, groups, strict=True):
        key = (group, prompt.tobytes())
        last = questions[-1] if questions else None
        full = last and (len(last.ways) == WAYS or last.tail + len(choice) - 1 > TAIL)
        if key != previous or full:
            questions.append(Question(*_opened(one, prompt), []))
            previous = key
        questions[-1].ways.append(choice)
        at.append((len(questions) - 1, len(questions[-1].ways) - 1))
    return tuple(np.array(at).T)


def generated(sets: list[EvalSet], job: int) -> tuple[list[Question], list[Where]]:
    """Return the questions of sets to generate: the prompts alone; else as `ranked`."""
    questions: list[Question] = []
    where = []
    for one in sets:
        start = len(questions)
        prompts, _ = _rows(one)
        questions += [Question(*_opened(one, prompt), []) for prompt in prompts]
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
