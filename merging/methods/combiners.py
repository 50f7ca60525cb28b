"""Combiners: K transformed task vectors (or models) become one.

Like a transform, a combiner is a frozen dataclass of static words: it says how finely
leaves may be cut and which reduction it needs, makes its state of what was found, and
`combine` is pure. Experts are added one by one in a fixed order, as a reduction over a
stacked axis might be reordered by the compiler.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods.reductions import Layout, Sums, Terms, Threshold, Votes
from merging.methods.statistics import OF, Statistics
from merging.runtime import numerics
from merging.runtime.errors import UserError, nearest
from merging.runtime.numerics import Index

Weights = Sequence[Array] | None


class Combiner(Protocol):
    """What `Method` needs of a combiner."""

    @property
    def granularity(self) -> str:
        """How finely a leaf may be cut into blocks; see `method.GRANULARITIES`."""

    @property
    def selections(self) -> "tuple[Selection, ...]":
        """What is done before, to all task vectors together."""

    @property
    def takes(self) -> tuple[int, str] | None:
        """How many experts it merges, and the name of a method for other numbers.

        None is any.
        """

    def check(self, weights: Sequence[float]) -> None:
        """Raise a UserError if these weights cannot be combined with."""

    def reduction(self) -> Votes | Sums | None:
        """Return what must be found of all transformed task vectors before."""

    def state(self, layout: Layout, found: Any, weights: Sequence[float] | None) -> Any:
        """Return the state, arrays with an entry for each leaf, of what was found."""

    def combine(self, values: Sequence[Array], weights: Weights, state: Any) -> Array:
        """Combine K blocks of one shape."""


class Selection(Protocol):
    """What is done to all K task vectors together, by a ranking of a score of them.

    A frozen dataclass, as a combiner is.

    Attributes:
      granularity: as a combiner's: of the score, too.
      thresholds: the rules that are found of the score, of each leaf by itself.
    """

    granularity: str
    thresholds: tuple[Threshold, ...]

    def score(
        self, values: Sequence[Array], weights: Weights, base: Array | None
    ) -> Array:
        """Return the score of each element, ≥ 0."""

    def state(
        self, layout: Layout, found: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> Any:
        """Return the state of what each of the thresholds is; see `Transform`."""

    def apply(
        self,
        values: Sequence[Array],
        weights: Weights,
        base: Array | None,
        index: Index,
        state: Any,
    ) -> list[Array]:
        """Return the K blocks that go on."""


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Combined:
    """A combiner that is given as functions; see `combiner`."""

    function: Callable[..., Array]
    granularity: str = "element"
    terms: Terms | None = None
    finish: Callable[[np.ndarray], Any] | None = None
    refuse: Callable[[Sequence[float]], None] | None = None
    selections: tuple[Selection, ...] = ()
    takes: tuple[int, str] | None = None
    parameters: tuple[tuple[str, Any], ...] = ()
    statistics: Statistics | None = None

    def __repr__(self) -> str:
        own = "".join(f", {name}={value!r}" for name, value in self.parameters)
        called = f"{self.function.__module__}.{self.function.__qualname__}"
        return f"combiner({called}{own})"

    def check(self, weights):
        """Refuse what the method's author refuses."""
        if self.refuse is not None:
            self.refuse(weights)

    def reduction(self):
        """Ask for the terms' sums, if there are terms."""
        return None if self.terms is None else Sums(self.terms, repr(self))

    def state(self, layout, found, weights):
        """Return what the author makes of the sums."""
        return () if self.terms is None else self.finish(found)

    def combine(self, values, weights, state, *statistics):
        """Call the author's function."""
        own = dict(self.parameters)
        return self.function(values, weights, state, *statistics, **own)


