"""Which example comes when: fair, in every epoch, and the same from any start."""

import numpy as np
import pytest

from merging.runtime.errors import UserError
from merging.tasks.sampling import BLOCK, MixtureSampler, permuted


def test_epochs_are_permutations_that_depend_on_the_seed_and_are_read_from_anywhere():
    whole = permuted(0, 0, 10, 0, 40)
    parts = [permuted(0, 0, 10, at, at + 4) for at in range(0, 40, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    for epoch in whole.reshape(4, 10):
        assert sorted(epoch) == list(range(10))
    assert list(whole[:10]) != list(whole[10:20])
    assert not np.array_equal(whole, permuted(1, 0, 10, 0, 40))
    assert not np.array_equal(whole, permuted(0, 1, 10, 0, 40))


def test_a_mixture_has_its_rates_in_every_block_and_each_task_its_own_epochs():
    drawing = MixtureSampler((7, 0, 1000, 30), (1.0, 5.0, 2.0, 0.01))
    drawn = drawing.rows(3, 0, 3 * BLOCK)
    task = np.digitize(drawn, [7, 1007])
    shares = np.array([1, 2, 0.01]) / 3.01
    for block in np.split(task, 3):
        counts = np.bincount(block, minlength=3)
        assert np.all(np.abs(counts - BLOCK * shares) <= 1)
    seen = np.bincount(drawn[task == 0])
    assert len(seen) == 7 and seen.max() - seen.min() <= 1
    rare = drawn[task == 2] - 1007
    assert len(np.unique(rare[:20])) == 20 and rare.max() < 30


def test_a_mixture_is_read_from_anywhere():
    drawing = MixtureSampler((50, 20), (1.0, 3.0))
    whole = drawing.rows(0, 0, 2 * BLOCK)
    for start, stop in ((0, 10), (4000, 4200), (BLOCK, BLOCK + 1)):
        np.testing.assert_array_equal(drawing.rows(0, start, stop), whole[start:stop])
    assert not np.array_equal(drawing.rows(1, 0, 100), whole[:100])


def test_equal_shares_make_one_pool():
    np.testing.assert_array_equal(
        MixtureSampler((30, 10), (3.0, 1.0)).rows(5, 0, 80), permuted(5, 0, 40, 0, 80)
    )


def test_nothing_to_draw_is_refused():
    with pytest.raises(UserError, match="no examples"):
        MixtureSampler((0, 0), (1.0, 1.0))
