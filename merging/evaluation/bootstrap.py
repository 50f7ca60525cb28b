"""How far a value would move with other examples: the bootstrap of Efron (1979).

Examples are drawn again with replacement, N of N, and the metric is found anew. The
draws depend on the seed, the name and N only: two models on the same examples are
judged on the same draws, which makes the differences of their values paired; and so are
the prompt templates of a dataset, whose values are averaged.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

_AT_ONCE = 1 << 22  # draws in memory at a time


class Options(NamedTuple):
    """How often to resample, how much of it an interval holds, and the draws' seed."""

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0


DEFAULT = Options()


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
    how: Options = DEFAULT,
) -> np.ndarray:
    """Return [R] values of a dataset, each of other examples.

    Args:
      tables: what each example adds [N, k], under every prompt template.
      value: ``(sums [k], N) -> value``; the templates' values are averaged.
      name: of the dataset; others are drawn independently of it.
      how: R and the seed of the draws.
    """
    found = np.zeros((len(tables), how.resamples))
    for row, counts in zip(found, tables, strict=True):
        sums = _sums(np.asarray(counts, np.float64), name, how)
        row[:] = [value(total, len(counts)) for total in sums]
    return found.mean(axis=0)


def interval(values: np.ndarray, level: float = DEFAULT.level) -> Interval:
    """Return where the middle ``level`` of resampled values [R] lies."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float(np.std(values, ddof=1)))


def _sums(counts: np.ndarray, name: str, how: Options) -> Iterator:
    examples = len(counts)
    draw = np.random.default_rng([how.seed, zlib.crc32(name.encode()), examples])
    step = max(_AT_ONCE // examples, 1)
    for start in range(0, how.resamples, step):
        rows = min(step, how.resamples - start)
        drawn = draw.integers(examples, size=(rows, examples))
        yield from counts[drawn].sum(axis=1)
