"""Methods that look at which experts moved an element, and how much each leaf."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods.combiners import add
from merging.methods.method import Method, compose
from merging.methods.reductions import Layout, Sums, Threshold, kept_count
from merging.methods.registry import register
from merging.methods.transforms import cutoff_of, fraction, number
from merging.runtime import numerics
from merging.runtime.errors import UserError


@register(
    "Wan et al. 2024, arXiv 2408.07990",
    "keep the density of largest variance, wᵢ ∝ Σ Δᵢ² by leaf, elect, disjoint mean",
    evidence="at 24x worse than task arithmetic at K = 8 (0.11 against 0.26), not "
    "once corrected for 65 comparisons, and behind it in every run at K = 2 and 4",
)
def sce(density: float = 0.1, scale: float = 1.0) -> Method:
    """Select, calculate, erase.

    Of each leaf, the elements of the largest variance among the experts are kept,
    ⌊density · those that vary⌋ of them, lowest index first on ties (1 keeps all). An
    expert's weight in a leaf is its share of the sum of squares that is left; where all
    are 0 they are equal. Signs are elected by mass, a zero sum counts as +.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.sce(density=0.5)
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.0, -3.0, 0.0, 0.0]
    """
    return compose("sce", combiner=Sce(varying(density)), scale=scale)


# The density is the host's business: another compiles nothing.
@partial(jax.tree_util.register_dataclass, data_fields=["density"], meta_fields=[])
@dataclass(frozen=True)
class Varying:
    """Keep, of all experts, the elements that vary the most; see `sce`."""

    density: float
    granularity = "element"

    @property
    def thresholds(self):
        """Ask for the variance of the last element that is kept."""
        rank = _KeptOf(self.density)
        return (Threshold(rank, "tensor", "exact", nonzero=True),)

    def score(self, values, weights, base):
        """Return K³ times the variance over K experts.

        As Σ (K xᵢ − Σ xⱼ)²: a mean would round, and make unequal what ties.
        """
        total, count = add(values), float(len(values))
        off = [numerics.scaled(value, count) - total for value in values]
        return add([numerics.product(x, x) for x in off])

    def state(self, layout: Layout, found: Sequence[tuple[np.ndarray, np.ndarray]]):
        """Return the threshold and the cutoff of each leaf."""
        return cutoff_of(layout, found[0])

    def apply(self, values, weights, base, index, state):
        """Zero what varies less."""
        variance = self.score(values, weights, base)
        keys = numerics.magnitude_keys(variance, state.threshold.dtype)
        keep = numerics.kept(keys, index, state.threshold, state.cutoff)
        return [jnp.where(keep, value, 0) for value in values]


def varying(density: float, nothing: bool = False) -> tuple[Varying, ...]:
    """Return what selects a fraction, one for all experts: nothing if it is 1.

    Raises:
      UserError: no fraction (see `transforms.fraction`), or several.
    """
    found = fraction("density", density, nothing)
    if isinstance(found, tuple):
        raise UserError(f"density must be one number for all experts, not {density!r}.")
    return (Varying(found),) if found < 1 else ()


@dataclass(frozen=True)
class _KeptOf:
    density: float

    def __call__(self, elements: int) -> int:
        return kept_count(self.density, elements)


def _squares(values: Sequence[Array], weights: object) -> list[Array]:
    return [numerics.product(value, value) for value in values]


@partial(
    jax.tree_util.register_dataclass, data_fields=["selections"], meta_fields=["least"]
)
@dataclass(frozen=True)
class Sce:
    """The mean, by each expert's energy in a leaf, of those that agree; see `sce`.

    Attributes:
      selections: of what varies the most; none selects all.
      least: a leaf whose mean squares sum to less has equal weights, and a divisor is
        no less; 0 but for mergekit's.
    """

    selections: tuple[Varying, ...]
    least: float = 0.0
    granularity = "row"
    takes = None

    def check(self, weights):
        """Take any."""

    def reduction(self):
        """Ask for each expert's sum of squares."""
        return Sums(_squares, "the sums of squares")

    def state(self, layout: Layout, found, weights):
        """Return each expert's weight: K arrays [leaves]."""
        means = found / np.maximum(layout.sizes, 1)[:, None]
        total = means.sum(axis=1, keepdims=True)
        equal = (total < self.least) | (total == 0)
        shares = means / np.where(equal, 1, total)
        return tuple(np.where(equal, 1 / found.shape[1], shares).T)

    def combine(self, values, weights, state):
        """Elect a sign, and add those that agree by their weights."""
        positive = add(values) >= 0
        agree = [jnp.where(positive, v > 0, v < 0) for v in values]
        shares = [
            jnp.broadcast_to(s, v.shape).astype(v.dtype)
            for s, v in zip(state, values, strict=True)
        ]
        pairs = list(zip(agree, shares, values, strict=True))
        top = add([jnp.where(yes, numerics.product(s, v), 0) for yes, s, v in pairs])
        bottom = add([jnp.where(yes, s, 0) for yes, s, _ in pairs])
        bottom = jnp.maximum(bottom, jnp.asarray(self.least, bottom.dtype))
        return top / jnp.where(bottom != 0, bottom, 1)


