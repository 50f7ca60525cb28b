"""The methods by name: short presets over the building blocks."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods import combiners
from merging.methods.combiners import add
from merging.methods.method import Method, compose
from merging.methods.reductions import gram_matrices, gram_terms
from merging.methods.registry import register
from merging.methods.transforms import Fraction, drop, number, rescale, trim
from merging.runtime import numerics

Weights = Sequence[float] | None


@register("Wortsman et al. 2022, arXiv 2203.05482", "θ = Σ wᵢθᵢ / Σ wᵢ; needs no base")
def average(weights: Weights = None) -> Method:
    """Weighted average of the models themselves.

    Args:
      weights: one per expert, in order; their sum must not be zero.
    """
    return compose("average", combiner=combiners.mean(), scale=None, weights=weights)


@register("Ilharco et al. 2023, arXiv 2212.04089", "θ = θ₀ + λ Σ wᵢΔᵢ")
def task_arithmetic(scale: float = 0.4, weights: Weights = None) -> Method:
    """Add the task vectors to the base. The default λ is the papers'; validate it."""
    return compose(
        "task_arithmetic", combiner=combiners.sum(), scale=scale, weights=weights
    )


@register(
    "Yadav et al. 2023, arXiv 2306.01708",
    "trim Δᵢ to the top density by magnitude, elect a sign, mean of those that agree",
)
def ties(
    density: Fraction = 0.2,
    scale: float = 1.0,
    weights: Weights = None,
    scope: str = "global",
    ties: str = "keep_all",
    zero: str = "majority",
) -> Method:
    """TIES-Merging: trim, elect sign, disjoint mean; θ = θ₀ + λ · that.

    Weights count after the election: Σ wᵢΔ̂ᵢ / Σ wᵢ over the experts that agree.
    For `scope`, `ties` see `transforms.trim`; for `zero`, `combiners.elect_sign`.
    """
    return compose(
        "ties",
        trim(density, scope, ties),
        combiner=combiners.elect_sign(zero=zero),
        scale=scale,
        weights=weights,
    )


@register(
    "Yu et al. 2024, arXiv 2311.03099",
    "Δ̂ᵢ = m ⊙ Δᵢ / density, m ~ Bernoulli(density); θ = θ₀ + λ Σ wᵢΔ̂ᵢ",
)
def dare(
    density: Fraction = 0.1,
    scale: float = 0.4,
    weights: Weights = None,
    rescale: bool = True,
) -> Method:
    """DARE: drop elements at random and rescale, then task arithmetic (its λ too)."""
    return compose(
        "dare",
        drop(density, rescale),
        combiner=combiners.sum(),
        scale=scale,
        weights=weights,
    )


@register(
    "Yu et al. 2024, arXiv 2311.03099, with Yadav et al. 2023",
    "DARE's drop and rescale, then TIES' election and disjoint mean",
)
def dare_ties(
    density: Fraction = 0.1,
    scale: float = 1.0,
    weights: Weights = None,
    trim_density: Fraction | None = None,
    rescale: bool = True,
    zero: str = "majority",
) -> Method:
    """DARE, then TIES' election; `trim_density` adds TIES' trim after the drop.

    MergeLM trims; most other tools do not, so None (the default) leaves it off.
    """
    chain = [drop(density, rescale)]
    if trim_density is not None:
        chain.append(trim(trim_density))
    return compose(
        "dare_ties",
        *chain,
        combiner=combiners.elect_sign(zero=zero),
        scale=scale,
        weights=weights,
    )


@register(
    "Wang et al. 2025, arXiv 2505.21226",
    "exactly the top density of each tensor / density, sign election, disjoint mean",
)
def rht(density: Fraction = 0.7, scale: float = 1.0, weights: Weights = None) -> Method:
    """Reparameterized Heavy-Tailed: DARE-TIES with magnitude in place of chance.

    As its authors' code has it: each tensor's top k = ⌊density·n⌋, lowest index first
    on ties, divided by the density; sign by mass, a zero sum counts as +; weights
    apply after the election and the divisor is the number of agreeing experts.
    """
    return compose(
        "rht",
        trim(density, "tensor", "exact"),
        rescale(density),
        combiner=combiners.elect_sign(zero="positive", divisor="count"),
        scale=scale,
        weights=weights,
    )


@register(
    "Jang et al. 2024, arXiv 2403.19522",
    "θ = θ₀ + λ t (θ̄ − θ₀), t = K cos / (1 + (K − 1) cos) for each leaf",
)
def model_stock(scale: float = 1.0) -> Method:
    """Model Stock: the mean of the experts, drawn towards the base where they disagree.

    cos is the mean of the pairwise cosines of the experts' task vectors on a leaf; the
    cosines of a vector that is zero there count as 0. A leaf whose t has no value (the
    denominator is 0) keeps the base, as in mergekit 0.1.5. One expert has t = 1.
    """
    combiner = combiners.combiner(_interpolated, terms=gram_terms, state=_stock_ratios)
    return compose("model_stock", combiner=combiner, scale=scale)


