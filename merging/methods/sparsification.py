"""Other ways to thin out a task vector: a band of magnitudes, chance by magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from merging.methods.reductions import Layout, Sums, Threshold, kept_count
from merging.methods.transforms import (
    Cutoff,
    Fraction,
    cutoff_of,
    fraction,
    kept_on_host,
    number,
)
from merging.runtime import numerics
from merging.runtime.errors import UserError, nearest


def band(
    density: Fraction, gamma: Fraction, scope: str = "tensor", nothing: bool = False
) -> "Band":
    """Zero the largest magnitudes of each task vector, and all but the next largest.

    Of n elements the ⌊gamma·n⌋ largest are zeroed, and of the rest the ⌊density·n⌋
    largest kept, or what there is; then fewer outliers are zeroed, so that as many are
    kept as the density says. Lowest index first on ties. Model Breadcrumbs, Davari and
    Belilovsky 2023, arXiv 2312.06795.

    Args:
      density: fraction kept, in (0, 1], or one for each expert.
      gamma: fraction zeroed as outliers, in [0, 1], or one for each expert.
      scope: what is ranked: each leaf (``tensor``) or each ``row`` (its last axis).
      nothing: whether the density may be 0, which keeps nothing.

    Raises:
      UserError: a fraction out of range, an unknown scope.
    """
    if scope not in ("tensor", "row"):
        raise nearest("scope", scope, ("tensor", "row"))
    kept = fraction("density", density, nothing)
    return Band(kept, fraction("gamma", gamma, nothing=True), scope)


class _RowRanks(NamedTuple):
    """Of each leaf's rows, how many magnitudes are in the band or above, or above.

    Or which are in it.
    """

    low: np.ndarray
    high: np.ndarray
    kept: Any = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["density", "gamma"],
    meta_fields=["scope"],
)
@dataclass(frozen=True)
class Band:
    """Keep magnitudes that are large and no outliers; see `band`."""

    density: Fraction
    gamma: Fraction
    scope: str

    @property
    def granularity(self) -> str:
        """Rows must be whole for a ranking within them, else any cut will do."""
        return "row" if self.scope == "row" else "element"

    def reduction(self):
        """Ask for both ends, unless every block can find them in its rows."""
        if self.scope == "row":
            return None
        return tuple(Threshold(rank, "tensor", "exact") for rank in self._ranks)

    @property
    def _ranks(self):
        return self._with_outliers, self._outliers

    def _outliers(self, elements: int) -> int:
        rest = elements - kept_count(self.density, elements)
        return min(kept_count(self.gamma, elements), rest)

    def _with_outliers(self, elements: int) -> int:
        return kept_count(self.density, elements) + self._outliers(elements)

    def state(self, layout: Layout, expert, seed, found):
        """Return both cutoffs of each leaf, or both ranks in its rows."""
        if found is not None:
            return tuple(cutoff_of(layout, cut) for cut in found)
        columns = [shape[-1] if shape else 1 for shape in layout.shapes]
        ranks = [[rank(n) for n in columns] for rank in self._ranks]
        return _RowRanks(*(np.array(of, np.int32) for of in ranks))

    def on_host(self, state, keys):
        """Find what is in the band of the block's rows."""
        low, high = (
            kept_on_host(keys, rank, exact=True) for rank in (state.low, state.high)
        )
        return state._replace(kept=low & ~high)

    def apply(self, delta, state, index):
        """Zero what is not in the band."""
        if self.scope == "row" and state.kept is not None:
            return jnp.where(state.kept.reshape(delta.shape), delta, 0)
        if self.scope == "row":
            rows = jnp.atleast_1d(delta)
            wide = delta.dtype == jnp.float64
            keys = numerics.magnitude_keys(rows, jnp.uint64 if wide else jnp.uint32)
            low, high = (numerics.kept_in_rows(keys, rank, True) for rank in state[:2])
            return jnp.where(low & ~high, rows, 0).reshape(delta.shape)
        low, high = (self._above(delta, index, cutoff) for cutoff in state)
        return jnp.where(low & ~high, delta, 0)

    def _above(self, delta: Array, index: numerics.Index, state: Cutoff) -> Array:
        keys = numerics.magnitude_keys(delta, state.threshold.dtype)
        return numerics.kept(keys, index, state.threshold, state.cutoff)


