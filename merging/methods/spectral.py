"""Methods that see every matrix of a leaf whole: by singular vectors, or by descent.

Matrices are [outputs, inputs], embeddings and heads among them; what is no matrix
(norms, biases) is averaged. Decompositions are LAPACK's, of the whole matrix: exact to
rounding, none of them randomised. Matrices are taken one after the other (`lax.map`),
so that a batch of any size, on any layout, is the same program and gives the same bits.

No result depends on what a decomposition was free to choose. An SVD may turn uᵢ and vᵢ
around together; a polar factor turns with them, and the product takes both. Where a
singular value is 0 to rounding (adapters, an expert that left a matrix alone) u and v
are made up, each without the other: both are left out, so that every result lies in the
span of the task vectors.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax.linalg import SvdAlgorithm, svd

from merging.methods import combiners
from merging.methods.combiners import add, weighted
from merging.methods.method import Method, compose
from merging.methods.registry import register
from merging.methods.transforms import number
from merging.runtime import numerics
from merging.runtime.errors import UserError

Weights = Sequence[float] | None
_ADAM = 0.9, 0.999, 1e-8  # PyTorch's defaults, which WUDI's authors leave alone


@register(
    "Marczak et al. 2025, arXiv 2502.04959",
    "θ = θ₀ + λ U σ̄ Vᵀ of each matrix of Σ wᵢΔᵢ = U Σ Vᵀ, σ̄ the mean singular value",
    evidence="no reliable gain on LLMs (arXiv 2511.21437); at 24x better than task "
    "arithmetic at K = 8 (0.34 against 0.26), not once corrected for 65 comparisons, "
    "and not told apart at K = 2 and 4",
)
def iso_c(scale: float = 1.0, weights: Weights = None) -> Method:
    """Isotropic merging in the common subspace: all singular values become their mean.

    The mean is over all min(outputs, inputs) of them, zeros included, as its authors
    have it; directions whose singular value is 0 stay 0. What is no matrix (norms,
    biases) is averaged, as theirs is; embeddings and the head are matrices.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros((2, 2))}
    >>> qa = {"w": jnp.diag(jnp.array([3.0, 0]))}
    >>> nli = {"w": jnp.diag(jnp.array([0.0, 1]))}
    >>> method = merging.methods.iso_c()
    >>> print(jnp.diag(merging.merge(base, [qa, nli], method)["w"]).round(2))
    [2. 2.]
    """
    return compose(
        "iso_c", combiner=_by_matrix(_isotropic), scale=scale, weights=weights
    )


@register(
    "Marczak et al. 2025, arXiv 2502.04959",
    "Iso-C on the top directions of Σ wᵢΔᵢ and, apart from them, the top of each Δᵢ",
    evidence="at 24x better than task arithmetic at K = 8 (0.32 against 0.26), not "
    "once corrected for 65 comparisons, and not told apart at K = 2 and 4",
)
def iso_cts(common: float = 0.8, scale: float = 1.0, weights: Weights = None) -> Method:
    """Isotropic merging in the common and the tasks' own subspaces.

    Of a matrix's n = min(outputs, inputs) directions about the share `common` are the
    top ones of the sum. The rest is dealt out to the experts, equally: each gives the
    top directions of its Δᵢ less what the common left vectors span. All are made
    orthonormal by the polar factor, and get the mean of their n singular values, zeros
    included; directions whose singular value is 0 stay 0. What is no matrix (norms,
    biases) is averaged; embeddings and the head are matrices.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros((2, 2))}
    >>> qa = {"w": jnp.diag(jnp.array([3.0, 0]))}
    >>> nli = {"w": jnp.diag(jnp.array([0.0, 1]))}
    >>> method = merging.methods.iso_cts(common=0.5)
    >>> print(jnp.diag(merging.merge(base, [qa, nli], method)["w"]).round(2))
    [2. 2.]
    """
    if not 0 <= number("common", common) <= 1:
        raise UserError(f"common must be in [0, 1], not {common!r}.")
    combiner = _by_matrix(_isotropic_by_task, common=float(common))
    return compose("iso_cts", combiner=combiner, scale=scale, weights=weights)


@register(
    "Gargiulo et al. 2025, arXiv 2412.00081",
    "θ = θ₀ + λ P(U) Σ P(V)ᵀ, U Σ V the top 1/K directions of each Δᵢ, P polar factors",
    evidence="no reliable gain on LLMs (arXiv 2511.21437); at 24x not told apart from "
    "task arithmetic (K = 8: 0.30 against 0.26)",
)
def tsv_m(scale: float = 1.0, weights: Weights = None) -> Method:
    """Task singular vectors: each task's top 1/K directions, made orthonormal.

    Of each matrix ⌊min(outputs, inputs) / K⌋ singular directions of every wᵢΔᵢ, one
    at least. The polar factor of the left vectors side by side, and of the right ones,
    is the nearest orthonormal set. Directions that several tasks share exactly come in
    once: singular values of 0 are left out, so that K copies of one task vector are its
    best approximation of that rank, and a task vector of zeros adds nothing. What is no
    matrix (norms, biases) is averaged; embeddings and the head are matrices.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros((2, 2))}
    >>> qa = {"w": jnp.diag(jnp.array([3.0, 0]))}
    >>> nli = {"w": jnp.diag(jnp.array([0.0, 1]))}
    >>> method = merging.methods.tsv_m()
    >>> print(jnp.diag(merging.merge(base, [qa, nli], method)["w"]).round(2))
    [3. 1.]
    """
    return compose(
        "tsv_m", combiner=_by_matrix(_orthogonalised), scale=scale, weights=weights
    )


@register(
    "Cheng et al. 2025, arXiv 2503.08099",
    "θ = θ₀ + λ τ, τ by Adam from Σ Δᵢ down Σ ‖(τ − Δᵢ) Δᵢᵀ‖² / ‖Δᵢ‖², each matrix",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.25 against 0.26), "
    "its λ at the end of the grid in six merges of nine",
)
def wudi(scale: float = 1.0, steps: int = 300, learning_rate: float = 1e-5) -> Method:
    """WUDI: the merged vector disturbs each task least along that task's own rows.

    A linear layer's task vector spans the inputs it was trained on, so no data are
    needed. The gradient is 2 (τ Σ Cᵢ − Σ Δᵢ Cᵢ) with Cᵢ = ΔᵢᵀΔᵢ / ‖Δᵢ‖², so a step
    costs one product with an [inputs, inputs] matrix, however many experts there are.

    What is no matrix (norms, biases) is averaged. Embeddings and the head are merged as
    linear layers, where its authors leave them at the base, as the rule
    ``embed|head => base`` does.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros((2, 2))}
    >>> qa = {"w": jnp.diag(jnp.array([3.0, 0]))}
    >>> nli = {"w": jnp.diag(jnp.array([0.0, 1]))}
    >>> method = merging.methods.wudi(steps=10, learning_rate=0.1)
    >>> print(jnp.diag(merging.merge(base, [qa, nli], method)["w"]).round(2))
    [3. 1.]
    """
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if not whole or steps < 0:
        raise UserError(f"steps must be a whole number from 0, not {steps!r}.")
    if number("learning_rate", learning_rate) <= 0:
        raise UserError(f"learning_rate must be positive, not {learning_rate!r}.")
    combiner = _by_matrix(
        _least_disturbing, steps=steps, learning_rate=float(learning_rate)
    )
    return compose("wudi", combiner=combiner, scale=scale)


def _by_matrix(function: Callable[..., Array], **parameters: object):
    return combiners.combiner(
        function,
        granularity="matrix",
        refuse=combiners.refuse_sum_of_zero,
        **parameters,
    )


def _isotropic(
    values: Sequence[Array], weights: Sequence[Array] | None, state: object
) -> Array:
    total = add(weighted(values, weights))
    if total.ndim < 3:
        return _averaged(total, len(values), weights)

    def flattened(matrix: Array) -> Array:
        left, spectrum, right = _svd(matrix)
        return numerics.scaled(numerics.matmul(left, right.T), _mean(spectrum))

    return jax.lax.map(flattened, total)


def _isotropic_by_task(
    values: Sequence[Array],
    weights: Sequence[Array] | None,
    state: object,
    common: float,
) -> Array:
    values = weighted(values, weights)
    if values[0].ndim < 3:
        return _averaged(add(values), len(values), weights)
    directions = min(values[0].shape[1:])
    # As many for each task as can be, and what is left over is common.
    shared = int(directions * common)
    own = min(round((directions - shared) / len(values)), directions // len(values))
    shared = directions - own * len(values)

    def flattened(matrices: Sequence[Array]) -> Array:
        left, spectrum, right = _svd(add(matrices))
        # Rounding leaves of a difference as much as its terms are large.
        largest = spectrum[0]
        left, spectrum, right = (x[..., :shared] for x in (left, spectrum, right))
        lefts, spectra, rights = [], [], []
        for matrix in matrices:
            inside = numerics.matmul(left, numerics.matmul(left.T, matrix))
            found = _svd(matrix - inside, jnp.maximum(largest, _root_mean(matrix)))
            u, s, v = (x[..., :own] for x in found)
            lefts, spectra, rights = [*lefts, u], [*spectra, s], [*rights, v]
        mean = _mean(jnp.concatenate([*spectra, spectrum]))
        left = _polar(jnp.concatenate([*lefts, left], axis=1))
        right = _polar(jnp.concatenate([*rights, right], axis=1))
        return numerics.scaled(numerics.matmul(left, right.T), mean)

    return jax.lax.map(flattened, values)


def _orthogonalised(
    values: Sequence[Array], weights: Sequence[Array] | None, state: object
) -> Array:
    values = weighted(values, weights)
    if values[0].ndim < 3:
        return _averaged(add(values), len(values), weights)
    rank = max(min(values[0].shape[1:]) // len(values), 1)

    def reassembled(matrices: Sequence[Array]) -> Array:
        parts = [[x[..., :rank] for x in _svd(matrix)] for matrix in matrices]
        left, spectrum, right = (
            jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)
        )
        # Column by column, as a product with a diagonal matrix is.
        scaled = numerics.product(_polar(left), jnp.broadcast_to(spectrum, left.shape))
        return numerics.matmul(scaled, _polar(right).T)

    return jax.lax.map(reassembled, values)


def _least_disturbing(
    values: Sequence[Array],
    weights: object,
    state: object,
    steps: int,
    learning_rate: float,
) -> Array:
    if values[0].ndim < 3:
        return _averaged(add(values), len(values), None)

    def descended(matrices: Sequence[Array]) -> Array:
        metric, pull = 0.0, 0.0
        for matrix in matrices:
            square = _sum(numerics.product(matrix, matrix))
            share = jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1), 0)
            gram = numerics.matmul(matrix.T, numerics.scaled(matrix, share))
            metric, pull = metric + gram, pull + numerics.matmul(matrix, gram)

        def step(i: Array, now: tuple[Array, ...]) -> tuple[Array, ...]:
            gradient = 2 * (numerics.matmul(now[0], metric) - pull)
            return _adam(i, now, gradient, learning_rate)

        start = add(matrices)
        zero = jnp.zeros_like(start)
        return jax.lax.fori_loop(0, steps, step, (start, zero, zero))[0]

    return jax.lax.map(descended, values)


def _adam(
    i: Array, now: tuple[Array, ...], gradient: Array, rate: float
) -> tuple[Array, ...]:
    """Return the parameters and both moments after a step (arXiv 1412.6980)."""
    first, second, eps = _ADAM

    def mixed(old: Array, new: Array, share: float) -> Array:
        return numerics.product(old, jnp.full_like(old, share)) + numerics.product(
            new, jnp.full_like(new, 1 - share)
        )

    value, mean, square = now
    mean = mixed(mean, gradient, first)
    square = mixed(square, numerics.product(gradient, gradient), second)
    count = (i + 1).astype(value.dtype)
    unbiased = numerics.divided(mean, 1 - first**count)
    root = jnp.sqrt(numerics.divided(square, 1 - second**count))
    step = numerics.product(unbiased, jnp.full_like(unbiased, rate)) / (root + eps)
    return value - step, mean, square


def _averaged(total: Array, count: int, weights: Sequence[Array] | None) -> Array:
    return numerics.divided(total, count if weights is None else add(weights))


def _svd(matrix: Array, largest: Array | float = 0.0) -> tuple[Array, Array, Array]:
    """Return left vectors, singular values and right vectors, a direction a column.

    Directions of singular value 0, to rounding, are no one's: LAPACK makes them up, and
    here they are 0, as are their singular values: of a difference, these would be what
    rounding left of something larger.

    Args:
      matrix: [m, n].
      largest: of a difference, a singular value of what it is the difference of:
        rounding is relative to that, if it is larger than the difference's own.
    """
    left, spectrum, right = _decomposed(matrix)
    # LAPACK's zeros are some eps of the largest, and grow more slowly than this; with
    # NumPy's max(m, n) eps an embedding's directions of a hundredth would be none.
    rounding = 4 * math.sqrt(sum(matrix.shape)) * jnp.finfo(matrix.dtype).eps
    # NaN is kept, to be found in what is merged.
    kept = ~(spectrum <= rounding * jnp.maximum(spectrum[0], largest))
    left, spectrum, right = (
        jnp.where(kept, part, 0) for part in (left, spectrum, right.T)
    )
    return left, spectrum, right


def _decomposed(matrix: Array) -> tuple[Array, Array, Array]:
    """Return an SVD; on CPUs by QR steps where LAPACK's gesdd does not converge.

    It answers with NaN then: of differences of a low rank, rarely, and as blocked as
    one thread has it (seen with OpenBLAS 0.3.31). gesvd takes longer and converges.
    """
    found = jnp.linalg.svd(matrix, full_matrices=False)
    by_steps = functools.partial(
        svd, full_matrices=False, algorithm=SvdAlgorithm.QR, compute_uv=True
    )

    def on_cpu(matrix: Array) -> Any:
        converged = jnp.isfinite(found[1]).all() | ~jnp.isfinite(matrix).all()
        return jax.lax.cond(converged, lambda _: tuple(found), by_steps, matrix)

    return jax.lax.platform_dependent(
        matrix, cpu=on_cpu, default=lambda _: tuple(found)
    )


def _polar(columns: Array) -> Array:
    """Return the partial isometry of a polar decomposition: the same for any SVD."""
    left, _, right = _svd(columns)
    return numerics.matmul(left, right.T)


def _root_mean(matrix: Array) -> Array:
    """Return the root mean square of the singular values: at most the largest."""
    squares = _sum(numerics.product(matrix, matrix))
    return jnp.sqrt(numerics.divided(squares, min(matrix.shape)))


def _mean(spectrum: Array) -> Array:
    return numerics.divided(_sum(spectrum), spectrum.size)


def _sum(values: Array) -> Array:
    """Return the sum of all, added in a fixed order."""
    return numerics.row_sums(values.ravel())[0]
