"""Methods that are told something of the data: `merging collect` gathers it.

Both merge the models themselves and need no base.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from merging.methods import combiners
from merging.methods.combiners import add, weighted
from merging.methods.method import Method, compose
from merging.methods.registry import register
from merging.methods.statistics import FISHER, GRAM
from merging.methods.transforms import number
from merging.runtime import numerics
from merging.runtime.errors import UserError

Weights = Sequence[float] | None
# No eigenvalue is then below 1e-3 of the diagonal: float32 has half of its digits left.
MOST_OFF_DIAGONAL = 0.999


@register(
    "Matena and Raffel 2022, arXiv 2111.09832",
    "θ = Σ wᵢFᵢθᵢ / Σ wᵢFᵢ, Fᵢ the diagonal empirical Fisher, at least `floor`",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.26 against 0.31), "
    "and below its base held-out",
)
def fisher(floor: float = 0.0, weights: Weights = None) -> Method:
    """Fisher merging: each weight's mean, by how much each model's output minds it.

    Statistics ``fisher`` of every expert, for every leaf: the empirical Fisher
    information, squared gradients at the given targets, where its authors take their
    expectation over the model's own predictions. They divide each model's by its norm
    over all leaves, which `weights` can do here.

    Args:
      floor: the least that an Fᵢ counts as, in its own unit, the square of nats per
        unit of the weight. An expert that has converged may have 1e-9 to 1e-8 and
        less: a floor above makes the plain mean of it. 0 is none; where all are 0 it is
        the plain mean.
      weights: one per expert, ≥ 0.

    >>> import jax.numpy as jnp, merging
    >>> qa, nli = {"w": jnp.array([4.0, 4])}, {"w": jnp.array([0.0, 0])}
    >>> told = {"qa": {"w": jnp.array([3.0, 1])}, "nli": {"w": jnp.array([1.0, 1])}}
    >>> experts, method = {"qa": qa, "nli": nli}, merging.methods.fisher()
    >>> print(merging.merge(None, experts, method, statistics=told)["w"])
    [3. 2.]
    """
    if number("floor", floor) < 0:
        raise UserError(f"floor must be positive, not {floor!r}, or 0 for none.")
    combiner = combiners.combiner(
        _by_information,
        refuse=_refuse_negative,
        statistics=FISHER,
        floor=float(floor),
    )
    return compose("fisher", combiner=combiner, scale=None, weights=weights)


@register(
    "Jin et al. 2023, arXiv 2212.09849",
    "W = (Σ wᵢGᵢ)⁻¹ Σ wᵢGᵢWᵢ, Gᵢ = E[x xᵀ] of a linear map's inputs; others' mean",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.33 against 0.31)",
)
def regmean(off_diagonal: float = 0.9, weights: Weights = None) -> Method:
    """RegMean: each linear map's outputs are the nearest to those of every expert's.

    Statistics ``gram`` of every expert, for its linear maps; what has none (embeddings,
    norms, biases) is averaged. Elements off the diagonal of each Gᵢ are multiplied by
    `off_diagonal`, 0.999 at most, which keeps the sum from being singular: of fewer
    tokens than inputs it would be, and float32 has no digit right near it. An input
    that was 0 in all examples keeps the mean.

    >>> import jax.numpy as jnp, merging
    >>> qa, nli = {"w": jnp.full((2, 2), 4.0)}, {"w": jnp.zeros((2, 2))}
    >>> told = {"qa": {"w": jnp.diag(jnp.array([3.0, 1]))}, "nli": {"w": jnp.eye(2)}}
    >>> experts, method = {"qa": qa, "nli": nli}, merging.methods.regmean()
    >>> print(merging.merge(None, experts, method, statistics=told)["w"].round(2))
    [[3. 3.]
     [2. 2.]]
    """
    if not 0 <= number("off_diagonal", off_diagonal) <= MOST_OFF_DIAGONAL:
        raise UserError(
            f"off_diagonal must be in [0, {MOST_OFF_DIAGONAL}], not {off_diagonal!r}: "
            "nearer to 1 the Gram matrices may be singular, and float32 can't solve."
        )
    combiner = combiners.combiner(
        _regressed,
        refuse=_refuse_negative,
        statistics=GRAM,
        off_diagonal=float(off_diagonal),
    )
    return compose("regmean", combiner=combiner, scale=None, weights=weights)


def _refuse_negative(weights: Sequence[float]) -> None:
    if min(weights) < 0:
        raise UserError(f"the weights of a mean must not be negative: {weights!r}.")
    combiners.refuse_sum_of_zero(weights)


def _by_information(
    values: Sequence[Array],
    weights: Sequence[Array] | None,
    state: object,
    statistics: Sequence[Array],
    floor: float,
) -> Array:
    shares = weighted([jnp.maximum(known, floor) for known in statistics], weights)
    largest = functools.reduce(jnp.maximum, shares)
    # In parts of the largest: next to the least of float32 there is no precision.
    known = largest > 0
    divisor = jnp.where(known, largest, 1)
    equal = weighted([jnp.ones_like(largest)] * len(shares), weights)
    shares = [
        jnp.where(known, share / divisor, one)
        for share, one in zip(shares, equal, strict=True)
    ]
    pairs = zip(values, shares, strict=True)
    return add([numerics.product(*pair) for pair in pairs]) / add(shares)


def _regressed(
    values: Sequence[Array],
    weights: Sequence[Array] | None,
    state: object,
    statistics: Sequence[Array] | None,
    off_diagonal: float,
) -> Array:
    mean = combiners.mean().combine(values, weights, state)
    if statistics is None:
        return mean

    def solved(of: tuple[Array, Sequence[Array], Sequence[Array]]) -> Array:
        mean, matrices, grams = of
        total, pull = 0.0, 0.0
        for matrix, gram in zip(matrices, weighted(grams, weights), strict=True):
            inside = numerics.scaled(gram, off_diagonal)
            gram = jnp.where(jnp.eye(len(gram), dtype=bool), gram, inside)
            total = total + gram
            # Of the distance to the mean, so that equal models merge to themselves.
            pull = pull + numerics.matmul(matrix - mean, gram)
        return mean + _solved(total, pull)

    return jax.lax.map(solved, (mean, list(values), list(statistics)))


def _solved(gram: Array, right: Array) -> Array:
    """Return X of X gram = right, for a positive semidefinite Gram matrix [n, n].

    Scaled to a diagonal of 1, a matrix whose other elements are `off_diagonal` times
    correlations has no eigenvalue below 1 − off_diagonal, whatever the inputs' sizes.
    """
    diagonal = jnp.diagonal(gram)
    unit = jnp.where(
        diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0
    )
    scaled = gram * unit[:, None] * unit[None, :]
    scaled = jnp.where(jnp.eye(len(gram), dtype=bool), 1, scaled)
    factor = jax.scipy.linalg.cho_factor(scaled, lower=True)
    found = jax.scipy.linalg.cho_solve(factor, (right * unit).T).T
    # The mean is added to it: fused or not, as the matrices of a block are many or one.
    return numerics.product(found, unit)