def magprune(
    density: Fraction, epsilon: Fraction, rescale: bool = True, nothing: bool = False
) -> "MagPrune":
    """Keep elements by chance, the larger in their row the likelier.

    The k-th smallest magnitude of a row of n (k from 0; the lowest index first on ties)
    is kept with probability p = density − epsilon + 2 epsilon k / (n − 1), and divided
    by p. The mask is a pure function of (seed, expert name, leaf path, element index).
    DELLA, Deep et al. 2024, arXiv 2406.11617; its window is 2 epsilon.

    Args:
      density: fraction kept, or one for each expert.
      epsilon: half of the width of the probabilities, or one for each expert.
      rescale: whether to divide by p.
      nothing: whether the density may be 0, which keeps nothing; 1 then keeps all,
        whatever epsilon is.

    Raises:
      UserError: a probability that is not in [0, 1].
    """
    if not isinstance(rescale, bool):
        raise UserError(f"rescale must be True or False, not {rescale!r}.")
    kept = fraction("density", density, nothing)
    several = isinstance(epsilon, (tuple, list)) and len(epsilon) > 0
    width = tuple(map(_number, epsilon)) if several else _number(epsilon)
    _require_as_many(kept, width)
    pairs = list(np.broadcast(kept, width))
    for d, e in pairs:
        settled = nothing and d in (0, 1)
        if not settled and not 0 <= d - e <= d + e <= 1:
            raise UserError(
                f"density ± epsilon must be in [0, 1], not {d!r} ± {e!r}: they are "
                "probabilities."
            )
    if nothing:  # where all or none are kept, there is no chance
        widths = tuple(0.0 if d in (0, 1) else float(e) for d, e in pairs)
        width = widths if isinstance(kept, tuple) or several else widths[0]
    return MagPrune(kept, width, rescale)


def _number(value: float) -> float:
    return number("epsilon", value)


def _require_as_many(density: Fraction, epsilon: Fraction) -> None:
    sizes = {len(x) for x in (density, epsilon) if isinstance(x, tuple)}
    if len(sizes) > 1:
        raise UserError("density and epsilon need as many values: one for each expert.")


class _Chance(NamedTuple):
    """What `MagPrune` knows of a leaf, and of a block of it where the host ranked it.

    Attributes:
      key: the two words of the mask's key.
      ranks: each element's in its row, from 0 for the smallest; None until the block is
        at hand, or for good where no host ranks it.
    """

    key: tuple[np.ndarray, np.ndarray]
    ranks: np.ndarray | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["density", "epsilon"],
    meta_fields=["rescale"],
)
@dataclass(frozen=True)
class MagPrune:
    """Keep what is large with a larger chance; see `magprune`."""

    density: Fraction
    epsilon: Fraction
    rescale: bool
    granularity = "row"

    def reduction(self):
        """Need nothing."""

    def state(self, layout: Layout, expert, seed, found):
        """Derive each leaf's mask key from (seed, expert, path)."""
        keys = [numerics.mask_key(seed, expert, path) for path in layout.paths]
        words = np.array(keys, np.uint32).reshape(-1, 2)
        return _Chance((words[:, 0], words[:, 1]))

    def on_host(self, state, keys):
        """Rank the block's rows."""
        return state._replace(ranks=_ranks_on_host(keys))

    def apply(self, delta, state, index):
        """Zero what the mask drops, and divide the rest by its probability."""
        rows = jnp.atleast_1d(delta)
        dtype = rows.dtype
        ranks = _ranks_in_rows(rows) if state.ranks is None else state.ranks
        ranks = ranks.astype(dtype).reshape(delta.shape)
        # Of a row of one element, the middle.
        most = max(rows.shape[-1] - 1, 1)
        place = numerics.divided(ranks, most) if rows.shape[-1] > 1 else ranks + 0.5
        epsilon = jnp.asarray(self.epsilon, dtype)
        low = jnp.asarray(self.density, dtype) - epsilon
        chance = low + numerics.scaled(place, 2 * epsilon)
        bits = numerics.random_bits(index, state.key) >> 8
        # 24 bits are a float32 as they are.
        drawn = bits.astype(dtype) * jnp.asarray(2.0**-24, dtype)
        keep = drawn < chance
        if self.rescale:
            delta = delta / jnp.where(keep, chance, 1)
        return jnp.where(keep, delta, 0)


