"""What sets the methods of whole matrices, masks and statistics apart, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from tolerance import rounding

from merging import UserError, merge, methods
from merging.methods import spectral

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


def of_rank(rank, seed):
    """Return a task vector of a rank, such as an adapter's: [24, 20] whole numbers."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-4, 5, (24, rank)), rng.integers(-4, 5, (rank, 20))
    return (left @ right).astype(np.float32)


def off_by(deltas):
    """Return how far a merge of task vectors [24, 20] may be from another.

    LAPACK's vectors are those of a matrix that is off by as many roundings as it has
    rows and columns; a polar factor is off by that over the least singular value.
    """
    spectrum = np.linalg.svd(np.hstack(deltas).astype(np.float64), compute_uv=False)
    least = spectrum[spectrum > 1e-9 * spectrum[0]][-1]
    return rounding(24 + 20, spectrum[0] ** 2 / least)


DEFICIENT = {
    "adapters": [of_rank(2, 0), of_rank(2, 1)],
    "an expert of zeros": [of_rank(20, 0), 0 * of_rank(2, 1)],
    "adapters and one of zeros": [of_rank(2, 0), 0 * of_rank(2, 1), of_rank(3, 2)],
    "one adapter": [of_rank(2, 0)],
    "a faint adapter": [of_rank(2, 0), of_rank(2, 1) / 1024],
    "one that the sum lacks": [of_rank(2, 0), of_rank(2, 1), -of_rank(2, 0)],
}


@pytest.mark.parametrize("deltas", DEFICIENT.values(), ids=DEFICIENT)
@pytest.mark.parametrize(
    "method",
    [methods.iso_c(), methods.iso_cts(), methods.iso_cts(0.0), methods.tsv_m()],
    ids=["iso_c", "iso_cts", "iso_cts-common=0", "tsv_m"],
)
def test_directions_that_no_expert_has_are_not_made_up(method, deltas):
    """Rows in another order give the rows so; columns lie in the experts' span."""
    found = merged(deltas, method)
    order = np.random.default_rng(3).permutation(24)
    turned = merged([delta[order] for delta in deltas], method)
    left, spectrum, _ = np.linalg.svd(np.hstack(deltas).astype(np.float64))
    off = off_by(deltas)
    np.testing.assert_allclose(turned, found[order], rtol=0, atol=off)
    span = left[:, : np.count_nonzero(spectrum > 1e-9 * spectrum[0])]
    np.testing.assert_allclose(span @ (span.T @ found), found, rtol=0, atol=off)
    assert np.linalg.norm(found) > 1e-3 * np.linalg.norm(sum(deltas)) > 0


