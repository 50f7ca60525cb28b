"""Which example of a mixture comes when: a pure function of the seed and the number.

So any process finds its own examples of any step without the others, and without
having seen the steps before.
"""

import functools

import numpy as np

from merging.runtime.errors import UserError

BLOCK = 4096  # draws whose order is decided together, at least


class MixtureSampler:
    """The endless sequence of a mixture's examples.

    In every block of draws each task has its share by rate, to within one; inside, the
    order is random. A task's own examples come in a fresh permutation for each epoch
    of it, so that none is seen twice as often as another. Where rates and sizes agree
    the mixture is one pool, and its epochs are permutations of the whole.

    Args:
      sizes: examples of each task; the mixture numbers them one task after the other.
      rates: of the tasks, in any unit; a task without examples counts for nothing.

    Raises:
      UserError: there are no examples, or no rate is positive.
    """

    def __init__(self, sizes: tuple[int, ...], rates: tuple[float, ...]):
        self._sizes = np.array(sizes, np.int64)
        shares = np.array(rates, np.float64) * (self._sizes > 0)
        if not shares.sum() > 0:
            raise UserError("there are no examples to draw from.")
        self._shares = shares / shares.sum()
        self._first = np.cumsum(self._sizes) - self._sizes
        self._pool = np.allclose(self._shares, self._sizes / self._sizes.sum(), 0, 1e-9)
        # With two draws of each task in a block, rounding never takes one back.
        self._block = max(BLOCK, int(np.ceil(2 / self._shares[shares > 0].min())))

    def rows(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return the examples' numbers of draws start … stop - 1."""
        if self._pool:
            return permuted(seed, 0, int(self._sizes.sum()), start, stop)
        blocks = range(start // self._block, (stop - 1) // self._block + 1)
        drawn = np.concatenate([self._of_block(seed, block) for block in blocks])
        offset = blocks.start * self._block
        return drawn[start - offset : stop - offset]

    def _of_block(self, seed: int, block: int) -> np.ndarray:
        before, after = self._drawn(block), self._drawn(block + 1)
        rows = [
            self._first[task] + permuted(seed, task, int(self._sizes[task]), a, b)
            for task, (a, b) in enumerate(zip(before, after, strict=True))
            if b > a
        ]
        order = np.random.default_rng([seed, 1, block]).permutation(self._block)
        return np.concatenate(rows)[order]

    def _drawn(self, blocks: int) -> np.ndarray:
        """Return how often each task is drawn in so many blocks."""
        ends = np.rint(np.cumsum(self._shares) * blocks * self._block)
        return np.diff(ends.astype(np.int64), prepend=0)


def permuted(seed: int, stream: int, count: int, start: int, stop: int) -> np.ndarray:
    """Return places start … stop - 1 of permutations of `count`, end to end.

    Args:
      seed: of all sequences.
      stream: numbers the sequences of one seed.
      count: of each permutation.
      start, stop: the places.
    """
    first, last = int(start // count), int((stop - 1) // count)
    orders = [_order(seed, stream, count, e) for e in range(first, last + 1)]
    return np.concatenate(orders)[start - first * count : stop - first * count]


@functools.lru_cache(maxsize=2048)
def _kept(seed: int, stream: int, count: int) -> dict[int, np.ndarray]:
    return {}


def _order(seed: int, stream: int, count: int, epoch: int) -> np.ndarray:
    kept = _kept(seed, stream, count)
    if epoch not in kept:
        while len(kept) > 1:  # one epoch and the next are enough
            del kept[next(iter(kept))]
        key = [seed, epoch, 2, stream] if stream else [seed, epoch]
        kept[epoch] = np.random.default_rng(key).permutation(count)
    return kept[epoch]