def _ranks_in_rows(values: Array) -> Array:
    """Return each magnitude's rank in its row, from 0 for the smallest: int32."""
    wide = values.dtype == jnp.float64
    keys = numerics.magnitude_keys(values, jnp.uint64 if wide else jnp.uint32)
    rows = keys.reshape(-1, keys.shape[-1])
    columns = lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    _, order = lax.sort((rows, columns), num_keys=1, is_stable=True)
    # The inverse of a permutation: a second sort would take as long as the first.
    of_row = lax.broadcasted_iota(jnp.int32, rows.shape, 0)
    ranks = jnp.zeros_like(columns)
    ranks = ranks.at[of_row, order].set(columns, unique_indices=True)
    return ranks.reshape(values.shape)


def _ranks_on_host(keys: np.ndarray, part: int = 2**16) -> np.ndarray:
    """Return what `_ranks_in_rows` does, from magnitude keys, in a narrow dtype.

    In a thirtieth of the time: a key and its place make one integer, no two are equal,
    and NumPy sorts integers with vector instructions.
    """
    columns = keys.shape[-1] if keys.ndim else 1
    rows = keys.reshape(-1, columns)
    dtype = np.uint16 if columns <= 2**16 else np.uint32
    ranks = np.empty(rows.shape, dtype)
    step = max(part // columns, 1)  # what is computed in between stays in the cache
    place = np.arange(min(step, len(rows)) * columns, dtype=np.uint64)
    place = place.reshape(-1, columns)
    rank = np.broadcast_to(np.arange(columns, dtype=dtype), place.shape)
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        if keys.dtype == np.uint32:
            order = some.astype(np.uint64)
            order <<= np.uint64(32)
            order |= place[: len(some)]
            order.sort(axis=1)
            order &= np.uint64(0xFFFFFFFF)
        else:
            order = np.argsort(some, axis=1, kind="stable").astype(np.uint64)
            order += place[: len(some), :1]
        flat = ranks[at : at + step].reshape(-1)
        flat[order.view(np.int64)] = rank[: len(some)]
    return ranks.reshape(keys.shape)


def match_norm() -> "MatchNorm":
    """Scale each task vector so that its L1 norm is, in each leaf, what it was.

    Before any transform, that is: DARE's 1 / density in expectation, and whatever it
    takes after a trim. mergekit rescales so. A leaf whose norm was, or is, next to 0
    (1e-7) is left alone.
    """
    return MatchNorm()


def _l1_terms(values: Sequence[Array], weights: object) -> list[Array]:
    return [jnp.abs(value) for value in values]


@jax.tree_util.register_static
@dataclass(frozen=True)
class MatchNorm:
    """Give the L1 norm back that transforms took away; see `match_norm`."""

    granularity = "row"

    def reduction(self):
        """Ask for the norms, before any transform and now."""
        return Sums(_l1_terms, "the L1 norms", original=True)

    def state(self, layout: Layout, expert, seed, found):
        """Return the ratio for each leaf: an array [leaves]."""
        before, now = found.T
        leave = (before < 1e-7) | (now < 1e-7)
        return np.where(leave, 1, before / np.where(leave, 1, now))

    def apply(self, delta, state, index):
        """Scale."""
        ratio = jnp.broadcast_to(state, delta.shape).astype(delta.dtype)
        return numerics.product(delta, ratio)
