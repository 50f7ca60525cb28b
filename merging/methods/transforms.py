"""Task-vector transforms: what happens to each expert's Δ before they are combined.

A transform is a frozen dataclass whose numbers are traced and whose words are static
(see `Method`). It says how finely leaves may be cut (`granularity`) and which reduction
it needs, if any; from what was found it makes its state, arrays with one entry for each
leaf; and `apply` is pure: one block of Δ, and the state of the block's leaf, broadcast
against the block.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods.reductions import Layout, Reduction, Threshold, trim_rank
from merging.runtime import numerics
from merging.runtime.errors import UserError, nearest
from merging.runtime.numerics import Index

# A fraction kept: one for all experts, or one for each of them, in their order.
Fraction = float | tuple[float, ...]

SCOPES = ("global", "tensor", "row")
TIES = ("keep_all", "exact")


class Transform(Protocol):
    """What `Method` needs of a transform."""

    @property
    def granularity(self) -> str:
        """How finely a leaf may be cut into blocks; see `method.GRANULARITIES`."""

    def reduction(self) -> Reduction | tuple[Threshold, ...] | None:
        """Return what must be found of each expert's Δ before."""

    def state(self, layout: Layout, expert: str, seed: int, found: Any) -> Any:
        """Return the state: a NamedTuple of arrays [leaves], or ().

        Args:
          layout: the leaves.
          expert: its name.
          seed: of random masks.
          found: by the reduction, or None: (threshold keys, cutoff indices), both
            int64 [leaves], of a `Threshold`, and as many of a tuple of them; float64
            [leaves, T] of `Sums`.
        """

    def apply(self, delta: Array, state: Any, index: Index) -> Array:
        """Transform one block of Δ, given each element's index in its leaf."""


@runtime_checkable
class OnHost(Protocol):
    """A transform of rows of which a CPU finds something with NumPy, not with XLA."""

    def on_host(self, state: Any, keys: np.ndarray) -> Any:
        """Return a block's state with what was found; else `apply` finds the same.

        Args:
          state: broadcast against the block.
          keys: the magnitude keys (`numerics.magnitude_keys`) of the block of Δ.
        """


class Cutoff(NamedTuple):
    """A trim's rule for each leaf: `numerics.kept`'s threshold key and cutoff index."""

    threshold: np.ndarray
    cutoff: Index | None


class RowRank(NamedTuple):
    """How many magnitudes of each row are kept, for each leaf: int32; or which are."""

    rank: np.ndarray
    kept: Any = None


class MaskKey(NamedTuple):
    """A leaf's mask: the two words of its key and the largest hash that is kept."""

    key: tuple[np.ndarray, np.ndarray]
    bound: np.ndarray


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["density"],
    meta_fields=["scope", "ties", "at_least"],
)
@dataclass(frozen=True)
class Trim:
    """Keep the largest magnitudes; see `trim`."""

    density: Fraction
    scope: str
    ties: str
    at_least: int = 0

    @property
    def granularity(self) -> str:
        """Rows must be whole for a ranking within them, else any cut will do."""
        return "row" if self.scope == "row" else "element"

    def reduction(self):
        """Ask for the threshold, unless every block can find it in its rows."""
        if self.scope == "row":
            return None
        return Threshold(self._rank, self.scope, self.ties)

    def state(self, layout, expert, seed, found):
        """Return the threshold (and cutoff) of each leaf, or the rank in its rows."""
        if found is None:
            ranks = [self._rank(s[-1] if s else 1) for s in layout.shapes]
            return RowRank(np.array(ranks, np.int32))
        rule = cutoff_of(layout, found)
        return rule if self.ties == "exact" else rule._replace(cutoff=None)

    def _rank(self, elements: int) -> int:
        if self.density == 0:
            return 0
        rank = trim_rank(self.density, elements, self.ties)
        return max(rank, min(self.at_least, elements))

    def on_host(self, state, keys):
        """Find what is kept of the block's rows."""
        exact = self.ties == "exact"
        return state._replace(kept=kept_on_host(keys, state.rank, exact))

    def apply(self, delta, state, index):
        """Zero what is not kept."""
        if self.scope == "row" and state.kept is not None:
            return jnp.where(state.kept.reshape(delta.shape), delta, 0)
        if self.scope == "row":
            wide = delta.dtype == jnp.float64
            rows = jnp.atleast_1d(delta)
            keys = numerics.magnitude_keys(rows, jnp.uint64 if wide else jnp.uint32)
            keep = numerics.kept_in_rows(keys, state.rank, self.ties == "exact")
            return jnp.where(keep, rows, 0).reshape(delta.shape)
        keys = numerics.magnitude_keys(delta, state.threshold.dtype)
        keep = numerics.kept(keys, index, state.threshold, state.cutoff)
        return jnp.where(keep, delta, 0)


@partial(
    jax.tree_util.register_dataclass, data_fields=["density"], meta_fields=["rescale"]
)
@dataclass(frozen=True)
class Drop:
    """Keep a random fraction of the elements; see `drop`."""

    density: Fraction
    rescale: bool
    granularity = "element"

    def reduction(self):
        """Need nothing."""

    def state(self, layout, expert, seed, found):
        """Derive each leaf's mask key from (seed, expert, path)."""
        keys = [numerics.mask_key(seed, expert, path) for path in layout.paths]
        words = np.array(keys, np.uint32).reshape(-1, 2)
        bound = np.full(len(keys), numerics.mask_bound(self.density), np.uint32)
        return MaskKey((words[:, 0], words[:, 1]), bound)

    def apply(self, delta, state, index):
        """Zero what the mask drops, and divide the rest by the density."""
        # A density of 0 keeps nothing, though the lowest hash is always in bounds.
        none = jnp.asarray(self.density <= 0, jnp.uint32)
        keep = numerics.random_bits(index, state.key) | none <= state.bound
        rest = numerics.divided(delta, self.density) if self.rescale else delta
        return jnp.where(keep, rest, 0)


