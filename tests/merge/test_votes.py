"""What a program that merges and votes says of a block, against plain counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import methods
from merging.merge import kernels, votes
from merging.runtime import numerics

COLUMNS = 128
METHOD = methods.compose("elected", combiner=methods.elect_sign(), scale=1.0)


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def dtype(request):
    return jnp.dtype(request.param)


def block(rows, dtype, seed=0):
    """Return a base of zeros and three experts of -1, 0 and 1."""
    rng = np.random.default_rng(seed)
    experts = rng.integers(-1, 2, (3, rows, COLUMNS)).astype(np.float32)
    return np.zeros((rows, COLUMNS), dtype), list(experts.astype(dtype))


def voted(base, experts, dtype, fold, positive=True):
    rows = len(base)
    offset = numerics.as_index(np.arange(rows)[:, None] * COLUMNS, rows * COLUMNS)
    combined = np.full((rows, 1), positive)
    inputs = base, METHOD, experts, [()] * len(experts), combined, offset
    how = {"strides": (0, 1), "dtype": dtype}
    merged, codes = votes.merge_and_vote(*inputs, np.True_, **how, fold=fold)
    alone = kernels.merge(*inputs, **how)
    assert np.asarray(merged).tobytes() == np.asarray(alone).tobytes()
    return votes.voted(merged, codes, fold)


@pytest.mark.parametrize("rows", [8, 40, 2056])
@pytest.mark.parametrize("fold", [1, 2, 4, 8])
def test_votes_are_counted(rows, fold, dtype):
    base, experts = block(rows, dtype, fold)
    found = voted(base, experts, dtype, fold)
    sums = sum(expert.astype(np.float32) for expert in experts)
    anything = sum(abs(expert.astype(np.float32)) for expert in experts) > 0
    assert found.ballot == (sums > 0).sum() - (sums < 0).sum()
    assert found.cancelled.dtype == np.uint32
    expected = np.flatnonzero((sums == 0) & anything)
    assert 0 < len(expected) < sums.size / 2
    np.testing.assert_array_equal(found.cancelled, expected)
    assert found.finite and found.merged.dtype == dtype


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (13, 77), (15, 127)])
def test_one_value_that_is_not_finite_is_seen(value, place, dtype):
    base, experts = block(16, dtype)
    experts[1][place] = value
    assert not voted(base, experts, dtype, 8).finite
    experts[1][place] = 0
    assert voted(base, experts, dtype, 8).finite


def test_all_that_cancels_and_nothing_that_does(dtype):
    base = np.zeros((16, COLUMNS), dtype)
    ones = np.ones_like(base)
    every = voted(base, [ones, -ones], dtype, 8)
    np.testing.assert_array_equal(every.cancelled, np.arange(base.size))
    assert every.ballot == 0
    none = voted(base, [ones, ones], dtype, 8)
    assert len(none.cancelled) == 0 and none.ballot == base.size
    silent = voted(base, [base, base], dtype, 8)
    assert len(silent.cancelled) == 0 and silent.ballot == 0


def test_the_program_merges_once():
    """Its program calls what costs, the rescaling's division, once an expert."""
    base, experts = block(64, jnp.dtype(jnp.bfloat16))
    method = methods.get("dare_ties", density=0.5)
    layout = methods.Layout(("w",), (base.shape,))
    states = []
    for name in ("a", "b", "c"):
        (drop,) = method.transforms
        state = drop.state(layout, name, 0, None)
        states.append([jax.tree.map(lambda x: np.full((64, 1), x[0]), state)])
    offset = numerics.as_index(np.arange(64)[:, None] * COLUMNS, base.size)
    inputs = base, method, experts, states, np.full((64, 1), True), offset, np.True_
    how = {"strides": (0, 1), "dtype": base.dtype, "fold": 8}
    text = votes.merge_and_vote.lower(*inputs, **how).compile().as_text()
    # And the mean's.
    assert text.count(" divide(") == len(experts) + 1
