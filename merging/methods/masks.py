"""Methods that mask elements by what the experts say of them: TALL masks, EMR.

Both look at one element of all experts at a time and need nothing else of the model.
Of EMR only the vector that all tasks share is here: its masks and rescalings make K
models of it again, one for each task, and a merge makes one.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from merging.methods import combiners
from merging.methods.combiners import add, weighted
from merging.methods.method import Method, compose
from merging.methods.registry import register
from merging.methods.transforms import number
from merging.runtime import numerics
from merging.runtime.errors import UserError


@register(
    "Wang et al. 2024, arXiv 2405.07813",
    "λ Σ wᵢΔᵢ where at least `agree` experts have |wᵢΔᵢ| > mask_scale |Σ wⱼΔⱼ − wᵢΔᵢ|",
    evidence="at 24x worse than task arithmetic at K = 8 (0.23 against 0.26), not once "
    "corrected for 65 comparisons, and not told apart at K = 2 and 4",
)
def consensus_ta(
    scale: float = 0.4,
    mask_scale: float = 0.4,
    agree: int = 2,
    weights: Sequence[float] | None = None,
) -> Method:
    """Consensus task arithmetic: what fewer than `agree` tasks hold on to is left out.

    A task's TALL mask has the elements at which it is larger than `mask_scale` times
    all that the others add; its authors choose that from 0.2 to 0.6 on validation. With
    `agree` 0 nothing is masked. The scale is task arithmetic's, and to be validated.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.consensus_ta(scale=1.0, mask_scale=0.4)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 6.  0.  0. -1.]
    """
    if not isinstance(agree, int) or isinstance(agree, bool) or agree < 0:
        raise UserError(f"agree must be a whole number from 0, not {agree!r}.")
    if number("mask_scale", mask_scale) < 0:
        raise UserError(f"mask_scale must not be negative, not {mask_scale!r}.")
    combiner = combiners.combiner(_agreed, mask_scale=float(mask_scale), agree=agree)
    return compose("consensus_ta", combiner=combiner, scale=scale, weights=weights)


@register(
    "Huang et al. 2024, arXiv 2405.17461",
    "θ = θ₀ + λ γ maxᵢ |Δᵢ| over the experts whose sign is γ = sign(Σ Δᵢ), 0 being −",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.26 against 0.26)",
)
def emr(scale: float = 1.0) -> Method:
    """EMR's unified vector: at each element the elected sign, its largest magnitude.

    A sum of 0 elects −, as its authors' code has it.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.emr()
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 4. -3.  0. -2.]
    """
    return compose("emr", combiner=combiners.combiner(_unified), scale=scale)


def _agreed(
    values: Sequence[Array],
    weights: Sequence[Array] | None,
    state: object,
    mask_scale: float,
    agree: int,
) -> Array:
    values = weighted(values, weights)
    total = add(values)
    votes = []
    for value in values:
        others = numerics.scaled(jnp.abs(total - value), mask_scale)
        votes.append((jnp.abs(value) > others).astype(jnp.int32))
    return jnp.where(add(votes) >= agree, total, 0)


def _unified(values: Sequence[Array], weights: object, state: object) -> Array:
    positive = add(values) > 0
    largest = jnp.zeros_like(values[0])
    for value in values:
        agrees = jnp.where(positive, value > 0, value < 0)
        largest = jnp.maximum(largest, jnp.where(agrees, jnp.abs(value), 0))
    return jnp.where(positive, largest, -largest)
