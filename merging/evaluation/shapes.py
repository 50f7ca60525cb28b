"""Few shapes that all rows are padded to: each costs a compilation."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

STEP = 16  # rows are padded to a multiple of this many tokens
MAX_WIDTHS = 12  # of rows with tails of one size
# What a slot of the tail costs beside one of the row: its logits.
LOGITS = 0.25


class Shape(NamedTuple):
    """Tokens of a row behind its prefix, and slots for continuations' tokens."""

    width: int
    tail: int

    @property
    def cost(self) -> float:
        """What a row of this shape takes, in tokens."""
        return self.width + 1 + LOGITS * self.tail

    def holds(self, width: int, tail: int) -> bool:
        """Return whether a row of so many tokens fits."""
        return width <= self.width and tail <= self.tail


def choose(
    lengths: np.ndarray, tails: np.ndarray, compile_cost: float
) -> tuple[Shape, ...]:
    """Return few shapes that all rows fit into with little padding, cheapest first.

    Args:
      lengths: tokens of each row behind its prefix [R].
      tails: those of them that stand behind its prompt [R].
      compile_cost: tokens that a further shape must save.
    """
    by_tail: dict[int, list[int]] = {}
    for length, tail in zip(lengths.tolist(), tails.tolist(), strict=True):
        # Without a tail a plain causal mask will do.
        slots = max(power_of_2(tail), STEP) if tail else 0
        by_tail.setdefault(slots, []).append(length)
    found = {
        tail: _widths(np.array(members), tail, compile_cost)
        for tail, members in by_tail.items()
    }
    for small, large in itertools.pairwise(sorted(by_tail)):
        joint = by_tail[small] + by_tail[large]
        together = _widths(np.array(joint), large, compile_cost)
        if together[0] <= found[small][0] + found[large][0]:
            by_tail[large], found[large] = joint, together
            del found[small]
    shapes = [Shape(w, tail) for tail, (_, widths) in found.items() for w in widths]
    return tuple(sorted(shapes, key=lambda shape: shape.cost))


def _widths(
    lengths: np.ndarray, tail: int, compile_cost: float
) -> tuple[float, tuple[int, ...]]:
    """Return the widths that rows cost least with, those first, each paid for."""
    # With its prefix a row then has a multiple of 16 tokens.
    needed = -(-(lengths + 1) // STEP) * STEP - 1
    ends, counts = np.unique(needed, return_counts=True)
    costs = ends + 1 + LOGITS * tail
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: of the rows up to the j-th width, if that is one of those chosen.
    cost, chosen = costs * before[1:], [(int(end),) for end in ends]
    best, found = cost[-1] + compile_cost, chosen[-1]
    for number in range(2, min(MAX_WIDTHS, len(ends)) + 1):
        steps = [
            cost[:j] + costs[j] * (before[j + 1] - before[1 : j + 1])
            for j in range(1, len(ends))
        ]
        last = [int(np.argmin(step)) for step in steps]
        chosen = [chosen[0]] + [
            (*chosen[i], int(ends[j + 1])) for j, i in enumerate(last)
        ]
        cost = np.array([cost[0], *(step.min() for step in steps)])
        if cost[-1] + number * compile_cost < best:
            best, found = cost[-1] + number * compile_cost, chosen[-1]
    return float(best), found


def deal(
    lengths: np.ndarray,
    tails: np.ndarray,
    shapes: Sequence[Shape],
    batch_size: int,
) -> Iterator[tuple[Shape, list[int]]]:
    """Yield batches: a shape, and which rows go there, never more than the batch size.

    Places that are left in the last batch of a shape go to rows of smaller ones.

    Args:
      lengths, tails: of each row, as in `choose`.
      shapes: chosen for these rows, or for more.
      batch_size: rows of a batch.
    """
    rows: dict[Shape, list[int]] = {shape: [] for shape in shapes}
    for i, size in enumerate(zip(lengths.tolist(), tails.tolist(), strict=True)):
        rows[next(shape for shape in shapes if shape.holds(*size))].append(i)
    for number in reversed(range(len(shapes))):
        shape = shapes[number]
        for smaller in reversed(shapes[:number]):
            free = -len(rows[shape]) % batch_size
            if free and shape.holds(*smaller):
                rows[shape] += rows[smaller][-free:]
                del rows[smaller][-free:]
        for start in range(0, len(rows[shape]), batch_size):
            yield shape, rows[shape][start : start + batch_size]


def power_of_2(least: int) -> int:
    """Return the smallest power of 2 that is no smaller; few shapes compile."""
    return 1 << max(least - 1, 0).bit_length()