def _stock_ratios(sums: np.ndarray) -> np.ndarray:
    """Return t for each leaf, float64 [leaves], of the Gram matrices' sums."""
    gram = gram_matrices(sums)
    norms = np.sqrt(np.einsum("lii->li", gram))
    lengths = norms[:, :, None] * norms[:, None, :]
    cosines = np.divide(gram, lengths, out=np.zeros_like(gram), where=lengths > 0)
    count = gram.shape[1]
    if count < 2:
        return np.ones(len(gram))
    cosine = cosines[:, *np.triu_indices(count, 1)].mean(axis=1)
    below = 1 + (count - 1) * cosine
    return np.divide(count * cosine, below, out=np.zeros(len(gram)), where=below != 0)


def _interpolated(values: Sequence[Array], weights: object, ratio: Array) -> Array:
    mean = numerics.divided(add(values), len(values))
    return numerics.product(
        mean, jnp.broadcast_to(ratio, mean.shape).astype(mean.dtype)
    )


# The rules of mergekit 0.1.5, so that who comes from there finds the same numbers
# first: per tensor, weights inside the election, sums where others have means.


@register("mergekit 0.1.5, linear", "θ = Σ wᵢθᵢ [/ Σ wᵢ]", name="linear@mergekit")
def linear_mergekit(weights: Weights = None, normalize: bool = True) -> Method:
    """Weighted sum of the models, divided by the weights' sum if `normalize`."""
    combiner = combiners.mean() if normalize else combiners.sum()
    return compose("linear@mergekit", combiner=combiner, scale=None, weights=weights)


@register(
    "mergekit 0.1.5, task_arithmetic",
    "θ = θ₀ + λ Σ wᵢΔᵢ [/ Σ wᵢ]",
    name="task_arithmetic@mergekit",
)
def task_arithmetic_mergekit(
    scale: float = 1.0, weights: Weights = None, normalize: bool = False
) -> Method:
    """Add the task vectors; their weighted mean if `normalize`.

    Weights that sum to 0 divide by nothing.
    """
    name = "task_arithmetic@mergekit"
    combiner = _sum_of_mergekit(normalize, weights)
    return compose(name, combiner=combiner, scale=scale, weights=weights)


@register(
    "mergekit 0.1.5, ties",
    "keep exactly max(1, ⌊density·n⌋) of each tensor, elect by weighted mass, 0 is +",
    name="ties@mergekit",
)
def ties_mergekit(
    density: Fraction = 1.0,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = True,
) -> Method:
    """TIES as mergekit has it: the trim is of each tensor, the weights vote too.

    Of equal magnitudes at the threshold mergekit keeps those its sort puts first, and
    this keeps those of the lowest index. A density of 0 keeps nothing.
    """
    return compose(
        "ties@mergekit",
        trim(density, "tensor", "exact", at_least=1, nothing=True),
        combiner=_election_of_mergekit(normalize),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, dare_linear",
    "θ = θ₀ + λ Σ wᵢ(m ⊙ Δᵢ / density) [/ Σ wᵢ], m ~ Bernoulli(density)",
    name="dare_linear@mergekit",
)
def dare_linear_mergekit(
    density: Fraction = 1.0,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = False,
    rescale: bool = True,
) -> Method:
    """Drop at random, rescale, and add.

    The rescaling is the published one, 1 / density; mergekit's is the ratio of the
    tensor's L1 norms before and after its drop, of which that is the expectation.
    """
    return compose(
        "dare_linear@mergekit",
        drop(density, rescale, nothing=True),
        combiner=_sum_of_mergekit(normalize, weights),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, dare_ties",
    "DARE's drop and rescale, then mergekit's election; a sum unless normalize",
    name="dare_ties@mergekit",
)
def dare_ties_mergekit(
    density: Fraction = 1.0,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = False,
    rescale: bool = True,
) -> Method:
    """Drop, rescale as `dare_linear@mergekit` does, and elect."""
    return compose(
        "dare_ties@mergekit",
        drop(density, rescale, nothing=True),
        combiner=_election_of_mergekit(normalize),
        scale=scale,
        weights=weights,
    )


def _election_of_mergekit(normalize: bool) -> combiners.ElectSign:
    reduce = "mean" if normalize else "sum"
    return combiners.elect_sign(zero="positive", weighted=True, reduce=reduce)


def _sum_of_mergekit(normalize: bool, weights: Weights) -> combiners.Combined:
    """Return a sum, or a mean; a sum of weights that is next to 0 divides nothing."""
    total = None
    if weights is not None:
        total = math.fsum(number("each weight", w) for w in weights)
    divides = normalize and (total is None or abs(total) >= 1e-8)
    return combiners.mean() if divides else combiners.sum()
