"""Few lengths and sizes that all rows are padded to: each costs a compilation."""

from collections.abc import Sequence

import numpy as np

STEP = 16  # rows are padded to a multiple of this many tokens
# A further length is worth compiling for if it saves this share of all tokens.
WORTH, LENGTHS = 0.03, 8


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


def power(least: int, base: int) -> int:
    """Return the smallest power of a base that is no smaller; few shapes compile."""
    power = 1
    while power < least:
        power *= base
    return power
