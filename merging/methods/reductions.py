"""What a method must know of the weights before it merges: typed, exact reductions.

A reduction is a sum over elements, so that it streams (blocks in any order and of any
size), shards (devices and processes add theirs) and resumes (totals are written down).
Each has four parts, `init`, `update` on a block, `combine` of partial totals and
`finish`; and each is exact, so that its value does not depend on the layout:

* `Threshold`: the magnitude that keeps a share of each scope. The engine finds it by a
  search (`merging.merge.search`) that asks `CountQuery` after `CountQuery`, int64.
* `Votes`: whether most elements of the model lean to the positive side, int64.
* `Sums`: sums of float terms, such as dot products and norms, for each leaf.

Where what is ranked is a score of all experts together, a `combiners.Selection` asks
for the thresholds.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.runtime import numerics

# [K blocks], weights → the terms, each of the blocks' shape.
Terms = Callable[[Sequence[Array], Sequence[Array] | None], Sequence[Array]]


@dataclass(frozen=True)
class Layout:
    """The float leaves of a model, in the order of their sorted paths.

    Attributes:
      paths: their paths; "lowest index first" across leaves means this order.
      shapes: their shapes.
      wide: whether magnitudes are ranked, and terms summed, as float64, since some leaf
        is float64.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    wide: bool = False

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Elements in each leaf, int64 [leaves]; read-only."""
        sizes = np.array([math.prod(s) for s in self.shapes], np.int64)
        sizes.flags.writeable = False
        return sizes

    @property
    def key_dtype(self) -> np.dtype:
        """The dtype of magnitude keys."""
        return np.dtype(np.uint64 if self.wide else np.uint32)

    @property
    def key_top(self) -> int:
        """An integer above every finite or infinite magnitude's key."""
        return numerics.key_top(self.key_dtype)


class CountQuery(NamedTuple):
    """The query "how many elements would `numerics.kept` keep?", for trial rules.

    The answer is int64 of the threshold's shape.

    Attributes:
      threshold: int64 [leaves, trials]; or [1, trials], the same for every leaf, to
        be answered with the total over all of them. A negative one needs no counting.
      cutoff: int64 likewise, or None to count all that is on the threshold.
    """

    threshold: np.ndarray
    cutoff: np.ndarray | None


@dataclass(frozen=True)
class Threshold:
    """The rule that keeps the largest magnitudes of each scope, exactly.

    Attributes:
      rank: gives, for the elements in a scope, the rank from the largest of the
        smallest magnitude that is kept; 0 keeps nothing.
      scope: ``global`` (one ranking over all leaves) or ``tensor`` (one for each).
      ties: ``keep_all`` or ``exact`` (lowest path, then lowest index, first).
      nonzero: whether only elements that are not 0 count for the rank.
      value: whether the threshold must be the ranked magnitude itself, as a quantile
        is; any other that keeps the same elements will do else, and is found sooner.
    """

    rank: Callable[[int], int]
    scope: str
    ties: str
    nonzero: bool = False
    value: bool = False


@jax.tree_util.register_static
@dataclass(frozen=True)
class Votes:
    """Whether most elements' summed votes are positive; an even vote is.

    Attributes:
      election: a combiner whose `votes` gives each element's sum, whose sign counts.
        (Itself, not its bound method: those of equal combiners are not equal.)
    """

    election: Any

    def update(self, values: Sequence[Array], weights: Sequence[Array] | None) -> Array:
        """Return elements with a positive sum of votes less those negative: int32."""
        return numerics.total(
            jnp.sign(self.election.votes(values, weights)).astype(jnp.int32)
        )

    def finish(self, total: int) -> bool:
        """Return whether the majority is positive."""
        return total >= 0


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sums:
    """Sums of float terms over each leaf, rounded once: the same on every layout.

    A float sum depends on its order, which no two layouts share. So it is taken in two
    steps whose orders are fixed, or do not matter. On the devices, `numerics.PIECE`
    neighbours of a row (a leaf's last axis) are added in a tree that is written out.
    On the host, those partial sums are added as integers: each is a small integer times
    a power of two, and integers that share a power add up exactly in an int64.

    Attributes:
      terms: gives the T terms of a block, elementwise.
      name: of the question, as the journal knows it.
      original: whether the terms are given the task vectors as they were before any
        transform, and after those the ones that are there now.
    """

    terms: Terms
    name: str
    original: bool = False

    def of_each(self) -> "Sums":
        """Return the sums of every expert's own terms, one after the other's."""
        terms = _EachTerms(self.terms, self.original)
        return dataclasses.replace(self, terms=terms)

    def init(
        self, layout: Layout, experts: int, weights: Sequence[float] | None
    ) -> np.ndarray:
        """Return empty totals for so many experts: int64 [leaves, T, bins]."""
        count = experts * (2 if self.original else 1)
        terms = _count_terms(self.terms, count, weights)
        return exact_totals((len(layout.paths), terms), layout.wide)

    def update(self, values: Sequence[Array], weights: Sequence[Array] | None) -> Array:
        """Return the partial sums of a block's rows: [T, ..., pieces of a row]."""
        return jnp.stack([numerics.piece_sums(x) for x in self.terms(values, weights)])

    def combine(self, totals: np.ndarray, partial: np.ndarray, leaf: int) -> None:
        """Add some rows' partial sums [T, n] to a leaf's totals, in place."""
        for term, values in enumerate(partial):
            add_exactly(totals[leaf, term], values)

    def finish(self, totals: np.ndarray, wide: bool) -> np.ndarray:
        """Return the sums: float64 [leaves, T]."""
        return exact_sums(totals, wide)


