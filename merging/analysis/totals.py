"""Sums and counts over pieces of task vectors, exact in any order.

A piece is [n, m]: m ≤ `units.PIECE` neighbours of n vectors, of which the first K are
task vectors and the rest merged ones. Its dot products are taken in float64 by matrix
products of a fixed shape, so they are the same whatever block the piece came in; those
of pieces are added exactly (`methods.reductions.add_exactly`), so their total is the
same whatever order they came in. Counts are integers, from packed bits.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.methods.reductions import add_exactly, exact_sums, exact_totals

# Terms of a sum in one matrix product. BLAS does not share products as small as these
# out over threads of its own, which would be in the way of ours.
DEPTH = 2048


class Partial(NamedTuple):
    """What one unit's part of a block adds.

    Attributes:
      unit: its number.
      sums: float64 [T, pieces]: of each piece, in the order of `Totals.sums`.
      counts: int64 [C], in the order of `Totals.counts`.
    """

    unit: int
    sums: np.ndarray
    counts: np.ndarray


class Statistics(NamedTuple):
    """What is known of a group of units.

    Attributes:
      elements: its coordinates.
      gram: float64 [n, n], ⟨Δᵢ, Δⱼ⟩.
      fourth: float64 [n − K], Σ v⁴ of the merged vectors.
      energy_squared: Σ over coordinates of (Σᵢ Δᵢ²)², i over the K task vectors.
      moved: int64 [n, n], coordinates that both vectors move (are not 0 in).
      opposed: int64 [n, n], those of them where the signs differ.
      touched: coordinates that any of the K moves.
      kept: {density: int64 [n, n]}: coordinates that both trimmed vectors keep.
    """

    elements: int
    gram: np.ndarray
    fourth: np.ndarray
    energy_squared: float
    moved: np.ndarray
    opposed: np.ndarray
    touched: int
    kept: dict[float, np.ndarray]


class Totals:
    """Totals of all units.

    Memory: 2.2 kB for each unit and pair of vectors.

    Args:
      sizes: elements of each unit.
      vectors: n. experts: K, the first of them.
      densities: whose supports are counted.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        vectors: int,
        experts: int,
        densities: Sequence[float],
    ):
        self.sizes, self._densities = np.asarray(sizes, np.int64), tuple(densities)
        self._n, self._k = vectors, experts
        self._pairs = np.triu_indices(vectors)
        pairs = len(self._pairs[0])
        terms = pairs + (vectors - experts) + 1
        counts = (2 + len(self._densities)) * pairs + 1
        self.sums = exact_totals((len(sizes), terms), True)
        self.counts = np.zeros((len(sizes), counts), np.int64)

    def partial(
        self,
        unit: int,
        pieces: Iterable[np.ndarray],
        thresholds: Sequence[np.ndarray] = (),
    ) -> Partial:
        """Return what a unit's part of a block adds.

        Args:
          unit: its number.
          pieces: float32 or float64 [n, m] each; only the unit's last may be short.
          thresholds: for each density the n magnitude keys from which a trim keeps.
        """
        sums, counts = [], np.zeros_like(self.counts[0])
        for deltas in pieces:
            sums.append(self._summed(deltas))
            counts += self._counted(deltas, thresholds)
        return Partial(unit, np.stack(sums, axis=1), counts)

    def add(self, partials: Sequence[Partial]) -> None:
        """Add a block's partials."""
        for one in partials:
            add_exactly(self.sums[one.unit], one.sums)
            self.counts[one.unit] += one.counts

    def of(self, chosen: Sequence[int]) -> Statistics:
        """Return the statistics of some units together."""
        sums = exact_sums(self.sums[chosen].sum(axis=0), True)
        counts = self.counts[chosen].sum(axis=0)
        pairs, merged = len(self._pairs[0]), self._n - self._k
        kept = counts[2 * pairs + 1 :].reshape(len(self._densities), pairs)
        return Statistics(
            int(self.sizes[chosen].sum()),
            _symmetric(sums[:pairs], self._pairs, self._n),
            sums[pairs : pairs + merged],
            float(sums[-1]),
            _symmetric(counts[:pairs], self._pairs, self._n),
            _symmetric(counts[pairs : 2 * pairs], self._pairs, self._n),
            int(counts[2 * pairs]),
            {
                density: _symmetric(own, self._pairs, self._n)
                for density, own in zip(self._densities, kept, strict=True)
            },
        )

    def _summed(self, deltas: np.ndarray) -> np.ndarray:
        size = deltas.shape[1]
        x = np.empty((self._n, -(-size // DEPTH) * DEPTH))
        x[:, :size], x[:, size:] = deltas, 0
        energy = np.einsum("ij,ij->j", x[: self._k], x[: self._k])
        merged = x[self._k :] ** 2
        rest = [
            *np.einsum("ij,ij->i", merged, merged),
            np.einsum("j,j->", energy, energy),
        ]
        parts = x.reshape(self._n, -1, DEPTH)
        gram = np.matmul(parts.transpose(1, 0, 2), parts.transpose(1, 2, 0))
        return np.concatenate([gram.sum(axis=0)[self._pairs], rest])

    def _counted(
        self, deltas: np.ndarray, thresholds: Sequence[np.ndarray]
    ) -> np.ndarray:
        up, down = _packed(deltas > 0), _packed(deltas < 0)
        moved, each = up | down, range(self._n)
        touched = np.bitwise_or.reduce(moved[: self._k], keepdims=True)
        counts = [
            *(_ones(moved[i:] & moved[i]) for i in each),  # in the order of all pairs
            *(_ones(up[i:] & down[i] | down[i:] & up[i]) for i in each),
            _ones(touched),
        ]
        for keys in thresholds:
            kept = _packed(_magnitudes(deltas, keys.dtype) >= keys[:, None]) & moved
            counts += [_ones(kept[i:] & kept[i]) for i in each]
        return np.concatenate(counts)


def _packed(flags: np.ndarray) -> np.ndarray:
    """Return flags [n, m] as bits in words, uint64 [n, ⌈m / 64⌉], the rest 0."""
    found = np.packbits(flags, axis=1)
    if over := -found.shape[1] % 8:
        found = np.pad(found, ((0, 0), (0, over)))
    return found.view(np.uint64)


def _ones(packed: np.ndarray) -> np.ndarray:
    return np.bitwise_count(packed).sum(axis=1, dtype=np.int64)


def _magnitudes(deltas: np.ndarray, keys: np.dtype) -> np.ndarray:
    """Return the bits less the sign, as `numerics.magnitude_keys` does."""
    wide = keys == np.uint64
    bits = deltas.astype(np.float64 if wide else np.float32, copy=False).view(keys)
    return bits & keys.type(2 ** (63 if wide else 31) - 1)


def _symmetric(values: np.ndarray, pairs: Any, size: int) -> np.ndarray:
    found = np.zeros((size, size), values.dtype)
    found[pairs] = found[pairs[::-1]] = values
    return found
