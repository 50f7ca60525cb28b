"""The methods by name: short presets over the building blocks (METHODS.md's table)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from merging.methods import combiners
from merging.methods.method import Method, compose
from merging.methods.transforms import Fraction, drop, rescale, trim
from merging.runtime.errors import nearest

Weights = Sequence[float] | None


class Entry(NamedTuple):
    """What `merging methods` prints: name, parameters with defaults, paper."""

    name: str
    parameters: dict[str, Any]
    paper: str
    definition: str


_PRESETS: dict[str, tuple[Callable[..., Method], Entry]] = {}


def _preset(paper: str, definition: str, name: str = ""):
    def register(function: Callable[..., Method]) -> Callable[..., Method]:
        signature = inspect.signature(function)
        defaults = {key: p.default for key, p in signature.parameters.items()}
        entry = Entry(name or function.__name__, defaults, paper, definition)
        _PRESETS[entry.name] = function, entry
        return function

    return register


@_preset("Wortsman et al. 2022, arXiv 2203.05482", "θ = Σ wᵢθᵢ / Σ wᵢ; needs no base")
def average(weights: Weights = None) -> Method:
    """Weighted average of the models themselves.

    Args:
      weights: one per expert, in order; their sum must not be zero.
    """
    return compose("average", combiner=combiners.mean(), scale=None, weights=weights)


@_preset("Ilharco et al. 2023, arXiv 2212.04089", "θ = θ₀ + λ Σ wᵢΔᵢ")
def task_arithmetic(scale: float = 0.4, weights: Weights = None) -> Method:
    """Add the task vectors to the base. The default λ is the papers'; validate it."""
    return compose(
        "task_arithmetic", combiner=combiners.sum(), scale=scale, weights=weights
    )


@_preset(
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


@_preset(
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


@_preset(
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


@_preset(
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


# The rules of mergekit 0.1.5, so that who comes from there finds the same numbers
# first: per tensor, weights inside the election, sums where others have means.


@_preset("mergekit 0.1.5, linear", "θ = Σ wᵢθᵢ [/ Σ wᵢ]", name="linear@mergekit")
def linear_mergekit(weights: Weights = None, normalize: bool = True) -> Method:
    """Weighted sum of the models, divided by the weights' sum if `normalize`."""
    combiner = combiners.mean() if normalize else combiners.sum()
    return compose("linear@mergekit", combiner=combiner, scale=None, weights=weights)


@_preset(
    "mergekit 0.1.5, task_arithmetic",
    "θ = θ₀ + λ Σ wᵢΔᵢ [/ Σ wᵢ]",
    name="task_arithmetic@mergekit",
)
def task_arithmetic_mergekit(
    scale: float = 1.0, weights: Weights = None, normalize: bool = False
) -> Method:
    """Add the task vectors; their weighted mean if `normalize`."""
    combiner = combiners.mean() if normalize else combiners.sum()
    name = "task_arithmetic@mergekit"
    return compose(name, combiner=combiner, scale=scale, weights=weights)


@_preset(
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
    this keeps those of the lowest index. Weights may not be negative.
    """
    return compose(
        "ties@mergekit",
        trim(density, "tensor", "exact", at_least=1),
        combiner=_election_of_mergekit(normalize),
        scale=scale,
        weights=weights,
    )


@_preset(
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
        drop(density, rescale),
        combiner=combiners.mean() if normalize else combiners.sum(),
        scale=scale,
        weights=weights,
    )


@_preset(
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
        drop(density, rescale),
        combiner=_election_of_mergekit(normalize),
        scale=scale,
        weights=weights,
    )


def _election_of_mergekit(normalize: bool) -> combiners.ElectSign:
    reduce = "mean" if normalize else "sum"
    return combiners.elect_sign(zero="positive", weighted=True, reduce=reduce)


def names() -> list[str]:
    """Return the methods' names, in the order of `merging methods`."""
    return list(_PRESETS)


def get(name: str, **parameters: Any) -> Method:
    """Return the method of that name.

    Raises:
      UserError: an unknown name or parameter (with the nearest valid ones), or a
        value that is out of range.
    """
    if name not in _PRESETS:
        raise nearest("method", name, _PRESETS)
    function, entry = _PRESETS[name]
    for parameter in parameters:
        if parameter not in entry.parameters:
            raise nearest(f"parameter of {name}", parameter, entry.parameters)
    return function(**parameters)


def catalogue() -> list[Entry]:
    """Return a record of every method: name, parameters with defaults, paper."""
    return [entry for _, entry in _PRESETS.values()]
