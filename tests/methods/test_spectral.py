"""What sets the methods of whole matrices, masks and statistics apart, by hand."""

import numpy as np
import pytest
from tolerance import rounding

from merging import UserError, merge, methods

pytestmark = pytest.mark.numeric


def merged(deltas, method, path="w.weight", statistics=None):
    """Merge task vectors on a base of 0, as leaves of one name."""
    base = {path: np.zeros_like(deltas[0])}
    experts = {str(i): {path: delta} for i, delta in enumerate(deltas)}
    told = statistics and {str(i): {path: x} for i, x in enumerate(statistics)}
    return np.asarray(merge(base, experts, method, statistics=told)[path])


@pytest.fixture(scope="module")
def matrices():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(9, 6)).astype(np.float32) for _ in range(3)]


def test_copies_of_a_task_vector_come_in_once_under_tsv_m(matrices):
    found = merged([matrices[0]] * 3, methods.tsv_m())
    u, s, v = np.linalg.svd(matrices[0].astype(np.float64), full_matrices=False)
    expected = u[:, :2] @ np.diag(s[:2]) @ v[:2]
    np.testing.assert_allclose(found, expected, atol=rounding(9 + 6, s[0]))


def test_one_task_vector_is_itself_under_tsv_m(matrices):
    found = merged(matrices[:1], methods.tsv_m())
    np.testing.assert_allclose(found, matrices[0], atol=rounding(9 + 6, 10))


def test_iso_cts_gives_all_directions_the_mean_of_their_singular_values(matrices):
    found = np.linalg.svd(merged(matrices, methods.iso_cts()), compute_uv=False)
    assert found == pytest.approx([found[0]] * 6, rel=rounding(9 + 6))
    assert found[0] > 1


def test_wudi_lowers_its_loss(matrices):
    def loss(tau):
        return sum(((tau - m) @ m.T) ** 2 for m in matrices).sum()

    start = sum(matrices)
    found = merged(matrices, methods.wudi(steps=20, learning_rate=0.01))
    assert loss(found) < loss(start)
    assert np.abs(found - start).max() < 0.2 * (1 + 1e-3)  # Adam's steps are bounded
    still = merged(matrices, methods.wudi(steps=0))
    np.testing.assert_array_equal(still, start)


@pytest.mark.parametrize(
    "method",
    [methods.iso_cts(), methods.wudi(steps=2, learning_rate=0.1), methods.regmean()],
    ids=lambda method: method.name,
)
def test_a_transposed_layout_gives_the_transposed_merge(matrices, method):
    """Flax' kernels are [inputs, outputs], PyTorch's weights [outputs, inputs]."""
    grams = None
    if method.statistics:
        grams = [m.T @ m for m in matrices]
    torch = merged(matrices, method, "w.weight", grams)
    flax = merged([m.T.copy() for m in matrices], method, "kernel", grams)
    np.testing.assert_allclose(flax.T, torch, atol=rounding(9 + 6, 10))


def test_consensus_keeps_what_enough_experts_hold_on_to():
    # Of the columns: all three agree; two do; one alone; none.
    deltas = np.array([[1, 2, 5, 1], [1, 2, 0, -1], [1, 0, 0, 0]], np.float32)
    found = {
        agree: merged(deltas, methods.consensus_ta(1.0, 0.4, agree)).tolist()
        for agree in (0, 1, 2, 3)
    }
    assert found[0] == [3, 4, 5, 0]
    assert found[1] == [3, 4, 5, 0]
    assert found[2] == [3, 4, 0, 0]
    assert found[3] == [3, 0, 0, 0]


def test_emr_takes_the_largest_magnitude_of_the_elected_sign():
    deltas = np.array([[3, -1, 2], [-2, -4, -2], [1, 2, 0]], np.float32)
    # The last column sums to 0, which elects −.
    assert merged(deltas, methods.emr()).tolist() == [3, -4, -2]


def test_an_input_that_was_always_zero_keeps_the_mean(matrices):
    grams = [m.T @ m for m in matrices]
    for gram in grams:
        gram[2] = gram[:, 2] = 0
    found = merged(matrices, methods.regmean(), "w.weight", grams)
    mean = np.mean(matrices, axis=0)
    np.testing.assert_allclose(found[:, 2], mean[:, 2], atol=rounding(4))
    assert np.abs(found - mean)[:, :2].max() > 0.01


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: methods.iso_cts(common=1.5), r"common must be in \[0, 1\]"),
        (lambda: methods.wudi(steps=-1), "steps must be a whole number from 0"),
        (lambda: methods.wudi(learning_rate=0), "learning_rate must be positive"),
        (lambda: methods.consensus_ta(agree=1.5), "agree must be a whole number"),
        (lambda: methods.consensus_ta(mask_scale=-1), "must not be negative"),
        (lambda: methods.fisher(floor=0), "floor must be positive"),
        (lambda: methods.fisher(weights=(1, -1)), "must not be negative"),
        (lambda: methods.regmean(off_diagonal=1), r"off_diagonal must be in \[0, 1\)"),
        (
            lambda: methods.combiner(len, statistics=methods.Statistics("x", "input")),
            "unknown kind of statistics 'input': did you mean inputs",
        ),
    ],
)
def test_values_out_of_range_are_refused(build, words):
    with pytest.raises(UserError, match=words):
        build()
