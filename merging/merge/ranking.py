"""The threshold of a leaf that a block holds whole, without a look at each magnitude.

Floyd and Rivest's selection (1975): two of a sample lie on either side of the wanted
rank in all likelihood, and only what lies between those is sorted out. Task vectors of
16-bit checkpoints have heaps of equal magnitudes: those that the sample has many of are
counted first, in a program over the block that stores next to nothing, and most often
the rank is in one of them. What the sample says changes no bit: a rank that lies
elsewhere is found by a look at them all.
"""

import math
from collections.abc import Sequence

import numpy as np

from merging.merge import kernels, on_host
from merging.merge.in_memory_reduce import InMemoryAnswers
from merging.merge.magnitudes import Put, Ranked
from merging.merge.reduce import LeafGroup, Stage
from merging.methods import Threshold

# How many make a guess; of smaller leaves a look at all takes less.
SAMPLED, LEAST = 2**14, 2**17
# Of the sample, how many equal ones make a heap.
HEAP = 64
# Of the leaf, the share that may lie in a window: looking at those few takes memory.
WINDOW = 1 / 8

Cut = tuple[np.ndarray, np.ndarray]


class WholeLeaf(InMemoryAnswers):
    """A leaf that one streamed block holds.

    Args:
      put: the block.
      group: of the leaf alone.
    """

    def __init__(self, put: Put, group: LeafGroup):
        base, experts = None, put.models
        if group.method.needs_base:
            base, *experts = put.models
        super().__init__(
            [put.loaded.block],
            [put.metadata],
            [base],
            [[expert] for expert in experts],
            group.layout,
            group.leaves,
            everything=False,
        )
        self._put, self._everyone = put, range(len(experts))

    def selected(self, stage: Stage, number: int, wanted: Threshold) -> Cut | None:
        """Return the rule at once, by a sample if that will do."""
        found = None
        if stage.elementwise and on_host.on_one_cpu(self._put.models[0]):
            one = Ranked(stage, number, self._put, self._everyone)
            found = selected(one, wanted)
        return super().selected(stage, number, wanted) if found is None else found


def selected(one: Ranked, wanted: Threshold) -> Cut | None:
    """Return the rule of the one leaf that a block holds, as `search.selected` has it.

    Args:
      one: the block, and what is ranked in it.
      wanted: what to keep.

    Returns:
      None where this is no gain, or the sample misled.
    """
    (size,) = one.stage.group.layout.sizes.tolist()
    if wanted.nonzero or size < LEAST or not (rank := wanted.rank(size)):
        return None
    sample = np.sort(one.at(np.arange(0, size, size // SAMPLED | 1)))
    share = 1 - rank / size
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    ends = np.array([-margin, 0, margin]) + share * len(sample)
    low, middle, high = np.clip(ends, 0, len(sample) - 1).astype(int)
    keys, counts = np.unique(sample[low : high + 1], return_counts=True)
    nearest = np.argsort(keys != sample[middle], kind="stable")
    heaps = keys[nearest][counts[nearest] >= HEAP].tolist()
    found = _found(one, rank, int(sample[low]), int(sample[high]), heaps)
    if found is None:
        return None
    edge, cutoff = found
    if wanted.ties != "exact" or cutoff is None:
        cutoff = size
    return np.array([edge], np.int64), np.array([cutoff], np.int64)


def _found(
    one: Ranked, rank: int, low: int, high: int, heaps: Sequence[int]
) -> tuple[int, int | None] | None:
    """Return the edge, if it lies in a window, and the end of those kept on it.

    The end is None if all on the edge are kept.

    Args:
      one: what is ranked.
      rank: of the edge.
      low: the window's first key.
      high: its last.
      heaps: keys in it that many have, the likeliest first.
    """
    for key in heaps:
        if low <= key <= high:
            found = one.tallied(key)
            above, inside = kernels.tally(found, one.put.fold)
            if above < rank <= above + inside:
                return key, _end(one, key, rank - above, inside, found)
            low, high = (key + 1, high) if rank <= above else (low, key - 1)
    return _between(one, rank, low, high) if low <= high else None


def _end(
    one: Ranked, key: int, place: int, inside: int, found: np.ndarray
) -> int | None:
    """Return where so many on a key end; None if those are all."""
    if place == inside:
        return None
    # First in which rows, of those that were counted together.
    before = np.cumsum((found >> 4).sum(axis=1, dtype=np.int64))
    band = int(np.searchsorted(before, place))
    width = one.put.fold * found.shape[1]
    positions = np.arange(band * width, (band + 1) * width)
    tied = positions[one.at(positions) == key]
    return int(tied[place - 1 - (before[band - 1] if band else 0)]) + 1


def _between(
    one: Ranked, rank: int, low: int, high: int
) -> tuple[int, int | None] | None:
    """Return what `_found` does, by the magnitudes in a window."""
    codes = one.codes(low, high - low + 1)
    above, inside = kernels.tally(codes, 1)
    if not above < rank <= above + inside or inside > WINDOW * len(codes):
        return None
    positions = np.flatnonzero(codes == kernels.INSIDE)
    keys = one.at(positions)
    place = len(keys) - (rank - above)
    edge = np.partition(keys, place)[place]
    place = rank - above - int(np.count_nonzero(keys > edge))
    tied = positions[keys == edge]
    return int(edge), None if place == len(tied) else int(tied[place - 1]) + 1