@partial(jax.tree_util.register_dataclass, data_fields=["divisor"], meta_fields=[])
@dataclass(frozen=True)
class Rescale:
    """Divide by a number; see `rescale`."""

    divisor: Fraction
    granularity = "element"

    def reduction(self):
        """Need nothing."""

    def state(self, layout, expert, seed, found):
        """Keep nothing."""
        return ()

    def apply(self, delta, state, index):
        """Divide."""
        return numerics.divided(delta, self.divisor)


def trim(
    density: Fraction,
    scope: str = "global",
    ties: str = "keep_all",
    at_least: int = 0,
    nothing: bool = False,
) -> Trim:
    """Keep the largest magnitudes of each task vector and zero the rest.

    With n elements in scope and k = ⌊density·n⌋, the threshold is the (n − k)-th
    smallest magnitude (density 1 keeps all). TIES-Merging, Yadav et al. 2023, §3.

    Args:
      density: fraction kept, in (0, 1], or one for each expert.
      scope: the set that is ranked: the whole model (``global``), each leaf
        (``tensor``), or each row (the last axis; a 1-D leaf is one row).
      ties: ``keep_all`` keeps every magnitude ≥ the threshold; ``exact`` keeps
        exactly k, lowest index first (``global``: lowest path first).
      at_least: elements kept however small the density; none if it is 0.
      nothing: whether the density may be 0, which keeps nothing.

    Raises:
      UserError: a density out of range, an unknown scope or tie rule.

    >>> import jax.numpy as jnp, merging
    >>> base, expert = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1, 0, -2])}
    >>> total = merging.methods.combiners.sum()
    >>> trim = merging.methods.trim(density=0.25, ties="exact")
    >>> method = merging.methods.compose("trimmed", trim, combiner=total, scale=1.0)
    >>> print(merging.merge(base, [expert], method)["w"])
    [4. 0. 0. 0.]
    """
    for kind, value, valid in (("scope", scope, SCOPES), ("tie rule", ties, TIES)):
        if value not in valid:
            raise nearest(kind, value, valid)
    return Trim(fraction("density", density, nothing), scope, ties, at_least)


def drop(density: Fraction, rescale: bool = True, nothing: bool = False) -> Drop:
    """Keep each element with probability `density`, and divide it by `density`.

    The mask is a pure function of (seed, expert name, leaf path, element index).
    DARE, Yu et al. 2024, arXiv 2311.03099, eq. 3. `nothing` is as in `trim`.

    Raises:
      UserError: a density out of range.

    >>> import jax.numpy as jnp, merging
    >>> base, expert = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1, 0, -2])}
    >>> total = merging.methods.combiners.sum()
    >>> drop = merging.methods.drop(density=0.5)
    >>> method = merging.methods.compose("dropped", drop, combiner=total, scale=1.0)
    >>> print(merging.merge(base, {"qa": expert}, method, seed=0)["w"])
    [ 0.  2.  0. -4.]
    """
    if not isinstance(rescale, bool):
        raise UserError(f"rescale must be True or False, not {rescale!r}.")
    return Drop(fraction("density", density, nothing), rescale)


def rescale(divisor: Fraction) -> Rescale:
    """Divide each task vector by a number in (0, 1], such as the density kept.

    >>> import jax.numpy as jnp, merging
    >>> base, expert = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1, 0, -2])}
    >>> total = merging.methods.combiners.sum()
    >>> half = merging.methods.rescale(0.5)
    >>> method = merging.methods.compose("rescaled", half, combiner=total, scale=1.0)
    >>> print(merging.merge(base, [expert], method)["w"])
    [ 8.  2.  0. -4.]
    """
    return Rescale(fraction("divisor", divisor))


def kept_on_host(keys: np.ndarray, rank: Any, exact: bool) -> np.ndarray:
    """Return which magnitudes are among the largest of their row."""
    rows = np.atleast_1d(keys)
    return numerics.kept_in_rows_on_host(rows, np.asarray(rank), exact)


def cutoff_of(layout: Layout, found: tuple[np.ndarray, np.ndarray]) -> Cutoff:
    """Return the state of what a `Threshold` finds, for `numerics.kept`."""
    threshold, cutoff = found
    largest = int(layout.sizes.max(initial=0))
    keys = threshold.astype(layout.key_dtype)
    return Cutoff(keys, numerics.as_index(cutoff, largest))


def fraction(name: str, value: Fraction, nothing: bool = False) -> Fraction:
    """Return `value`, or one for each expert, as floats in (0, 1], or a UserError.

    With `nothing`, 0 is a fraction too.
    """
    if isinstance(value, (tuple, list)) and value:
        return tuple(fraction(name, item, nothing) for item in value)
    if not 0 <= number(name, value) <= 1 or (value == 0 and not nothing):
        least = "[0" if nothing else "(0"
        raise UserError(
            f"{name} must be in {least}, 1] (the fraction kept), not {value!r}."
        )
    return float(value)


def number(name: str, value: float) -> float:
    """Return `value` as a finite float, or raise a UserError that names it."""
    real = isinstance(value, (int, float, np.integer, np.floating))
    if not real or isinstance(value, bool) or not np.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value!r}.")
    return float(value)
