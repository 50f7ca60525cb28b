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


def alone(arrays):
    """There is no other process to add up with."""


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
    histogram = Histogram(first, 4, np.dtype(dtype))
    for start in range(0, len(found), 70_000):
        histogram.add(0, start, found[start : start + 70_000])
    histogram.finish()
    low, _, high = (int(t) for t in first.threshold[0])
    for query in (first, asked(low + 1, low + 77, high - 3), asked(low, high, high)):
        assert histogram.answers(query)
        expected = [np.count_nonzero(found >= t) for t in query.threshold[0]]
        assert histogram.answer(query, alone)[0].tolist() == expected


def test_a_query_outside_the_window_needs_another_pass():
    found = keys()
    first = asked(*around(found, 0.8))
    histogram = Histogram(first, 4, np.dtype(np.uint32))
    histogram.add(0, 0, found)
    histogram.finish()
    assert not histogram.answers(asked(*around(found, 0.2)))
    assert not histogram.answers(asked(*first.threshold[0], cutoff=(1, 2, 3)))


def test_trials_too_far_apart_for_a_window_are_counted_themselves():
    found = keys()
    far = asked(1, *around(found, 0.5)[1:2], 2**30)
    histogram = Histogram(far, 4, np.dtype(np.uint32))
    histogram.add(0, 0, found)
    histogram.finish()
    expected = [np.count_nonzero(found >= t) for t in far.threshold[0]]
    assert histogram.answer(far, alone)[0].tolist() == expected


def test_each_leaf_has_its_own_trials_and_closed_ones_are_not_counted():
    one, other = keys(1), keys(2, kinds=30)
    trials = np.array([around(one, 0.7), (-1, -1, -1), around(other, 0.4)], np.int64)
    histogram = Histogram(CountQuery(trials, None), 3, np.dtype(np.uint32))
    for leaf, found in ((0, one), (1, one), (2, other)):
        histogram.add(leaf, 0, found)
    histogram.finish()
    counts = histogram.answer(histogram.query, alone)
    for leaf, found in ((0, one), (2, other)):
        expected = [np.count_nonzero(found >= t) for t in trials[leaf]]
        assert counts[leaf].tolist() == expected
    assert counts[1].tolist() == [0, 0, 0]


def test_cutoffs_count_what_lies_on_the_threshold_and_early():
    found = keys(kinds=20)
    threshold = int(np.sort(found)[-5000])
    query = asked(threshold, threshold, cutoff=(60_000, len(found)))
    histogram = Histogram(query, 1, np.dtype(np.uint32))
    for start in range(0, len(found), 50_000):
        histogram.add(0, start, found[start : start + 50_000])
    histogram.finish()
    above, on = np.count_nonzero(found > threshold), found == threshold
    expected = [above + np.count_nonzero(on[:60_000]), above + np.count_nonzero(on)]
    assert histogram.answer(query, alone)[0].tolist() == expected


def test_cutoffs_between_the_trials_are_answered_without_another_pass(monkeypatch):
    found = keys(kinds=20)
    threshold = int(np.sort(found)[-5000])
    first = asked(*[threshold] * 3, cutoff=(50_000, 60_000, 90_000))

    def histogram():
        made = Histogram(first, 1, np.dtype(np.uint32))
        for start in range(0, len(found), 70_000):
            made.add(0, start, found[start : start + 70_000])
        made.finish()
        return made

    inside = asked(*[threshold] * 3, cutoff=(50_000, 61_234, 89_999))
    expected = [
        np.count_nonzero(found > threshold) + np.count_nonzero(found[:cut] == threshold)
        for cut in inside.cutoff[0]
    ]
    one = histogram()
    assert one.answers(inside)
    assert one.answer(inside, alone)[0].tolist() == expected
    assert not one.answers(asked(*[threshold] * 3, cutoff=(49_999, 61_234, 89_999)))
    assert not one.answers(asked(*[threshold + 1] * 3, cutoff=(50_000, 61_234, 89_999)))
    monkeypatch.setattr("merging.merge.histogram.PLACES", 10)  # too many to keep
    assert not histogram().answers(inside)


def test_places_of_other_processes_are_added():
    found = keys(kinds=20)
    threshold = int(np.sort(found)[-5000])
    first = asked(*[threshold] * 3, cutoff=(10, 100_000, 190_000))
    halves = [Histogram(first, 1, np.dtype(np.uint32)) for _ in range(2)]
    halves[0].add(0, 0, found[:90_000])
    halves[1].add(0, 90_000, found[90_000:])
    both = [sum(arrays) for arrays in zip(*(h.totals() for h in halves), strict=True)]
    for half in halves:
        for mine, everyone in zip(half.totals(), both, strict=True):
            mine[...] = everyone
        half.finish()
    inside = asked(*[threshold] * 3, cutoff=(20_000, 95_000, 180_000))
    shared = []
    halves[1].answer(inside, lambda arrays: shared.append(arrays[0].copy()))

    def add_the_other(arrays):
        arrays[0] += shared[0]

    expected = [
        np.count_nonzero(found > threshold) + np.count_nonzero(found[:cut] == threshold)
        for cut in inside.cutoff[0]
    ]
    assert halves[0].answer(inside, add_the_other)[0].tolist() == expected


def test_counts_beyond_32_bits_are_exact():
    histogram = Histogram(asked(500, 500, 501), 1, np.dtype(np.uint32))
    assert histogram.window() == (500, 1)
    for _ in range(3):  # three blocks of 2**31 elements on the threshold
        histogram.add_windowed(2**31, 2**31 + 1)
    histogram.finish()
    assert histogram.answer(histogram.query, alone)[0].tolist() == [
        3 * 2**32 + 3,
        3 * 2**32 + 3,
        3 * 2**31 + 3,
    ]
