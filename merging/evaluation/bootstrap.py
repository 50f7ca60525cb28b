"""How far a value would move with other examples: the bootstrap of Efron (1979).

Examples are drawn again with replacement, N of N, and the metric is found anew. The
draws depend on the seed, the name and N only: two models on the same examples are
judged on the same draws, which makes the differences of their values paired; and so are
the wordings of a dataset, whose values are averaged.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 1 << 22  # draws in memory at a time


class Interval(NamedTuple):
    """The percentile interval of resampled values, and their standard deviation."""

    low: float
    high: float
    deviation: float


def resampled(
    tables: Sequence[np.ndarray],
    value: Callable[[np.ndarray, int], float],
    *,
    name: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Return [R] values of a dataset, each of other examples.

    Args:
      tables: what each example adds [N, k], for every wording.
      value: ``(sums [k], N) -> value``; the wordings' values are averaged.
      name: of the dataset; others are drawn independently of it.
      resamples: R.
      seed: of the draws.
    """
    found = np.zeros((len(tables), resamples))
    for row, counts in zip(found, tables, strict=True):
        sums = _sums(np.asarray(counts, np.float64), name, resamples, seed)
        row[:] = [value(total, len(counts)) for total in sums]
    return found.mean(axis=0)


def interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Return where the middle ``level`` of resampled values [R] lies."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float(np.std(values, ddof=1)))


def _sums(counts: np.ndarray, name: str, resamples: int, seed: int) -> Iterator:
    examples = len(counts)
    draw = np.random.default_rng([seed, zlib.crc32(name.encode()), examples])
    step = max(_AT_ONCE // examples, 1)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = draw.integers(examples, size=(rows, examples))
        yield from counts[drawn].sum(axis=1)
