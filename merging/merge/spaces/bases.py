"""Bases that several adapters share, and their coordinates in them: pure NumPy.

In float64, on one thread of BLAS: how many there are can change a bit, and on busy
cores they wait for each other. Signs of singular vectors are chosen by a rule, so that
runs agree: of each vector the component of the largest magnitude is positive.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from merging.runtime.blas import one_thread, svd

# Singular values that KnOTS' authors take for none.
NOTHING = 1e-5

Array = NDArray[np.float64]


class Update(NamedTuple):
    """What one adapter adds to a matrix: s · b @ a, [out, r] and [r, in]."""

    a: Array
    b: Array
    scaling: float


@one_thread()
def core(updates: Sequence[Update]) -> tuple[Array, Array]:
    """Return U [out, min(out, Σr)] and V [in, min(in, Σr)] of Core Space.

    The left singular vectors of all B side by side, and of all Aᵀ. Every update is
    U M Vᵀ of its own M = s (Uᵀ B)(A V), without loss. Panariello et al. 2025.
    """
    left = _singular(np.hstack([update.b for update in updates]))
    return left, _singular(np.hstack([update.a.T for update in updates]))


@one_thread()
def core_coordinates(update: Update, left: Array, right: Array) -> Array:
    """Return an update's M."""
    return update.scaling * ((left.T @ update.b) @ (update.a @ right))


@one_thread()
def knots(updates: Sequence[Update]) -> Array:
    """Return U [out, min(out, Σr)] of KnOTS: [ΔW₁ … ΔW_K] = U Σ [V₁ᵀ … V_Kᵀ].

    An update's coordinates are Σ Vᵢᵀ = Uᵀ ΔWᵢ. Columns whose singular value is not
    above `NOTHING` are zero. Stoica et al. 2025, arXiv 2410.19735. The wide matrix is
    never made: with B = Q R and Aᵢ = Lᵢ Qᵢ, its U and Σ are those of [sᵢ Rᵢ Lᵢ].
    """
    basis, ranges = np.linalg.qr(np.hstack([update.b for update in updates]))
    ends = np.cumsum([0, *(update.b.shape[1] for update in updates)])
    small = [
        update.scaling * (ranges[:, i:j] @ np.linalg.qr(update.a.T)[1].T)
        for update, i, j in zip(updates, ends, ends[1:], strict=False)
    ]
    left, sizes, _ = svd(np.hstack(small))
    found = np.zeros((basis.shape[0], basis.shape[1]))
    kept = sizes > NOTHING
    found[:, : len(sizes)] = np.where(kept, basis @ left, 0)
    return signed(found)


def _singular(matrix: Array) -> Array:
    basis, rest = np.linalg.qr(matrix)
    return signed(basis @ svd(rest)[0])


def signed(vectors: Array) -> Array:
    """Return vectors, as columns, with their largest component positive."""
    if not vectors.size:
        return vectors
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1, signs)
