"""The search for a threshold, answered from data and from formulas."""

import itertools

import numpy as np
import pytest

from merging.merge import search
from merging.methods import CountQuery, Layout, Threshold, Votes, reductions

TOP = Layout((), ()).key_top


def drive(searching, answer):
    queries, reply = 0, None
    while True:
        try:
            query = searching.send(reply)
        except StopIteration as stop:
            return stop.value, queries
        queries += 1
        reply = answer(query)


def counted(leaves):
    """Answer `CountQuery` for uint32 key vectors by comparing every element."""

    def answer(query):
        assert isinstance(query, CountQuery)
        counts = np.zeros(query.threshold.shape, np.int64)
        total = len(counts) == 1
        cutoff = query.cutoff
        if cutoff is None:
            cutoff = np.full(counts.shape, 2**62)
        for leaf, keys in enumerate(leaves):
            place, i = np.arange(len(keys)), 0 if total else leaf
            for j, (t, c) in enumerate(zip(query.threshold[i], cutoff[i], strict=True)):
                counts[i, j] += ((keys > t) | ((keys == t) & (place < c))).sum()
        return counts

    return answer


def keep(leaves, density, scope, ties, sample=None):
    layout = Layout(
        tuple(f"leaf{i}" for i in range(len(leaves))), tuple(x.shape for x in leaves)
    )

    def rank(elements):
        return reductions.trim_rank(density, elements, ties)

    wanted = Threshold(rank, scope, ties)
    if sample == "in memory":
        keys = [[x[: len(x) // 3], x[len(x) // 3 :]] for x in leaves]
        (threshold, cutoff), queries = search.selected(layout, wanted, keys), 0
    else:
        searching = search.magnitude_cut(layout, wanted, sample)
        (threshold, cutoff), queries = drive(searching, counted(leaves))
    kept = [
        (x > t) | ((x == t) & (np.arange(len(x)) < c))
        for x, t, c in zip(leaves, threshold, cutoff, strict=True)
    ]
    return kept, queries


def test_a_quantile_is_the_ranked_key_itself_and_zeros_may_not_count():
    keys = np.array([0, 0, 0, 7, 7, 9, 12, 40, 41, 90], np.uint32)
    layout = Layout(("leaf",), (keys.shape,))

    def threshold(rank, **words):
        wanted = Threshold(lambda n: rank * n // 7, "tensor", "keep_all", **words)
        searching = search.magnitude_cut(layout, wanted, None)
        return drive(searching, counted([keys]))[0][0].tolist()

    # Of the 7 that are not 0, the fifth and the second from above; of all 10, more.
    assert threshold(5, nonzero=True, value=True) == [9]
    assert threshold(2, nonzero=True, value=True) == [41]
    assert threshold(5, value=True) == [7]
    # Without, any key with as many above will do.
    assert 7 < threshold(5, nonzero=True)[0] <= 9


@pytest.mark.parametrize("sampled", [4, 300])
@pytest.mark.parametrize("kind", ["any", "few", "heap", "equal", "in order"])
def test_the_key_of_a_rank_is_a_sorts(kind, sampled, monkeypatch):
    """Whatever the sample says of it: both ends inside, equal, or beside the key."""
    monkeypatch.setattr(search, "_SAMPLED", sampled)
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 500, 3000):
        keys = rng.integers(0, {"any": 2**31, "few": 4}.get(kind, 1000), size)
        if kind in ("heap", "equal"):
            keys[rng.random(size) < (0.9 if kind == "heap" else 1)] = 500
        keys = np.sort(keys) if kind == "in order" else keys
        keys = keys.astype(np.uint32)
        falling = np.sort(keys)[::-1]
        for rank in {1, 2, size // 5, size // 2, size - 1, size} & {
            *range(1, size + 1)
        }:
            key, larger = search._edge(search._parts([keys]), rank)
            assert key == falling[rank - 1]
            assert larger == np.count_nonzero(keys > key)


def sorted_out(keys, density, ties):
    """The same from a sort of one vector."""
    n, k = len(keys), int(density * len(keys))
    if ties == "keep_all":
        return keys >= (np.sort(keys)[n - k - 1] if k < n else 0)
    chosen = np.lexsort((np.arange(n), -keys.astype(np.int64)))[:k]
    return np.isin(np.arange(n), chosen)


def keys_of(values):
    return np.abs(np.asarray(values, np.float32)).view(np.uint32)


def data(kind, rng):
    sizes = (1, 2, 63, 1000)
    if kind == "normal":
        return [keys_of(rng.normal(size=n)) for n in sizes]
    if kind == "tied":
        return [keys_of(rng.integers(0, 4, n) * 2.0**-9) for n in sizes]
    if kind == "zeros":
        return [keys_of(np.where(rng.random(n) < 0.9, 0, 1)) for n in sizes]
    if kind == "equal":
        return [keys_of(np.full(n, 0.1)) for n in sizes]
    octaves = [rng.normal(size=n) * 2.0 ** rng.integers(-120, 120, n) for n in sizes]
    return [keys_of(x) for x in octaves]


@pytest.mark.parametrize("ties", ["keep_all", "exact"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("kind", ["normal", "tied", "zeros", "equal", "octaves"])
def test_the_kept_set_is_that_of_a_sort(kind, scope, ties):
    leaves = data(kind, np.random.default_rng(0))
    for density in (1e-9, 0.01, 0.2, 0.5, 0.9, 0.999, 1.0):
        every = lambda leaf, stride: leaves[leaf][::stride]  # noqa: E731
        for guess in (None, every, "in memory"):
            found, queries = keep(leaves, density, scope, ties, guess)
            if scope == "global":
                found = [np.concatenate(found)]
                wanted = [sorted_out(np.concatenate(leaves), density, ties)]
            else:
                wanted = [sorted_out(x, density, ties) for x in leaves]
            for ours, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{density}")
            assert queries <= 40


@pytest.mark.parametrize("part, sampled", [(7, 4), (64, 16), (400, 300)])
@pytest.mark.parametrize("kind", ["normal", "tied", "zeros", "equal", "octaves"])
def test_on_the_host_parts_and_a_bad_sample_change_nothing(
    kind, part, sampled, monkeypatch
):
    monkeypatch.setattr(search, "_PART", part)
    monkeypatch.setattr(search, "_SAMPLED", sampled)
    wide = data(kind, np.random.default_rng(2))
    for leaves in (wide, [(x >> 16).astype(np.uint16) for x in wide]):
        for density, ties in itertools.product((0.01, 0.5, 0.7), ("keep_all", "exact")):
            found, _ = keep(leaves, density, "global", ties, "in memory")
            wanted = sorted_out(np.concatenate(leaves), density, ties)
            np.testing.assert_array_equal(np.concatenate(found), wanted)
            for ours, keys in zip(
                keep(leaves, density, "tensor", ties, "in memory")[0],
                leaves,
                strict=True,
            ):
                np.testing.assert_array_equal(ours, sorted_out(keys, density, ties))


def test_a_guess_saves_queries_and_changes_nothing():
    leaves = [keys_of(np.random.default_rng(1).normal(size=100_000))]
    blind, many = keep(leaves, 0.2, "global", "exact")
    guided, few = keep(
        leaves, 0.2, "global", "exact", lambda leaf, stride: leaves[leaf][::stride]
    )
    np.testing.assert_array_equal(blind[0], guided[0])
    assert few < many and few <= 8


def test_the_count_is_the_authors():
    # k = int(density * n); the threshold is the (n - k)-th smallest, so k + 1 stay.
    keys = keys_of(np.arange(1, 11))
    assert keep([keys], 0.2, "global", "keep_all")[0][0].sum() == 3
    assert keep([keys], 0.2, "global", "exact")[0][0].sum() == 2
    assert keep([keys], 1.0, "global", "keep_all")[0][0].sum() == 10
    assert reductions.kept_count(0.29, 100) == int(0.29 * 100) == 28


def test_ties_across_leaves_go_to_the_lowest_path_then_index():
    leaves = [keys_of([1, 2, 1]), keys_of([1, 1, 1]), keys_of([3, 1, 1])]
    kept, _ = keep(leaves, 5.5 / 9, "global", "exact")
    assert [k.tolist() for k in kept] == [[True] * 3, [1, 0, 0], [1, 0, 0]]


def test_totals_beyond_int32_are_exact():
    # Two leaves that exist as formulas: element e has the key size - 1 - e // copies.
    size = 10**10
    layout = Layout(("a", "b"), ((size,), (size,)), wide=True)

    def answer(query):
        counts = []
        for i, copies in enumerate((1, 2)):
            row = 0 if len(query.threshold) == 1 else i
            key = np.minimum(query.threshold[row], size)
            first = (size - 1 - key) * copies  # the first element with this key
            above = np.clip(first, 0, size)
            cutoff = size if query.cutoff is None else query.cutoff[row]
            end = np.minimum(cutoff, first + copies)
            counts.append(above + np.clip(np.minimum(end, size) - above, 0, copies))
        counts = np.array(counts, np.int64)
        return counts if len(query.threshold) > 1 else counts.sum(0, keepdims=True)

    def rank(elements):
        return reductions.trim_rank(0.25 + 1e-10, elements, "exact")

    searching = search.magnitude_cut(layout, Threshold(rank, "global", "exact"), None)
    (threshold, cutoff), _ = drive(searching, answer)
    kept = answer(CountQuery(threshold[:, None], cutoff[:, None]))
    # Per key one of a and two of b; the two left over are the lowest path's and b's.
    assert kept.ravel().tolist() == [1666666668, 3333333334]


def test_an_even_majority_is_positive():
    assert Votes(None).finish(0) is True
    assert Votes(None).finish(-(2**40)) is False
