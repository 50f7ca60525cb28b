"""Whole-model statistics: host-side searches that ask the weights to be counted.

A statistic is a generator. It yields a question, is sent the answer as int64 totals,
and returns its state when it knows enough. Whoever drives it decides how a question
is answered: the resident merge counts arrays in memory, a streaming merge makes a
pass over the blocks, several processes add theirs. Answers are sums over blocks, so
blocks may come in any order and any size; and as questions depend on answers alone,
all processes ask the same ones. Driving the experts' generators in lockstep answers
them all in one pass.
"""

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

# Gives every stride-th magnitude key of a leaf, on the host: a first guess.
Sample = Callable[[int, int], np.ndarray]


class Layout(NamedTuple):
    """The float leaves of a model, in the order of their sorted paths.

    Attributes:
      paths: their paths; "lowest index first" across leaves means this order.
      shapes: their shapes.
      wide: whether magnitudes are ranked as float64, since some leaf is.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    wide: bool = False

    @property
    def sizes(self) -> np.ndarray:
        """Elements in each leaf, int64 [leaves]."""
        return np.array([math.prod(s) for s in self.shapes], np.int64)

    @property
    def key_top(self) -> int:
        """An integer above every finite or infinite magnitude's key."""
        return (0x7FF0_0000_0000_0000 if self.wide else 0x7F80_0000) + 1


class Kept(NamedTuple):
    """The question "how many elements would `numerics.kept` keep?", for trial rules.

    The answer is int64 of the threshold's shape.

    Attributes:
      threshold: int64 [leaves, trials]; or [1, trials], the same for every leaf, to
        be answered with the total over all of them. A negative one needs no counting.
      cutoff: int64 likewise, or None to count all that is on the threshold.
    """

    threshold: np.ndarray
    cutoff: np.ndarray | None


class Ballot(NamedTuple):
    """The question "elements with a positive sum of votes, less those negative?".

    The answer is a Python int, over the whole model.
    """


def kept_count(density: float, elements: int) -> int:
    """Return k = ⌊density·n⌋, the product rounded to float64 as in TIES' own code."""
    return int(density * elements)


def trim_rank(density: float, elements: int, ties: str) -> int:
    """Return the rank, from the largest, of the smallest magnitude that is kept.

    TIES' threshold is the (n − k)-th smallest, so the (k + 1)-th largest, and all
    on it are kept; ``exact`` keeps k. 0 keeps nothing.
    """
    k = kept_count(density, elements)
    return k if ties == "exact" else min(k + 1, elements)


