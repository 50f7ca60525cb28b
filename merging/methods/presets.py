"""The methods by name: short presets over the building blocks."""

from collections.abc import Sequence

from merging.methods import combiners
from merging.methods.method import Method, compose
from merging.methods.registry import register
from merging.methods.transforms import Fraction, drop, rescale, trim

Weights = Sequence[float] | None


@register(
    "Wortsman et al. 2022, arXiv 2203.05482",
    "θ = Σ wᵢθᵢ / Σ wᵢ; needs no base",
    evidence="on large IT bases as good as the others (arXiv 2410.03617); of our tiny "
    "ones it keeps 0.37 of the gain at K = 2, task arithmetic 0.50; at 24x not told "
    "apart from it (K = 8: 0.27 against 0.26)",
)
def average(weights: Weights = None) -> Method:
    """Weighted average of the models themselves.

    Args:
      weights: one per expert, in order; their sum must not be zero.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.average(weights=[3, 1])
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3.5   0.    0.   -1.25]
    """
    return compose("average", combiner=combiners.mean(), scale=None, weights=weights)


@register(
    "Ilharco et al. 2023, arXiv 2212.04089",
    "θ = θ₀ + λ Σ wᵢΔᵢ",
    evidence="with a chosen λ the one to beat: alone in gaining reliably on LLMs, "
    "4 of them on 16 benchmarks (arXiv 2511.21437)",
)
def task_arithmetic(scale: float = 0.4, weights: Weights = None) -> Method:
    """Add the task vectors to the base. The default λ is the papers'; validate it.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.task_arithmetic(scale=0.5)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3.  -1.   0.  -0.5]
    """
    return compose(
        "task_arithmetic", combiner=combiners.sum(), scale=scale, weights=weights
    )


@register(
    "Yadav et al. 2023, arXiv 2306.01708",
    "trim Δᵢ to the top density by magnitude, elect a sign, mean of those that agree",
    evidence="no reliable gain on LLMs (arXiv 2511.21437); of our tiny models mostly "
    "within 0.05 of task arithmetic; at 24x not told apart from it (K = 8: 0.28 "
    "against 0.26)",
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

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.ties(density=0.25)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3. -3.  0. -2.]
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
    evidence="at 24x not told apart from task arithmetic, and behind it in every run "
    "with K = 8 (0.16 against 0.26)",
)
def dare(
    density: Fraction = 0.1,
    scale: float = 0.4,
    weights: Weights = None,
    rescale: bool = True,
) -> Method:
    """DARE: drop elements at random and rescale, then task arithmetic (its λ too).

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.dare(density=0.5, scale=1.0)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [12. -4.  0. -4.]
    """
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
    evidence="on large IT bases as good as the others (arXiv 2410.03617); of our "
    "smallest models behind them; at 24x not told apart from task arithmetic (K = 8: "
    "0.25 against 0.26)",
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

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.dare_ties(density=0.5)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 6. -6.  0. -4.]
    """
    chain = (drop(density, rescale),)
    if trim_density is not None:
        chain += (trim(trim_density),)
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
    evidence="of our tiny models mostly within 0.05 of task arithmetic and TIES; at "
    "24x not told apart from task arithmetic (K = 8: 0.25 against 0.26)",
)
def rht(density: Fraction = 0.7, scale: float = 1.0, weights: Weights = None) -> Method:
    """Reparameterized Heavy-Tailed: DARE-TIES with magnitude in place of chance.

    As its authors' code has it: each tensor's top k = ⌊density·n⌋, lowest index first
    on ties, divided by the density; sign by mass, a zero sum counts as +; weights
    apply after the election and the divisor is the number of agreeing experts.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.rht(density=0.5)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 6. -6.  0. -4.]
    """
    return compose(
        "rht",
        trim(density, "tensor", "exact"),
        rescale(density),
        combiner=combiners.elect_sign(zero="positive", divisor="count"),
        scale=scale,
        weights=weights,
    )
