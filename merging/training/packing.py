"""Sequences side by side in the rows of a batch, in place of padding.

A step learns a sum over a batch's tokens, and a sequence sees itself alone: which row
it lies in, and beside what, changes no term of the sum (seqio and T5X pack as well).
All steps of a training have as many rows as the fullest of them needs: they are one
program, and none depends on where a run was stopped.
"""

import bisect

import numpy as np


def rows_needed(lengths: np.ndarray, length: int) -> int:
    """Return how many rows hold the sequences of any step.

    Args:
      lengths: of the sequences [steps, B], each at most ``length``.
      length: of a row.
    """
    return max(1 + int(placed(step, length)[:, 0].max()) for step in lengths)


def placed(lengths: np.ndarray, length: int) -> np.ndarray:
    """Return the row of each sequence, and where in it the sequence begins: [B, 2].

    The longest goes first, each into the row whose room it fills best; B rows are
    always enough.
    """
    places = np.zeros((len(lengths), 2), np.int64)
    room: list[tuple[int, int]] = []  # (what is left, row), in order
    for sequence in np.argsort(-lengths, kind="stable"):
        size = int(lengths[sequence])
        at = bisect.bisect_left(room, (size, 0))
        left, row = room.pop(at) if at < len(room) else (length, len(room))
        places[sequence] = row, length - left
        bisect.insort(room, (left - size, row))
    return places
