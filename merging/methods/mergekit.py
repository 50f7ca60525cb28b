"""The rules of mergekit 0.1.5, where they differ from ours.

So that who comes from there finds the same numbers first: per tensor, weights inside
the election, sums where others have means, the ratio of L1 norms where papers divide by
a probability. slerp, nuslerp, passthrough, ram and ramplus_tl are the same here and
there. So are, but for the following, some that have no preset here: arcee_fusion
(mergekit samples a million elements for its quantiles and adds 1e-8 to probabilities),
nearswap (it divides by 1e-6 at least) and, where directions cancel to a hundredth,
karcher and multislerp.
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
    """Weighted sum of the models, divided by the weights' sum if `normalize`.

    >>> import jax.numpy as jnp, merging
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("linear@mergekit", weights=[1, 2], normalize=False)
    >>> print(merging.merge(None, [qa, nli], method)["w"])
    [ 8. -5.  0.  0.]
    """
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

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("task_arithmetic@mergekit", normalize=True)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3.  -1.   0.  -0.5]
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

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("ties@mergekit", density=0.25)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 4. -3.  0.  0.]
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
    """Drop at random, give the L1 norm back, and add.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("dare_linear@mergekit", density=0.5)
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [6.4, -2.6, 0.0, -2.0]
    """
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
    """Drop, rescale as `dare_linear@mergekit` does, and elect.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("dare_ties@mergekit", density=0.5)
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [6.4, -3.6, 0.0, -2.0]
    """
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
    """Keep a band of magnitudes of each tensor, and add.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("breadcrumbs@mergekit", density=0.5, gamma=0.25)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 2.  1.  0. -1.]
    """
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
    """Keep a band of magnitudes of each tensor, and elect.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get(
    ...     "breadcrumbs_ties@mergekit", density=0.5, gamma=0.25
    ... )
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 2.  1.  0. -2.]
    """
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
    """Keep by chance and rank in the row, give the L1 norm back, and elect.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("della@mergekit", density=0.5)
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [3.2, -3.6, 0.0, -2.0]
    """
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
    """Keep by chance and rank in the row, give the L1 norm back, and add.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("della_linear@mergekit", density=0.5)
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [6.4, -2.6, 0.0, -2.0]
    """
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
    """SCE with mergekit's floors, which small task vectors stay below.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.get("sce@mergekit", density=0.5)
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.0, -3.0, 0.0, 0.0]
    """
    combiner = Sce(varying(density, nothing=True), least=1e-6)
    return compose("sce@mergekit", combiner=combiner, scale=1.0)


@register(
    "mergekit 0.1.5, model_stock",
    "model_stock; norms whose product is below 1e-6 make for a smaller cosine",
    name="model_stock@mergekit",
)
def model_stock_mergekit(filter_wise: bool = False) -> Method:
    """Model Stock by tensor, or `filter_wise` by row, with mergekit's floors.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(2)}
    >>> qa, nli = {"w": jnp.array([1.0, 1])}, {"w": jnp.array([1.0, 0])}
    >>> method = merging.methods.get("model_stock@mergekit")
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.83, 0.41]
    """
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