def combiner(
    function: Callable[..., Array],
    granularity: str = "element",
    terms: Terms | None = None,
    state: Callable[[np.ndarray], Any] | None = None,
    refuse: Callable[[Sequence[float]], None] | None = None,
    selections: Sequence[Selection] = (),
    takes: tuple[int, str] | None = None,
    statistics: Statistics | None = None,
    **parameters: Any,
) -> Combined:
    """Return a combiner made of pure functions: all that a new method has to bring.

    The functions must be a module's own (no lambdas made anew on each call), as a
    program is compiled for each of them.

    Args:
      function: ``(values, weights, state) -> merged``. `values` are K blocks of
        transformed task vectors (models, where the method has no scale), float32;
        `weights` K numbers or None for all 1. With granularity ``element`` the blocks
        are arbitrary pieces, and the function must be elementwise; with ``row`` their
        last axis is a whole row of a leaf; with ``matrix`` they are whole matrices,
        [m, outputs, inputs] however the leaf stores them (`method.Matrices`), or of at
        most two axes for what is no matrix.
      granularity: ``element``, ``row``, ``matrix`` or ``tensor``.
      terms: ``(values, weights) -> terms``, elementwise, if sums over each leaf are
        needed, e.g. `reductions.gram_terms`; rows then stay whole.
      state: makes, of float64 sums [leaves, T], arrays with an entry for each leaf; the
        function is given them broadcast against the blocks.
      refuse: raises a UserError for weights that cannot be used.
      selections: done to the task vectors before, one after the other.
      takes: how many experts it merges, and the name of a method that merges another
        number of them; None is any number.
      statistics: what must be known of each expert beside its weights, such as
        `methods.FISHER`. The function is then given a list of K arrays as its fourth
        argument, of the blocks' shape or [m, inputs, inputs]; None for leaves without.
      **parameters: numbers or words that the function takes by name; a program is
        compiled for each value.

    >>> import jax.numpy as jnp, merging
    >>> def largest(values, weights, state):
    ...     return jnp.max(jnp.stack(values), axis=0)
    >>> combiner = merging.methods.combiner(largest)
    >>> method = merging.methods.compose("largest", combiner=combiner, scale=1.0)
    >>> base, qa, nli = ({"w": jnp.array(w)} for w in ([0.0, 0], [4.0, 1], [2.0, 3]))
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [4. 3.]
    """
    if terms is not None and granularity == "element":
        granularity = "row"
    if statistics is not None and statistics.of not in OF:
        raise nearest("kind of statistics", statistics.of, OF)
    if statistics is not None and statistics.of == "inputs":
        granularity = "matrix"
    return Combined(
        function,
        granularity,
        terms,
        state,
        refuse,
        tuple(selections),
        takes,
        tuple(sorted(parameters.items())),
        statistics,
    )


def refuse_sum_of_zero(weights: Sequence[float]) -> None:
    """Raise a UserError for weights that a mean cannot divide by."""
    if math.fsum(weights) == 0:
        raise UserError(f"the weights of a mean must not sum to 0: {weights!r}.")
    with np.errstate(over="ignore", invalid="ignore"):
        # In order and rounded, as what is divided by: they may cancel only there.
        total = np.cumsum(np.array(weights, np.float32))[-1]
    if total == 0 or not np.isfinite(total):
        raise UserError(
            f"the weights of a mean must not sum to {total:g} in float32: {weights!r}."
        )


def _sum(values: Sequence[Array], weights: Weights, state: Any) -> Array:
    """Add, in order."""
    return add(weighted(values, weights))


def _mean(values: Sequence[Array], weights: Weights, state: Any) -> Array:
    """Add, in order, then divide once."""
    total = _sum(values, weights, state)
    if weights is None:
        return numerics.divided(total, len(values))
    # In the values' precision: where x64 is on, Python's numbers would be float64.
    divisor = add([jnp.asarray(weight, total.dtype) for weight in weights])
    return numerics.divided(total, divisor)