@functools.lru_cache
def _count_terms(terms: Terms, count: int, weights: tuple[float, ...] | None) -> int:
    values = [jax.ShapeDtypeStruct((1,), jnp.float32)] * count
    return len(jax.eval_shape(terms, values, weights))


@dataclass(frozen=True)
class _EachTerms:
    """The terms of experts taken one at a time."""

    terms: Terms
    original: bool

    def __call__(self, values: Sequence[Array], weights: object) -> list[Array]:
        count = len(values) // (2 if self.original else 1)
        return [t for i in range(count) for t in self.terms(values[i::count], None)]


Reduction = Threshold | Votes | Sums

# Exponents that share a bin: a mantissa of 27 bits, shifted by up to 7, leaves room
# for 2**29 of them in 63 bits: the pieces of 5e11 elements.
_STEP = 8


def _bias(wide: bool) -> int:
    """Return by how much exponents are raised, so that none is negative."""
    return 1074 + 54 if wide else 149 + 27


def _bins(wide: bool) -> int:
    return (_bias(wide) + (1024 if wide else 128)) // _STEP + 1


def exact_totals(shape: tuple[int, ...], wide: bool) -> np.ndarray:
    """Return empty totals, which add up exactly in any order: int64 [*shape, bins].

    Args:
      shape: one total for each entry.
      wide: whether float64 values are to be added; otherwise float32.
    """
    return np.zeros((*shape, _bins(wide)), np.int64)


def exact_sums(totals: np.ndarray, wide: bool) -> np.ndarray:
    """Return what exact totals [..., bins] stand for, rounded once: float64 [...]."""
    unit = 1 << _bias(wide)
    sums = [
        sum(int(n) << _STEP * int(b) for b, n in zip(*_nonzero(bins), strict=True))
        / unit
        for bins in totals.reshape(-1, totals.shape[-1])
    ]
    return np.array(sums, np.float64).reshape(totals.shape[:-1])


def _nonzero(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.flatnonzero(bins)
    return places, bins[places]


def add_exactly(bins: np.ndarray, values: np.ndarray) -> None:
    """Add finite floats to int64 bins, of which number b counts 2**(8 b - bias).

    A float64 of 53 bits goes in as two numbers, its upper 27 bits and the rest. Whose
    the bins are decides, not the values: beside float64 leaves float32 ones are added.

    Args:
      bins: [*shape, bins] of `exact_totals`, contiguous.
      values: [*shape, m], m for each total; of a single one, of any shape.
    """
    wide = bins.shape[-1] == _bins(True)
    fraction, exponent = np.frexp(values.astype(np.float64).reshape(-1))
    flat, each = bins.reshape(-1), bins.shape[-1]
    count = len(flat) // each
    first = np.repeat(np.arange(count) * each, len(fraction) // count)
    upper = np.ldexp(fraction, 27)
    mantissa = np.trunc(upper)
    parts = [(mantissa, exponent - 27)]
    if wide:
        parts.append((np.ldexp(upper - mantissa, 27), exponent - 54))
    for whole, power in parts:
        # Zeros have the exponent 0, which is as good as any.
        place = power.astype(np.int64) + _bias(wide)
        shifted = whole.astype(np.int64) << (place % _STEP)
        np.add.at(flat, first + place // _STEP, shifted)


def gram_terms(values: Sequence[Array], weights: object = None) -> list[Array]:
    """Return the terms of the K × K Gram matrix's upper triangle, row by row.

    >>> import jax.numpy as jnp
    >>> from merging.methods import reductions
    >>> qa, nli = jnp.array([1.0, 2]), jnp.array([3.0, 0])
    >>> [float(term.sum()) for term in reductions.gram_terms([qa, nli])]
    [5.0, 3.0, 9.0]
    """
    return [
        numerics.product(values[i], values[j])
        for i in range(len(values))
        for j in range(i, len(values))
    ]


def gram_matrices(sums: np.ndarray) -> np.ndarray:
    """Return the symmetric Gram matrices [leaves, K, K] of `gram_terms`'s sums.

    >>> import numpy as np
    >>> from merging.methods import reductions
    >>> reductions.gram_matrices(np.array([[5.0, 3.0, 9.0]])).tolist()
    [[[5.0, 3.0], [3.0, 9.0]]]
    """
    count = (math.isqrt(8 * sums.shape[1] + 1) - 1) // 2
    rows, columns = np.triu_indices(count)
    found = np.zeros((len(sums), count, count))
    found[:, rows, columns] = found[:, columns, rows] = sums
    return found


def kept_count(density: float, elements: int) -> int:
    """Return k = ⌊density·n⌋, the product rounded to float64 as in TIES' own code."""
    return int(density * elements)


def trim_rank(density: float, elements: int, ties: str) -> int:
    """Return the rank, from the largest, of the smallest magnitude that is kept.

    TIES' threshold is the (n − k)-th smallest, so the (k + 1)-th largest, and all
    on it are kept; ``exact`` keeps k. 0 keeps nothing.
    """
    k = kept_count(density, elements)
    return k if ties == "exact" else min(k + 1, elements)
