"""Sign election and disjoint reductions, on numbers one can check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import rounding

from merging.methods import elect_sign


def combine(values, state=True, weights=None, **words):
    values = [jnp.asarray(v, jnp.float32) for v in values]
    # One program, as it is in a merge; its operations one by one are twenty.
    combined = jax.jit(elect_sign(**words).combine)(values, weights, state)
    return np.asarray(combined).tolist()


def test_the_mean_is_over_the_experts_that_agree_and_zeros_are_not_counted():
    assert combine([[3, -1, 0], [1, -3, 0], [-2, 5, 4]]) == [2, 5, 4]


def test_the_sum_does_not_divide():
    assert combine([[3, -1], [1, -3], [-2, 1]], reduce="sum") == [4, -4]


def test_a_zero_sum_takes_the_sign_it_is_told():
    values = [[2, 0], [-2, 0]]
    assert combine(values, state=True) == [2, 0]
    assert combine(values, state=False) == [-2, 0]


def test_votes_by_count_ignore_magnitude():
    assert combine([[9], [-1], [-3]], by="mass") == [9]
    assert combine([[9], [-1], [-3]], by="count") == [-2]


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("weighted", "divisor", "expected"),
    [
        (False, "weight", (0.5 * 4 + 2 * 1) / 2.5),
        (False, "count", (0.5 * 4 + 2 * 1) / 2),
        (True, "weight", -4.0),
    ],
)
def test_weights_apply_after_the_election_unless_it_is_weighted(
    weighted, divisor, expected
):
    values, weights = [[4.0], [1.0], [-4.0]], (0.5, 2.0, 3.0)
    found = combine(values, weights=weights, weighted=weighted, divisor=divisor)
    # Products and sums are exact here; the division rounds.
    assert found == pytest.approx([expected], rel=rounding(1))


def test_an_agreeing_expert_of_weight_zero_divides_by_nothing():
    assert combine([[1.0], [-0.5]], weights=(0.0, 1.0)) == [0.0]