@jax.tree_util.register_static
@dataclass(frozen=True)
class ElectSign:
    """Elect a sign for each element and merge the experts that agree; `elect_sign`."""

    by: str
    zero: str
    weighted: bool
    reduce: str
    divisor: str
    granularity = "element"
    selections = ()
    takes = None

    def check(self, weights):
        """Refuse negative weights, but where they turn an expert's vote around."""
        if self.divisor == "weight" and not self.weighted and min(weights) < 0:
            raise UserError(
                f"the weights of a disjoint mean must not be negative: {weights!r}."
            )

    def reduction(self):
        """Ask for the model's majority, if an element without a sign takes it."""
        return Votes(self) if self.zero == "majority" else None

    def state(self, layout, found, weights):
        """Return, for each leaf, whether an element with no sign of its own is +."""
        positive = True if found is None else found
        return np.full(len(layout.paths), positive)

    def votes(self, values, weights):
        """Return each element's sum of votes; its sign is the elected one."""
        if self.by == "count":
            values = [jnp.sign(value) for value in values]
        return add(weighted(values, weights) if self.weighted else values)

    def combine(self, values, weights, state):
        """Merge, at each element, the experts whose sign is the elected one."""
        votes = self.votes(values, weights)
        # Signs as numbers: compilers for CPUs repack truth values for every use.
        one = jnp.ones((), votes.dtype)
        even = jnp.where(jnp.asarray(state), one, -one)
        sign = jnp.where(votes > 0, one, jnp.where(votes == 0, even, -one))
        shares = weighted(values, weights)
        # Strict comparisons: a zero agrees with no sign.
        voters = shares if self.weighted else values
        agree = [voter * sign > 0 for voter in voters]
        pairs = zip(agree, shares, strict=True)
        merged = add([jnp.where(yes, share, 0) for yes, share in pairs])
        if self.reduce == "sum":
            return merged
        ones = [jnp.where(yes, one, 0) for yes in agree]
        if self.divisor == "count":
            return merged / jnp.maximum(add(ones), 1)
        divisor = add(weighted(ones, weights))
        return merged / jnp.where(divisor != 0, divisor, 1)


def mean() -> Combined:
    """Return the weighted mean, Σ wᵢΔᵢ / Σ wᵢ; the weights' sum must not be zero.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> mean = merging.methods.combiners.mean()
    >>> method = merging.methods.compose("mean", combiner=mean, scale=1, weights=[3, 1])
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 3.5   0.    0.   -1.25]
    """
    return combiner(_mean, refuse=refuse_sum_of_zero)


def sum(  # noqa: A001 (the field's word; used as `combiners.sum`)
    takes: tuple[int, str] | None = None, selections: Sequence[Selection] = ()
) -> Combined:
    """Return the weighted sum, Σ wᵢΔᵢ (Ilharco et al. 2023); any weights will do.

    `takes` and `selections` are as in `combiner`.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> total = merging.methods.combiners.sum()
    >>> method = merging.methods.compose("sum", combiner=total, scale=1, weights=[3, 1])
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [14.  0.  0. -5.]
    """
    return combiner(_sum, takes=takes, selections=selections)


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
      weighted: whether the weights count in the election too; a negative one then
        votes for, and merges, the opposite. Without, none may be negative.
      reduce: ``mean`` or ``sum`` over the agreeing experts.
      divisor: the mean's: the sum of the agreeing experts' ``weight``, or their
        ``count`` (≥ 1).

    Raises:
      UserError: an unknown word.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> elect = merging.methods.elect_sign(reduce="sum")
    >>> method = merging.methods.compose("elected", combiner=elect, scale=1.0)
    >>> print(merging.merge(base, [qa, nli], method)["w"])
    [ 6. -3.  0. -2.]
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


def weighted(values: Sequence[Array], weights: Weights) -> list[Array]:
    """Return each block times its weight, rounded."""
    if weights is None:
        return list(values)
    return [numerics.scaled(value, w) for w, value in zip(weights, values, strict=True)]


def add(values: Sequence[Array]) -> Array:
    """Return the blocks' sum, in their order."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first