def test_rounding_of_two_that_nearly_cancel_is_no_direction_of_iso_cts():
    """The sum spans both, so that all of their own directions are rounding."""
    rng = np.random.default_rng(0)
    u, x = rng.integers(-4, 5, (2, 24, 1)).astype(np.float32)
    v, y, z = rng.integers(-4, 5, (3, 1, 20)).astype(np.float32)
    deltas = [1024 * u @ v + x @ y, -1024 * u @ v + u @ z]
    found = merged(deltas, methods.iso_cts(), "embedding")
    left, spectrum, right = np.linalg.svd(np.float64(sum(deltas)), full_matrices=False)
    expected = spectrum.sum() / 20 * left[:, :2] @ right[:2]
    off = rounding(24 + 20, spectrum[0] ** 2 / spectrum[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=off)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m"])
def test_a_direction_a_thousand_times_fainter_is_one_in_a_long_matrix_too(name):
    """NumPy's own bound, max(m, n) eps, would take it for none."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(20_000, 8)))[0]
    deltas = [
        (left[:, 4 * i : 4 * i + 4] * [1000, 1, 1, 1]).astype(np.float32)
        @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:4].astype(np.float32)
        for i in range(2)
    ]
    found = merged(deltas, methods.get(name))
    assert np.linalg.matrix_rank(found.astype(np.float64), 1e-4) == 8


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m"])
def test_zeros_of_larger_matrices_are_none(name):
    rng = np.random.default_rng(0)
    deltas = [
        (rng.normal(size=(300, 4)) @ rng.normal(size=(4, 200))).astype(np.float32)
        for _ in range(2)
    ]
    found = merged(deltas, methods.get(name)).astype(np.float64)
    left, spectrum, _ = np.linalg.svd(np.hstack(deltas).astype(np.float64))
    span = left[:, :8]
    off = rounding(300 + 200, spectrum[0] ** 2 / spectrum[7])
    np.testing.assert_allclose(span @ (span.T @ found), found, rtol=0, atol=off)
    assert np.linalg.norm(found) > 1e-2 * np.linalg.norm(sum(deltas))


def test_an_expert_of_zeros_leaves_the_others_top_directions_to_tsv_m(matrices):
    found = merged([matrices[0], 0 * matrices[0]], methods.tsv_m())
    u, s, v = np.linalg.svd(matrices[0].astype(np.float64), full_matrices=False)
    expected = u[:, :3] @ np.diag(s[:3]) @ v[:3]
    np.testing.assert_allclose(found, expected, atol=rounding(9 + 6, s[0]))


def test_directions_of_iso_c_that_are_none_count_for_its_mean():
    delta = of_rank(2, 0)
    given = np.linalg.svd(delta, compute_uv=False)
    found = np.linalg.svd(merged([delta], methods.iso_c()), compute_uv=False)
    expected = [given.sum() / 20] * 2 + [0] * 18
    np.testing.assert_allclose(found, expected, rtol=0, atol=off_by([delta]))


@pytest.mark.parametrize("deltas", DEFICIENT.values(), ids=DEFICIENT)
@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m"])
def test_what_has_no_full_rank_agrees_with_the_float64_reference(name, deltas):
    full = {**methods.parameters(name), "weights": (1.0,) * len(deltas)}
    experts = {str(i): {"embedding": np.float64(d)} for i, d in enumerate(deltas)}
    base = {"embedding": np.zeros((24, 20))}
    expected = getattr(references, name)(base, experts, 0, **full)["embedding"]
    found = merged(deltas, methods.get(name), "embedding")
    np.testing.assert_allclose(found, expected, rtol=0, atol=off_by(deltas))


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


@pytest.mark.parametrize("off_diagonal", [0, 0.5, 0.9, 0.999])
def test_regmean_solves_where_fewer_tokens_than_inputs_were_seen(off_diagonal):
    rng, n, weights = np.random.default_rng(0), 24, (1, 0.5)
    models = rng.normal(size=(2, 5, n)).astype(np.float32)
    tokens = rng.normal(size=(2, 3, n))
    grams = (tokens.mT @ tokens / 3).astype(np.float32)
    assert [np.linalg.matrix_rank(gram) for gram in grams] == [3, 3]
    method = methods.regmean(off_diagonal, weights)
    found = merged(list(models), method, "w.weight", list(grams))
    shrunk = np.where(np.eye(n), grams, off_diagonal * np.float64(grams))
    shrunk *= np.reshape(weights, (2, 1, 1))
    total = shrunk.sum(axis=0)
    expected = np.linalg.solve(total, (shrunk @ np.float64(models).mT).sum(axis=0)).T
    # Solved scaled to a diagonal of 1, whose condition the error grows with.
    unit = 1 / np.sqrt(np.diag(total))
    condition = np.linalg.cond(total * unit * unit[:, None])
    assert condition <= n / (1 - off_diagonal)
    close = rounding(n) * condition * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=close)
    assert np.abs(found - np.mean(models, axis=0)).max() > 5 * close


@pytest.mark.parametrize("size", [1, 1e-9, 1e-36])
def test_fisher_merges_by_its_statistics_however_small(size):
    rng = np.random.default_rng(0)
    models = rng.normal(size=(3, 50)).astype(np.float32)
    told = (size * rng.uniform(0.1, 1, (3, 50))).astype(np.float32)
    told[:, 7], told[1, 9] = 0, 0
    found = merged(list(models), methods.fisher(weights=(1, 2, 0.5)), "w", list(told))
    shares = np.float64(told)
    shares[:, 7] = 1
    expected = np.average(models, axis=0, weights=shares * [[1], [2], [0.5]])
    # A weight, a division, a product, two sums of three and a division; below 4.
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(10, 4))


def test_fisher_is_the_mean_where_who_minds_has_no_weight():
    models, told = np.float32([[4], [1], [0]]), np.float32([[1], [0], [0]])
    found = merged(list(models), methods.fisher(weights=(0, 3, 1)), "w", list(told))
    assert found.tolist() == [0.75]


def test_a_floor_is_the_least_that_fisher_counts():
    models = np.array([[4.0], [0.0]], np.float32)
    told = np.array([[3e-8], [1e-8]], np.float32)
    found = [merged(list(models), methods.fisher(f), "w", list(told)) for f in (0, 1)]
    np.testing.assert_allclose(found, [[3.0], [2.0]], rtol=rounding(4))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: methods.iso_cts(common=1.5), r"common must be in \[0, 1\]"),
        (lambda: methods.wudi(steps=-1), "steps must be a whole number from 0"),
        (lambda: methods.wudi(learning_rate=0), "learning_rate must be positive"),
        (lambda: methods.consensus_ta(agree=1.5), "agree must be a whole number"),
        (lambda: methods.consensus_ta(mask_scale=-1), "must not be negative"),
        (lambda: methods.fisher(floor=-1), "floor must be positive, not -1, or 0"),
        (lambda: methods.fisher(weights=(1, -1)), "must not be negative"),
        (lambda: methods.regmean(off_diagonal=1), r"must be in \[0, 0.999\], not 1: "),
        (lambda: methods.regmean(off_diagonal=0.99999), "nearer to 1 .* singular"),
        (
            lambda: methods.combiner(len, statistics=methods.Statistics("x", "input")),
            "unknown kind of statistics 'input': did you mean inputs",
        ),
    ],
)
def test_values_out_of_range_are_refused(build, words):
    with pytest.raises(UserError, match=words):
        build()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is the CPU's")
def test_a_decomposition_that_did_not_converge_is_made_again(monkeypatch):
    """The first is a stand-in: LAPACK fails for few matrices, and with some threads."""
    matrix = np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)
    decomposed = jnp.linalg.svd
    expected = decomposed(matrix, full_matrices=False)

    def not_converged(matrix, **how):
        return [jnp.full_like(part, jnp.nan) for part in decomposed(matrix, **how)]

    monkeypatch.setattr(jnp.linalg, "svd", not_converged)
    left, spectrum, right = spectral._decomposed(jnp.asarray(matrix))
    # Backward stable: rounding of a product of 12 terms, and of the norm's size.
    bound = rounding(12 + 20, float(expected[1][0]))
    np.testing.assert_allclose(spectrum, expected[1], rtol=0, atol=bound)
    np.testing.assert_allclose((left * spectrum) @ right, matrix, rtol=0, atol=bound)
    for part in spectral._svd(jnp.full((3, 4), jnp.nan)):
        assert np.isnan(part).all()
