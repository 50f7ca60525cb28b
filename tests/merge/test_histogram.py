"""Counting in one pass: every answer is the one that flattening everything gives."""

import numpy as np
import pytest

from merging.merge.histogram import Histogram
from merging.methods import CountQuery


def keys(seed=0, n=200_000, kinds=None):
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_normal(n)).astype(np.float32)
    if kinds:
        values = np.round(values * kinds) / kinds
    return values.view(np.uint32)


def of(query, units, found, *starts, leaves=1):
    """A histogram of leaves with pieces that begin so."""
    edges = [np.array([*(starts or [0]), len(found)])] * leaves
    return Histogram(query, units, found.dtype, edges)


def asked(*thresholds, cutoff=None):
    cut = None if cutoff is None else np.array([cutoff], np.int64)
    return CountQuery(np.array([thresholds], np.int64), cut)


def around(found, share, spread=1000):
    middle = int(np.sort(found)[int(share * len(found))])
    return middle - spread, middle, middle + spread


@pytest.mark.parametrize("kinds", [None, 50])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_queries_inside_the_window_are_answered_without_another_pass(kinds, dtype):
    found = keys(kinds=kinds).astype(dtype)
    first = asked(*around(found, 0.8))
    histogram = of(first, 4, found, 0, 70_000, 140_000)
    for start in range(0, len(found), 70_000):
        histogram.add(0, start, found[start : start + 70_000])
    histogram.finish()
    low, _, high = (int(t) for t in first.threshold[0])
    for query in (first, asked(low + 1, low + 77, high - 3), asked(low, high, high)):
        assert histogram.answers(query)
        expected = [np.count_nonzero(found >= t) for t in query.threshold[0]]
        assert histogram.answer(query)[0].tolist() == expected


def test_a_query_outside_the_window_needs_another_pass():
    found = keys()
    first = asked(*around(found, 0.8))
    histogram = of(first, 4, found)
    histogram.add(0, 0, found)
    histogram.finish()
    assert not histogram.answers(asked(*around(found, 0.2)))
    assert not histogram.answers(asked(*first.threshold[0], cutoff=(1, 2, 3)))


def test_trials_too_far_apart_for_a_window_are_counted_themselves():
    found = keys()
    far = asked(1, *around(found, 0.5)[1:2], 2**30)
    histogram = of(far, 4, found)
    histogram.add(0, 0, found)
    histogram.finish()
    expected = [np.count_nonzero(found >= t) for t in far.threshold[0]]
    assert histogram.answer(far)[0].tolist() == expected


def test_each_leaf_has_its_own_trials_and_closed_ones_are_not_counted():
    one, other = keys(1), keys(2, kinds=30)
    trials = np.array([around(one, 0.7), (-1, -1, -1), around(other, 0.4)], np.int64)
    histogram = of(CountQuery(trials, None), 3, one, leaves=3)
    for leaf, found in ((0, one), (1, one), (2, other)):
        histogram.add(leaf, 0, found)
    histogram.finish()
    counts = histogram.answer(histogram.query)
    for leaf, found in ((0, one), (2, other)):
        expected = [np.count_nonzero(found >= t) for t in trials[leaf]]
        assert counts[leaf].tolist() == expected
    assert counts[1].tolist() == [0, 0, 0]


def kept(found, threshold, cutoffs):
    above, on = np.count_nonzero(found > threshold), found == threshold
    return [above + np.count_nonzero(on[:end]) for end in cutoffs]


STARTS = 0, 70_000, 140_000


@pytest.mark.parametrize("asked_first", ["threshold", "ties"])
@pytest.mark.parametrize("counted", ["keys", "numbers"])
def test_ties_are_counted_piece_by_piece(asked_first, counted):
    found = keys(kinds=20)
    threshold = int(np.sort(found)[-5000])
    ties = asked(*[threshold] * 3, cutoff=(0, 70_000, len(found)))
    first = asked(threshold, threshold, threshold + 1)
    histogram = of(ties if asked_first == "ties" else first, 1, found, *STARTS)
    assert histogram.window([0]) == (threshold, 1)
    for start in STARTS:
        piece = found[start : start + 70_000]
        if counted == "keys":
            histogram.add(0, start, piece)
            continue
        inside, above = int((piece == threshold).sum()), int((piece > threshold).sum())
        histogram.add_windowed(0, start, inside, above)
    histogram.finish()
    for cutoffs in ((0, 70_000, len(found)), (140_000, 70_000, 0)):
        query = asked(*[threshold] * 3, cutoff=cutoffs)
        assert histogram.answers(query)
        answered = histogram.answer(query)[0].tolist()
        assert answered == kept(found, threshold, cutoffs)
    on = np.flatnonzero(found == threshold)
    for place in (1, 2, len(on) // 2, len(on)):
        start, within = histogram.piece(0, place)
        piece = found[start : start + 70_000]
        assert start in STARTS
        assert start + np.flatnonzero(piece == threshold)[within - 1] == on[place - 1]
    within = asked(*[threshold] * 3, cutoff=(0, 1, len(found)))
    assert not histogram.answers(within)
    assert not histogram.answers(asked(*[threshold + 1] * 3, cutoff=(0, 0, 0)))


def test_a_window_of_many_keys_knows_no_ties():
    found = keys(kinds=20)
    trials = around(found, 0.8)
    histogram = of(asked(*trials), 1, found)
    histogram.add(0, 0, found)
    histogram.finish()
    assert not histogram.answers(asked(*[trials[1]] * 3, cutoff=(1, 2, 3)))


def test_ties_of_other_processes_are_added():
    found = keys(kinds=20)
    threshold = int(np.sort(found)[-5000])
    first = asked(*[threshold] * 3, cutoff=(0, 0, len(found)))
    halves = [of(first, 1, found, 0, 90_000) for _ in range(2)]
    halves[0].add(0, 0, found[:90_000])
    halves[1].add(0, 90_000, found[90_000:])
    both = [sum(arrays) for arrays in zip(*(h.totals() for h in halves), strict=True)]
    cutoffs = 90_000, len(found), 0
    for half in halves:
        for mine, everyone in zip(half.totals(), both, strict=True):
            mine[...] = everyone
        half.finish()
        query = asked(*[threshold] * 3, cutoff=cutoffs)
        answered = half.answer(query)[0].tolist()
        assert answered == kept(found, threshold, cutoffs)


def test_counts_beyond_32_bits_are_exact():
    starts = [0, 2**32, 2**33]
    edges = [np.array([*starts, 2**34])]
    first = asked(500, 500, 501)
    histogram = Histogram(first, 1, np.dtype(np.uint32), edges)
    assert histogram.window([0]) == (500, 1)
    for start in starts:  # three blocks of 2**31 elements on the threshold
        histogram.add_windowed(0, start, 2**31, 2**31 + 1)
    histogram.finish()
    assert histogram.answer(histogram.query)[0].tolist() == [
        3 * 2**32 + 3,
        3 * 2**32 + 3,
        3 * 2**31 + 3,
    ]
