"""The best approximation of a matrix by one of a low rank, and how good it is."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from merging.merge.spaces import bases
from merging.runtime import blas


class Fit(NamedTuple):
    """A task vector's matrix as B @ A.

    Attributes:
      a: [r, in]; r may be 0.
      b: [out, r].
      norm: ‖Δ‖, of Frobenius.
      error: ‖Δ − BA‖ / ‖Δ‖, of the factors as they are stored; 0 where Δ is.
      energy: Σσ² of what is kept, as a share of all.
    """

    a: np.ndarray
    b: np.ndarray
    norm: float
    error: float
    energy: float


def fit(delta: np.ndarray, rank: int, energy: float, dtype: np.dtype) -> Fit:
    """Return a matrix's truncated SVD as two factors of equal norms, U√σ and √σ Vᵀ.

    No matrix of that rank is nearer (Eckart and Young 1936). In float32.

    Args:
      delta: [out, in], float32 and finite.
      rank: the most; 0 sets no limit.
      energy: the least share of Σσ² that is kept, under that limit; 0 keeps the rank.
      dtype: to store the factors in.
    """
    rows, columns = delta.shape
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    if norm == 0:
        return Fit(np.zeros((0, columns), dtype), np.zeros((rows, 0), dtype), 0, 0, 1)
    left, sizes, right = _svd(delta)
    squares = sizes.astype(np.float64) ** 2
    shares = np.cumsum(squares) / squares.sum()
    count = int((sizes > 0).sum())
    if energy:
        count = min(count, int(np.searchsorted(shares, energy)) + 1)
    count = min(count, rank) if rank else count
    roots = np.sqrt(sizes[:count])
    b, a = left[:, :count] * roots, roots[:, None] * right[:count]
    # Signs by a rule, so that runs agree.
    turned = np.sign((bases.signed(b) * b).sum(axis=0))
    b, a = (b * turned).astype(dtype), (turned[:, None] * a).astype(dtype)
    rest = delta - b.astype(np.float32) @ a.astype(np.float32)
    error = float(np.linalg.norm(rest.astype(np.float64))) / norm
    return Fit(a, b, norm, error, float(shares[count - 1]))


def _svd(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = tuple(map(np.asarray, jnp.linalg.svd(delta, full_matrices=False)))
    if all(np.isfinite(part).all() for part in found):
        return found
    # LAPACK's quickest way did not converge.
    wide = blas.svd(delta.astype(np.float64))
    return tuple(part.astype(np.float32) for part in wide)
