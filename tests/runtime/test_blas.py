"""One thread of BLAS, whoever is within, and a decomposition that always comes."""

import threading

import numpy as np
import pytest
import scipy.linalg  # noqa: F401
import threadpoolctl
from tolerance import rounding

from merging.runtime import blas


def threads():
    found = threadpoolctl.threadpool_info()
    return {of["num_threads"] for of in found if of["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two():
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        yield


def test_there_is_one_within_and_as_many_as_before_after():
    assert threads() == {2}
    with blas.one_thread():
        assert threads() == {1}
        with blas.one_thread():
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {2}


def test_who_leaves_first_does_not_end_it_for_the_others():
    entered, leave = threading.Event(), threading.Event()

    def first():
        with blas.one_thread():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=first)
    other.start()
    assert entered.wait(10)
    with blas.one_thread():
        leave.set()
        other.join(10)
        assert threads() == {1}
    assert threads() == {2}


def test_an_error_within_ends_it():
    with pytest.raises(ValueError, match="within"), blas.one_thread():
        raise ValueError("within")
    assert threads() == {2}


def test_any_thread_may_be_the_only_one_within():
    seen = []

    def within():
        with blas.one_thread():
            seen.append(threads())
        seen.append(threads())

    for _ in range(3):  # another thread each time, and `two` has set it here
        other = threading.Thread(target=within)
        other.start()
        other.join(10)
    assert seen == [{1}, {2}] * 3


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_where_lapacks_quickest_way_does_not_converge_another_does(monkeypatch, shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    expected = np.linalg.svd(matrix, compute_uv=False)

    def fails(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fails)
    left, sizes, right = blas.svd(matrix)
    assert left.shape == (shape[0], 4) and right.shape == (4, shape[1])
    close = rounding(sum(shape), expected[0], np.float64)
    np.testing.assert_allclose(sizes, expected, rtol=0, atol=close)
    np.testing.assert_allclose(left * sizes @ right, matrix, rtol=0, atol=close)