def magnitude_cut(
    layout: Layout,
    rank: Callable[[int], int],
    scope: str,
    ties: str,
    sample: Sample | None,
) -> Generator[Kept, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Find the rule that keeps the largest magnitudes of each scope, exactly.

    First the threshold's bit pattern is searched for. If ``exact`` then finds more
    elements on the threshold than places, the element index is searched in the same
    way for the cutoff that leaves the first of them: "how many of those before index
    c" is again only a count, so no leaf is sorted, scanned in order, or gathered.

    Args:
      layout: the leaves that are ranked.
      rank: gives, for the elements in a scope, the rank from the largest of the
        smallest magnitude that is kept; 0 keeps nothing.
      scope: ``global`` (one ranking over all leaves) or ``tensor`` (one for each).
      ties: ``keep_all`` or ``exact`` (lowest path, then lowest index, first).
      sample: a guess that saves questions, or None; the result does not depend on it.

    Returns:
      (threshold keys, cutoff indices), both int64 [leaves], as `numerics.kept` wants.
    """
    sizes = layout.sizes
    group = np.zeros(len(sizes), int) if scope == "global" else np.arange(len(sizes))
    elements = sizes.sum(keepdims=True) if scope == "global" else sizes
    ranks = np.array([rank(int(n)) for n in elements], np.int64)
    guesses = _guess(ranks, elements, group, sample) if sample else None

    def ask(trials: np.ndarray):
        return (yield Kept(trials, None))

    found = yield from _descend(ask, ranks, elements, layout.key_top, guesses)
    threshold, cutoff = found.low[group], sizes.copy()
    threshold[(ranks == 0)[group]] = layout.key_top
    crowded = (found.at_low > ranks) & (ranks > 0)
    if ties == "exact" and crowded.any():
        places = np.where(crowded, ranks - found.at_high, elements)
        cutoff = yield from _tie_cutoffs(threshold, sizes, group, places)
    return threshold, cutoff


def majority_sign() -> Generator[Ballot, int, bool]:
    """Find whether most elements' summed votes are positive; an even vote is."""
    return (yield Ballot()) >= 0


class _Bracket(NamedTuple):
    """Invariant: count(low) ≥ rank > count(high), for a count that never rises."""

    low: np.ndarray
    high: np.ndarray
    at_low: np.ndarray
    at_high: np.ndarray


def _descend(ask, ranks, totals, top, guesses=None, at_top=0):
    """Find for each unit the largest c in [0, top) whose count is at least the rank.

    Stops early at a c whose count *is* the rank: it keeps the same elements.

    Args:
      ask: generator function from trials [units, 3] to the counts at them.
      ranks: int64 [units].
      totals: the count at 0, int64 [units].
      top: the count there is known to be below the rank; scalar or [units].
      guesses: trials to begin with, or None.
      at_top: the count there, scalar or [units]; interpolation needs it.
    """
    zeros = np.zeros_like(ranks)
    bracket = _Bracket(zeros, zeros + top, totals.copy(), zeros + at_top)
    stalled = np.zeros(ranks.shape, bool)
    while True:
        low, high, at_low, at_high = bracket
        open_ = (high - low > 1) & (at_low != ranks) & (ranks > 0)
        if not open_.any():
            return bracket
        trials = guesses if guesses is not None else _trials(bracket, ranks, stalled)
        guesses = None
        trials = np.sort(np.clip(trials, (low + 1)[:, None], (high - 1)[:, None]))
        counts = yield from ask(np.where(open_[:, None], trials, -1))
        for c, n in zip(trials.T, counts.T, strict=True):
            up = open_ & (n >= ranks) & (c > low)
            down = open_ & (n < ranks) & (c < high)
            low, at_low = np.where(up, c, low), np.where(up, n, at_low)
            high, at_high = np.where(down, c, high), np.where(down, n, at_high)
        stalled = (high - low) * 8 > bracket.high - bracket.low
        bracket = _Bracket(low, high, at_low, at_high)


def _trials(bracket: _Bracket, ranks: np.ndarray, stalled: np.ndarray) -> np.ndarray:
    """Propose three trials for each unit: around the interpolated rank, or quarters.

    Interpolation squares the bracket's count at best; the quarters, taken after any
    step that did badly, bound the search at 31 steps or so however tied the data.
    """
    width = bracket.high - bracket.low
    inside = np.maximum(bracket.at_low - bracket.at_high, 1)
    position = np.clip((bracket.at_low - ranks) / inside, 0, 1)
    spread = np.minimum(2 * np.sqrt(inside * position * (1 - position)) / inside, 0.25)
    around = np.stack([position - spread, position, position + spread], axis=1)
    quarters = np.broadcast_to([0.25, 0.5, 0.75], around.shape)
    # Beyond an octave (2**23 keys) the count is nowhere near linear in the key.
    plain = stalled | (width > 2**25)
    fractions = np.where(plain[:, None], quarters, around)
    return bracket.low[:, None] + (fractions * width[:, None]).astype(np.int64)


def _tie_cutoffs(threshold, sizes, group, places):
    """Find the cutoffs that keep, in each scope, its first `places` tied elements."""
    here = np.stack([threshold, threshold], axis=1)
    none_or_all = np.stack([np.zeros_like(sizes), sizes], axis=1)
    counts = yield Kept(here, none_or_all)
    tied = counts[:, 1] - counts[:, 0]
    # Leaves take their share of the scope's places in order, so at most one leaf of
    # a scope has to be cut inside.
    share, places = np.zeros_like(sizes), places.copy()
    for leaf, scope in enumerate(group):
        share[leaf] = min(places[scope], tied[leaf])
        places[scope] -= share[leaf]
    cutoff = np.where(share == tied, sizes, 0)
    cut_inside = (share > 0) & (share < tied)
    wanted = np.where(cut_inside, counts[:, 0] + share, 0)

    def ask(cuts: np.ndarray):
        trial = np.where(cuts < 0, -1, threshold[:, None])
        return (yield Kept(trial, sizes[:, None] - np.maximum(cuts, 0)))

    found = yield from _descend(ask, wanted, counts[:, 1], sizes, at_top=counts[:, 0])
    return np.where(cut_inside, sizes - found.low, cutoff)


def _guess(ranks, elements, group, sample: Sample) -> np.ndarray:
    """Return three trials for each unit that a sample says lie around its rank."""
    guesses = []
    for unit, (rank, n) in enumerate(zip(ranks, elements, strict=True)):
        stride = int(n) // 2**14 | 1  # odd, to keep out of step with rows
        seen = [sample(int(leaf), stride) for leaf in np.flatnonzero(group == unit)]
        keys = np.concatenate([np.zeros(1, np.uint32), *seen]).astype(np.int64)
        keys.sort()
        keys = keys[::-1]
        if stride == 1:  # everything was seen: this settles it
            exact = keys[max(rank - 1, 0)]
            guesses.append([exact, exact + 1, exact + 1])
            continue
        place = rank / max(n, 1)
        error = 3 * math.sqrt(len(keys) * place * (1 - place)) + 1
        at = [place * len(keys) + e for e in (error, 0, -error)]
        around = keys[np.clip(at, 0, len(keys) - 1).astype(int)]
        # The last one above what may be a heap of equal magnitudes.
        guesses.append(around + [0, 0, 1])
    return np.array(guesses, np.int64).reshape(-1, 3)