@register(
    "RAM 2026, arXiv 2601.13572",
    "θ = θ₀ + λ (the mean, at each element, of the experts that moved it)",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.27 against 0.26)",
)
def ram(epsilon: float = 1e-5, scale: float = 1.0) -> Method:
    """Reinforced agent merging: what one expert alone moved is kept in full.

    Args:
      epsilon: an element moved if |Δ| is larger.
      scale: λ.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, 0])}, {"w": jnp.array([2.0, 0, -3, 0])}
    >>> method = merging.methods.ram()
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3.  1. -3.  0.]
    """
    combiner = Ram(_not_negative("epsilon", epsilon))
    return compose("ram", combiner=combiner, scale=scale)


@register(
    "RAM+ 2026, arXiv 2601.13572, tensor by tensor as in mergekit 0.1.5",
    "ram, what one expert alone moved times 1 + r min(shared / unique, alpha)",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.27 against 0.26)",
)
def ramplus_tl(
    r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5, scale: float = 1.0
) -> Method:
    """RAM+ by tensor: what is an expert's own is strengthened.

    shared and unique are, of the elements of a leaf that an expert moved, the numbers
    of those that others moved too, and of those that none did.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, 0])}, {"w": jnp.array([2.0, 0, -3, 0])}
    >>> method = merging.methods.ramplus_tl(r=0.5, alpha=2.0)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3.   1.5 -4.5  0. ]
    """
    combiner = RamPlus(
        _not_negative("epsilon", epsilon),
        number("r", r),
        _not_negative("alpha", alpha),
    )
    return compose("ramplus_tl", combiner=combiner, scale=scale)


def _not_negative(name: str, value: float) -> float:
    if number(name, value) < 0:
        raise UserError(f"{name} must not be negative, not {value!r}.")
    return float(value)


@dataclass(frozen=True)
class _Moved:
    """Who moved an element, and of it whether others did."""

    epsilon: float

    def masks(self, values: Sequence[Array]) -> tuple[list[Array], Array]:
        """Return where each expert moved, and how many did: K bool, and a float."""
        moved = [jnp.abs(value) > self.epsilon for value in values]
        return moved, add([yes.astype(values[0].dtype) for yes in moved])

    def __call__(self, values: Sequence[Array], weights: object) -> list[Array]:
        """Return the terms whose sums are each expert's shared, then each's unique."""
        moved, count = self.masks(values)
        sorts = (count > 1, count == 1)
        return [(yes & of).astype(count.dtype) for of in sorts for yes in moved]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Ram:
    """The mean of those that moved; see `ram`."""

    epsilon: float
    granularity = "element"
    selections = ()
    takes = None

    def check(self, weights):
        """Take any."""

    def reduction(self):
        """Need nothing."""

    def state(self, layout: Layout, found, weights):
        """Keep nothing."""
        return ()

    def combine(self, values, weights, state):
        """Add what moved, and divide by how many did."""
        moved, count = _Moved(self.epsilon).masks(values)
        total = add(
            [jnp.where(yes, v, 0) for yes, v in zip(moved, values, strict=True)]
        )
        return total / jnp.maximum(count, 1)


@jax.tree_util.register_static
@dataclass(frozen=True)
class RamPlus:
    """The same, with what only one moved scaled up; see `ramplus_tl`."""

    epsilon: float
    r: float
    alpha: float
    granularity = "row"
    selections = ()
    takes = None

    def check(self, weights):
        """Take any."""

    def reduction(self):
        """Ask how much each expert moved together with others, and alone."""
        return Sums(_Moved(self.epsilon), f"the elements moved by {self.epsilon}")

    def state(self, layout: Layout, found, weights):
        """Return the factor of what is each expert's own: K arrays [leaves]."""
        shared, unique = np.split(found, 2, axis=1)
        # None of its own: the factor is as large as it gets, and scales nothing.
        share = np.divide(
            shared, unique, out=np.full_like(shared, np.inf), where=unique > 0
        )
        return tuple((1 + self.r * np.minimum(share, self.alpha)).T)

    def combine(self, values, weights, state):
        """Add what moved, by how many did."""
        moved, count = _Moved(self.epsilon).masks(values)
        parts = []
        for yes, value, factor in zip(moved, values, state, strict=True):
            factor = jnp.broadcast_to(factor, value.shape).astype(value.dtype)
            alone = numerics.product(factor, value)
            part = jnp.where(count == 1, alone, value / jnp.maximum(count, 1))
            parts.append(jnp.where(yes, part, 0))
        return add(parts)
