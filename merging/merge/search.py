"""The search for a magnitude threshold that asks the weights only to be counted.

A trim keeps the k largest of n magnitudes. Sorting them would gather the model; here it
takes a few *counts*. The bit pattern of |Δ|, read as an unsigned integer, orders as the
magnitudes do (`numerics.magnitude_keys`), and "how many keys are at least c?" falls as
c rises. So the threshold is the largest integer c whose count is still at least k, and
it is found by bracketing: of three trials inside the bracket, the counts say which
quarter the threshold lies in. Interpolating on the counts makes most searches end after
a few rounds; a round that did badly is followed by plain quarters, so that 31 rounds
suffice however tied the data. Counts are int64 sums over blocks: exact, in any order,
on any number of devices and processes.

Where more elements lie on the threshold than there are places (`exact`), the same
search runs once more over the element *index*: "how many of the tied come before index
c?" is again a count.

A search is a generator: it yields queries, is sent their answers, and returns the rule.
Queries depend on answers alone, so all processes ask the same ones, and the searches of
all experts go on in lockstep, answered by one pass over the weights (`reduce`).
"""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.methods import CountQuery, Layout, Threshold

# Gives every stride-th magnitude key of a leaf, on the host: a first guess.
Sample = Callable[[int, int], np.ndarray]
# Gives where the first so many elements of a leaf that are on a key end.
Ends = Callable[[int, int, int], int]
# Trials of a unit in one query.
_TRIALS = 3
# Of keys on the host: how many make a guess, and are looked at while they are cached.
_SAMPLED, _PART = 2**14, 2**17


