"""Combiners: K transformed task vectors (or models) become one.

Like a transform, a combiner is a frozen dataclass of static words with two
functions: `inquire` finds on the host what it must know of the whole model, and
`combine` is pure and elementwise. Experts are added one by one in a fixed order, as
a reduction over a stacked axis might be reordered by the compiler.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from merging.methods import statistics
from merging.runtime import numerics
from merging.runtime.errors import UserError, nearest


class Combiner(Protocol):
    """What `Method` needs of a combiner."""

    def check(self, weights: Sequence[float]) -> None:
        """Raise a UserError if these weights cannot be combined with."""

    def inquire(self) -> Generator[Any, Any, Any]:
        """Find what is needed of the whole model."""

    def combine(
        self, values: Sequence[Array], weights: Sequence[Array] | None, state: Any
    ) -> Array:
        """Combine K blocks of one shape."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sum:
    """Σ wᵢΔᵢ (Ilharco et al. 2023)."""

    def check(self, weights):
        """Accept any, negative ones too (that is forgetting)."""

    def inquire(self):
        """Need nothing."""
        yield from ()

    def combine(self, values, weights, state):
        """Add, in order."""
        return _add(_weighted(values, weights))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mean:
    """Σ wᵢθᵢ / Σ wᵢ; the weights' sum must not be zero."""

    def check(self, weights):
        """Refuse weights that sum to zero."""
        if math.fsum(weights) == 0:
            raise UserError(f"the weights of a mean must not sum to 0: {weights!r}.")

    def inquire(self):
        """Need nothing."""
        yield from ()

    def combine(self, values, weights, state):
        """Add, in order, then divide once."""
        divisor = len(values) if weights is None else _add(weights)
        return numerics.divided(_add(_weighted(values, weights)), divisor)


@jax.tree_util.register_static
@dataclass(frozen=True)
class ElectSign:
    """Elect a sign for each element and merge the experts that agree; `elect_sign`."""

    by: str
    zero: str
    weighted: bool
    reduce: str
    divisor: str

    def check(self, weights):
        """Refuse negative weights: agreeing experts' could sum to zero."""
        if self.divisor == "weight" and min(weights) < 0:
            raise UserError(
                f"the weights of a disjoint mean must not be negative: {weights!r}."
            )

    def inquire(self):
        """Find whether an element with no sign of its own is taken as positive."""
        if self.zero == "positive":
            return True
        return (yield from statistics.majority_sign())

    def votes(self, values, weights):
        """Return each element's sum of votes; its sign is the elected one."""
        if self.by == "count":
            values = [jnp.sign(value) for value in values]
        return _add(_weighted(values, weights) if self.weighted else values)

    def combine(self, values, weights, state):
        """Merge, at each element, the experts whose sign is the elected one."""
        votes = self.votes(values, weights)
        positive = (votes > 0) | ((votes == 0) & jnp.asarray(state))
        # Strict comparisons: a zero agrees with no sign.
        agree = [jnp.where(positive, v > 0, v < 0) for v in values]
        merged = _add(
            [
                jnp.where(yes, value, 0)
                for yes, value in zip(agree, _weighted(values, weights), strict=True)
            ]
        )
        if self.reduce == "sum":
            return merged
        shares = [yes.astype(merged.dtype) for yes in agree]
        if self.divisor == "count":
            return merged / jnp.maximum(_add(shares), 1)
        divisor = _add(_weighted(shares, weights))
        return merged / jnp.where(divisor > 0, divisor, 1)


def mean() -> Mean:
    """Return the weighted mean, Σ wᵢΔᵢ / Σ wᵢ."""
    return Mean()


def sum() -> Sum:  # noqa: A001 (the field's word; used as `combiners.sum`)
    """Return the weighted sum, Σ wᵢΔᵢ."""
    return Sum()


def elect_sign(
    by: str = "mass",
    zero: str = "majority",
    weighted: bool = False,
    reduce: str = "mean",
    divisor: str = "weight",
) -> ElectSign:
    """Elect a sign at each element, then reduce over the experts that agree with it.

    An expert's zero agrees with no sign. TIES-Merging, Yadav et al. 2023, §3.

    Args:
      by: ``mass`` sums the values, ``count`` their signs.
      zero: the sign where that sum is 0: the ``majority`` over all elements of the
        model (an even majority is +), or ``positive``.
      weighted: whether the weights count in the election too.
      reduce: ``mean`` or ``sum`` over the agreeing experts.
      divisor: the mean's: the sum of the agreeing experts' ``weight``, or their
        ``count`` (≥ 1).

    Raises:
      UserError: an unknown word.
    """
    for kind, value, valid in (
        ("vote", by, ("mass", "count")),
        ("rule for a zero sum", zero, ("majority", "positive")),
        ("reduction", reduce, ("mean", "sum")),
        ("divisor", divisor, ("weight", "count")),
    ):
        if value not in valid:
            raise nearest(kind, value, valid)
    return ElectSign(by, zero, bool(weighted), reduce, divisor)


def _weighted(values: Sequence[Array], weights: Sequence[Array] | None) -> list[Array]:
    if weights is None:
        return list(values)
    return [numerics.scaled(value, w) for w, value in zip(weights, values, strict=True)]


def _add(values: Sequence[Array]) -> Array:
    first, *rest = values
    for value in rest:
        first = first + value
    return first
