"""The rules of mergekit 0.1.5, where they differ from ours.

So that who comes from there finds the same numbers first: per tensor, weights inside
the election, sums where others have means, the ratio of L1 norms where papers divide by
a probability. slerp, nuslerp, multislerp, karcher, nearswap, passthrough, ram and
ramplus_tl are the same here and there.
"""

import math

from merging.methods import combiners
from merging.methods.combiners import Weights
from merging.methods.consensus import Sce, varying
from merging.methods.method import Method, compose
from merging.methods.registry import register
from merging.methods.sparsification import band, magprune, match_norm
from merging.methods.stock import Stock
from merging.methods.transforms import Fraction, Transform, drop, number, trim


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
    combiner = _sum(normalize, weights)
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
    rescale: bool = False,
) -> Method:
    """TIES as mergekit has it: the trim is of each tensor, the weights vote too.

    Of equal magnitudes at the threshold mergekit keeps those its sort puts first, and
    this keeps those of the lowest index. A density of 0 keeps nothing. `rescale` is
    `sparsification.match_norm`.
    """
    return compose(
        "ties@mergekit",
        trim(density, "tensor", "exact", at_least=1, nothing=True),
        *_rescaled(rescale),
        combiner=_election(normalize),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, dare_linear",
    "Δ̂ᵢ = m ⊙ Δᵢ ‖Δᵢ‖₁/‖m ⊙ Δᵢ‖₁ by tensor, m ~ Bernoulli(density); then its sum",
    name="dare_linear@mergekit",
)
def dare_linear_mergekit(
    density: Fraction = 1.0,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = False,
    rescale: bool = True,
) -> Method:
    """Drop at random, give the L1 norm back, and add."""
    return compose(
        "dare_linear@mergekit",
        drop(density, False, nothing=True),
        *_rescaled(rescale),
        combiner=_sum(normalize, weights),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, dare_ties",
    "dare_linear@mergekit's drop, then mergekit's election; a sum unless normalize",
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
        drop(density, False, nothing=True),
        *_rescaled(rescale),
        combiner=_election(normalize),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, breadcrumbs",
    "breadcrumbs by tensor; at a density of 1 outliers stay, too",
    name="breadcrumbs@mergekit",
)
def breadcrumbs_mergekit(
    density: Fraction = 1.0,
    gamma: Fraction = 0.01,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = False,
    rescale: bool = False,
) -> Method:
    """Keep a band of magnitudes of each tensor, and add."""
    return compose(
        "breadcrumbs@mergekit",
        band(density, gamma, nothing=True),
        *_rescaled(rescale),
        combiner=_sum(normalize, weights),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, breadcrumbs_ties",
    "breadcrumbs@mergekit's band, then mergekit's election; a sum unless normalize",
    name="breadcrumbs_ties@mergekit",
)
def breadcrumbs_ties_mergekit(
    density: Fraction = 1.0,
    gamma: Fraction = 0.01,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = False,
    rescale: bool = False,
) -> Method:
    """Keep a band of magnitudes of each tensor, and elect."""
    return compose(
        "breadcrumbs_ties@mergekit",
        band(density, gamma, nothing=True),
        *_rescaled(rescale),
        combiner=_election(normalize),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, della",
    "della's chance, rescaled by L1 norms, then mergekit's election",
    name="della@mergekit",
)
def della_mergekit(
    density: Fraction = 1.0,
    epsilon: Fraction = 0.15,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = True,
    rescale: bool = True,
) -> Method:
    """Keep by chance and rank in the row, give the L1 norm back, and elect."""
    return compose(
        "della@mergekit",
        magprune(density, epsilon, False, nothing=True),
        *_rescaled(rescale),
        combiner=_election(normalize),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, della_linear",
    "della's chance, rescaled by L1 norms, then mergekit's sum",
    name="della_linear@mergekit",
)
def della_linear_mergekit(
    density: Fraction = 1.0,
    epsilon: Fraction = 0.15,
    scale: float = 1.0,
    weights: Weights = None,
    normalize: bool = False,
    rescale: bool = True,
) -> Method:
    """Keep by chance and rank in the row, give the L1 norm back, and add."""
    return compose(
        "della_linear@mergekit",
        magprune(density, epsilon, False, nothing=True),
        *_rescaled(rescale),
        combiner=_sum(normalize, weights),
        scale=scale,
        weights=weights,
    )


@register(
    "mergekit 0.1.5, sce",
    "sce; equal weights where mean squares sum to less than 1e-6, divisors no less",
    name="sce@mergekit",
)
def sce_mergekit(density: float = 1.0) -> Method:
    """SCE with mergekit's floors, which small task vectors stay below."""
    combiner = Sce(varying(density, nothing=True), least=1e-6)
    return compose("sce@mergekit", combiner=combiner, scale=1.0)


@register(
    "mergekit 0.1.5, model_stock",
    "model_stock; norms whose product is below 1e-6 make for a smaller cosine",
    name="model_stock@mergekit",
)
def model_stock_mergekit(filter_wise: bool = False) -> Method:
    """Model Stock by tensor, or `filter_wise` by row, with mergekit's floors."""
    combiner = Stock("row" if filter_wise else "tensor", least=1e-6)
    return compose("model_stock@mergekit", combiner=combiner, scale=1.0)


def _rescaled(rescale: bool) -> tuple[Transform, ...]:
    return (match_norm(),) if rescale else ()


def _election(normalize: bool) -> combiners.ElectSign:
    reduce = "mean" if normalize else "sum"
    return combiners.elect_sign(zero="positive", weighted=True, reduce=reduce)


def _sum(normalize: bool, weights: Weights) -> combiners.Combined:
    """Return a sum, or a mean; a sum of weights that is next to 0 divides nothing."""
    total = None
    if weights is not None:
        total = math.fsum(number("each weight", w) for w in weights)
    divides = normalize and (total is None or abs(total) >= 1e-8)
    return combiners.mean() if divides else combiners.sum()