def magnitude_cut(
    layout: Layout,
    wanted: Threshold,
    sample: Sample | None,
    ends: Ends | None = None,
) -> Generator[CountQuery, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Find the rule that keeps the largest magnitudes of each scope, exactly.

    Args:
      layout: the leaves that are ranked.
      wanted: what to keep of them.
      sample: a guess that saves queries, or None; the result does not depend on it.
      ends: finds by other means how far ties are kept, or None.

    Returns:
      (threshold keys, cutoff indices), both int64 [leaves], as `numerics.kept` wants.
    """
    sizes = layout.sizes
    everywhere = wanted.scope == "global"
    group = np.zeros(len(sizes), int) if everywhere else np.arange(len(sizes))
    elements = sizes.sum(keepdims=True) if everywhere else sizes

    def ask(trials: np.ndarray):
        return (yield CountQuery(trials, None))

    ranked = elements
    if wanted.nonzero:
        ones = np.ones((len(elements), _TRIALS), np.int64)
        ranked = (yield from ask(ones))[:, 0]
    ranks = np.array([wanted.rank(int(n)) for n in ranked], np.int64)
    guesses = _guess(ranks, elements, group, sample) if sample else None
    found = yield from _descend(
        ask, ranks, elements, layout.key_top, guesses, value=wanted.value
    )
    threshold, cutoff = found.low[group], sizes.copy()
    threshold[(ranks == 0)[group]] = layout.key_top
    crowded = (found.at_low > ranks) & (ranks > 0)
    if wanted.ties == "exact" and crowded.any():
        places = np.where(crowded, ranks - found.at_high, elements)
        cutoff = yield from _tie_cutoffs(threshold, sizes, group, places, ends)
    return threshold, cutoff


def selected(
    layout: Layout, wanted: Threshold, keys: Sequence[Sequence[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rule of `magnitude_cut`, if all keys are on this host.

    Then NumPy's partition is several times as fast as counting.

    Args:
      layout: the leaves that are ranked.
      wanted: what to keep of them.
      keys: of each leaf, flat, in some arrays one after the other.
    """
    sizes, leaves = layout.sizes, list(range(len(keys)))
    threshold = np.full(len(keys), layout.key_top, np.int64)
    cutoff = sizes.copy()
    for scope in [leaves] if wanted.scope == "global" else [[i] for i in leaves]:
        parts = [part for i in scope for part in _parts(keys[i])]
        counted = sum(map(np.count_nonzero if wanted.nonzero else len, parts))
        rank = wanted.rank(int(counted))
        if rank == 0:
            continue
        edge, above = _edge(parts, rank)
        threshold[scope] = edge
        if wanted.ties == "exact":
            cutoff[scope] = _tied_before([keys[i] for i in scope], edge, rank - above)
    return threshold, cutoff


def _parts(keys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return keys in parts of which what is made of one stays in the cache."""
    starts = [(of, at) for of in keys for at in range(0, len(of), _PART)]
    return [of[at : at + _PART] for of, at in starts]


def _edge(parts: Sequence[np.ndarray], rank: int) -> tuple[Any, int]:
    """Return the key of a rank, the largest's being 1, and how many are larger.

    Floyd and Rivest's selection (1975): two of a sample lie on either side of it in all
    likelihood, and only what lies between those is partitioned; often it is one of the
    two, as a heap of equal keys is hit by many of a sample.
    """
    total = sum(map(len, parts))
    step = max(total // _SAMPLED, 1)
    sample = np.sort(np.concatenate([part[::step] for part in parts]))
    share = 1 - rank / total
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    ends = np.array([-margin, margin]) + share * len(sample)
    low, high = sample[np.clip(ends, 0, len(sample) - 1).astype(int)]
    larger = _count(np.greater_equal, parts, high)
    if rank <= larger:
        larger, between = 0, parts
        if (above := _count(np.greater, parts, high)) < rank:
            return high, above
    else:
        # Of unsigned numbers the difference is huge where the key is not above.
        first = low + low.dtype.type(1)
        room = max(high, first) - first
        inside = [part[part - first < room] for part in parts]
        beyond = larger + sum(map(len, inside))
        if beyond < rank <= _count(np.greater_equal, parts, low):
            return low, beyond
        larger, between = (larger, inside) if rank <= beyond else (0, parts)
    between = np.concatenate(between)
    place = len(between) - (rank - larger)
    between.partition(place)
    edge = between[place]
    return edge, larger + int(np.count_nonzero(between[place:] > edge))


def _count(holds: Callable, parts: Sequence[np.ndarray], key: Any) -> int:
    return sum(int(np.count_nonzero(holds(part, key))) for part in parts)


def _tied_before(
    keys: Sequence[Sequence[np.ndarray]], edge: Any, places: int
) -> list[int]:
    """Return each leaf's cutoff: the first `places` keys on the edge lie before it."""
    cutoffs = []
    for leaf in keys:
        parts = _parts(leaf)
        before = np.cumsum([0, *(np.count_nonzero(part == edge) for part in parts)])
        taken = min(places, int(before[-1]))
        places -= taken
        if taken == before[-1]:
            cutoffs.append(sum(map(len, parts)))
        elif not taken:
            cutoffs.append(0)
        else:
            part = int(np.searchsorted(before, taken)) - 1
            tied = np.flatnonzero(parts[part] == edge)
            start = sum(map(len, parts[:part]))
            cutoffs.append(start + int(tied[taken - 1 - before[part]]) + 1)
    return cutoffs


class _Bracket(NamedTuple):
    """Invariant: count(low) ≥ rank > count(high), for a count that never rises."""

    low: np.ndarray
    high: np.ndarray
    at_low: np.ndarray
    at_high: np.ndarray


def _descend(ask, ranks, totals, top, guesses=None, at_top=0, value=False):
    """Find for each unit the largest c in [0, top) whose count is at least the rank.

    Stops early at a c whose count *is* the rank: it keeps the same elements. With
    `value` it does not.

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
        open_ = (high - low > 1) & ((at_low != ranks) | value) & (ranks > 0)
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


def _tie_cutoffs(threshold, sizes, group, places, ends):
    """Find the cutoffs that keep, in each scope, its first `places` tied elements."""
    here = np.stack([threshold, threshold], axis=1)
    none_or_all = np.stack([np.zeros_like(sizes), sizes], axis=1)
    counts = yield CountQuery(here, none_or_all)
    tied = counts[:, 1] - counts[:, 0]
    # Leaves take their share of the scope's places in order, so at most one leaf of
    # a scope has to be cut inside.
    share, places = np.zeros_like(sizes), places.copy()
    for leaf, scope in enumerate(group):
        share[leaf] = min(places[scope], tied[leaf])
        places[scope] -= share[leaf]
    cutoff = np.where(share == tied, sizes, 0)
    cut_inside = (share > 0) & (share < tied)
    if ends is not None:
        for leaf in np.flatnonzero(cut_inside).tolist():
            cutoff[leaf] = ends(leaf, int(threshold[leaf]), int(share[leaf]))
        return cutoff
    wanted = np.where(cut_inside, counts[:, 0] + share, 0)

    def ask(cuts: np.ndarray):
        trial = np.where(cuts < 0, -1, threshold[:, None])
        return (yield CountQuery(trial, sizes[:, None] - np.maximum(cuts, 0)))

    found = yield from _descend(ask, wanted, counts[:, 1], sizes, at_top=counts[:, 0])
    return np.where(cut_inside, sizes - found.low, cutoff)


def _guess(ranks, elements, group, sample: Sample) -> np.ndarray:
    """Return three trials for each unit that a sample says lie around its rank."""
    guesses = []
    for unit, (rank, n) in enumerate(zip(ranks, elements, strict=True)):
        stride = int(n) // 2**14 | 1  # odd, to keep out of step with rows
        seen = [sample(int(leaf), stride) for leaf in np.flatnonzero(group == unit)]
        keys = np.concatenate([np.zeros(1, np.uint32), *seen])
        if stride == 1:  # everything was seen: this settles it
            (exact,) = _ranked(keys, [rank - 1])
            guesses.append([exact, exact + 1, exact + 1])
            continue
        place = rank / max(n, 1)
        error = 3 * math.sqrt(len(keys) * place * (1 - place)) + 1
        around = _ranked(keys, [place * len(keys) + e for e in (error, 0, -error)])
        # The last one above what may be a heap of equal magnitudes.
        guesses.append(around + [0, 0, 1])
    return np.array(guesses, np.int64).reshape(-1, 3)


def _ranked(keys: np.ndarray, ranks: Sequence[float]) -> np.ndarray:
    """Return the keys of these ranks, the largest being 0, or the nearest, as int64."""
    last = len(keys) - 1
    places = last - np.clip(ranks, 0, last).astype(int)
    return np.partition(keys, np.unique(places))[places].astype(np.int64)
