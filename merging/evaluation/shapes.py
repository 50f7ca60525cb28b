"""Few shapes that all rows are padded to: each costs a compilation."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from merging.evaluation.questions import Question, generated, ranked
from merging.runtime.errors import UserError
from merging.tasks import EvalSet

STEP = 16  # rows are padded to a multiple of this many tokens
# By default a further shape is worth it if it saves this share of all tokens.
WORTH, WIDTHS = 0.03, 12
# What a slot of the tail costs beside one of the row: its logits.
LOGITS = 0.25


class Shape(NamedTuple):
    """Tokens of a row behind its opener, and slots for continuations' tokens."""

    width: int
    tail: int

    @property
    def cost(self) -> float:
        """What a row of this shape takes, in tokens."""
        return self.width + 1 + LOGITS * self.tail

    def holds(self, width: int, tail: int) -> bool:
        """Return whether a row of so many tokens fits."""
        return width <= self.width and tail <= self.tail


class Shapes(NamedTuple):
    """What rows are padded to.

    Attributes:
      ways: continuations that a ranked row has room for.
      ranked, generated: the shapes of either kind of rows, the cheapest first.
    """

    ways: int
    ranked: tuple[Shape, ...]
    generated: tuple[Shape, ...]


def chosen_shapes(eval_sets: Sequence[EvalSet], worth: float | None = None) -> Shapes:
    """Return few shapes that all rows of these sets fit into with little padding.

    Args:
      eval_sets: all that a model will see.
      worth: tokens that a further shape must save; 3 % of all by default.
    """
    rank, _ = ranked([one for one in eval_sets if one.ranked], 0)
    rest, _ = generated([one for one in eval_sets if not one.ranked], 0)
    if worth is None:
        worth = WORTH * sum(question.length + 1 for question in rank + rest)
    ways = max((len(question.ways) for question in rank), default=0)
    # Every number of tokens to generate is another program of each shape.
    kinds = {(one.max_new_tokens, one.eos_id) for one in eval_sets if not one.ranked}
    return Shapes(power(ways), _chosen(rank, worth), _chosen(rest, worth * len(kinds)))


def _chosen(questions: Sequence[Question], worth: float) -> tuple[Shape, ...]:
    """Return the shapes of one kind of rows: widths for each size of their tails."""
    by_tail: dict[int, list[int]] = {}
    for question in questions:
        # Without a tail a plain causal mask will do.
        tail = max(power(question.tail), STEP) if question.tail else 0
        by_tail.setdefault(tail, []).append(question.length)
    found = {
        tail: _widths(np.array(lengths), tail, worth)
        for tail, lengths in by_tail.items()
    }
    for small, large in itertools.pairwise(sorted(by_tail)):
        joint = by_tail[small] + by_tail[large]
        together = _widths(np.array(joint), large, worth)
        if together[0] <= found[small][0] + found[large][0]:
            by_tail[large], found[large] = joint, together
            del found[small]
    shapes = [Shape(w, tail) for tail, (_, widths) in found.items() for w in widths]
    return tuple(sorted(shapes, key=lambda shape: shape.cost))


def _widths(
    lengths: np.ndarray, tail: int, worth: float
) -> tuple[float, tuple[int, ...]]:
    """Return the widths that rows cost least with, those first, each paid for."""
    # With its opener a row then has a multiple of 16 tokens.
    needed = -(-(lengths + 1) // STEP) * STEP - 1
    ends, counts = np.unique(needed, return_counts=True)
    costs = ends + 1 + LOGITS * tail
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: of the rows up to the j-th width, if that is one of those chosen.
    cost, chosen = costs * before[1:], [(int(end),) for end in ends]
    best, found = cost[-1] + worth, chosen[-1]
    for number in range(2, min(WIDTHS, len(ends)) + 1):
        steps = [
            cost[:j] + costs[j] * (before[j + 1] - before[1 : j + 1])
            for j in range(1, len(ends))
        ]
        last = [int(np.argmin(step)) for step in steps]
        chosen = [chosen[0]] + [
            (*chosen[i], int(ends[j + 1])) for j, i in enumerate(last)
        ]
        cost = np.array([cost[0], *(step.min() for step in steps)])
        if cost[-1] + number * worth < best:
            best, found = cost[-1] + number * worth, chosen[-1]
    return float(best), found


def dealt(
    questions: Sequence[Question], shapes: Sequence[Shape], batch_size: int
) -> Iterable[tuple[Shape, list[int]]]:
    """Return batches: a shape, and which questions are its rows, never too many.

    Places that are left in the last batch of a shape go to rows of smaller ones.

    Raises:
      UserError: a row that no shape holds.
    """
    rows: Mapping[Shape, list[int]] = {shape: [] for shape in shapes}
    for i, question in enumerate(questions):
        fitting = (s for s in shapes if s.holds(question.length, question.tail))
        if (own := next(fitting, None)) is None:
            raise UserError(
                f"a row of {question.length} tokens, {question.tail} of them behind "
                f"the prompt, fits none of the shapes {[tuple(s) for s in shapes]}: "
                "choose them from all sets (chosen_shapes)"
            )
        rows[own].append(i)
    for number in reversed(range(len(shapes))):
        shape = shapes[number]
        for smaller in reversed(shapes[:number]):
            free = -len(rows[shape]) % batch_size
            if free and shape.holds(*smaller):
                rows[shape] += rows[smaller][-free:]
                del rows[smaller][-free:]
        yield from (
            (shape, rows[shape][start : start + batch_size])
            for start in range(0, len(rows[shape]), batch_size)
        )


def power(least: int) -> int:
    """Return the smallest power of 2 that is no smaller; few shapes compile."""
    return 1 << max(least - 1, 0).bit_length()
