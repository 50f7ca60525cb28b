"""Gaussian widths of what K experts span: pure functions of their K × K Gram matrix.

The Gaussian width of a set S in R^n is w(S) = E sup over s in S of ⟨g, s⟩, g ~ N(0, I):
a measure of its size, in units of length, that hardly depends on n. Over a few points
Δ̂₁ … Δ̂_K it needs the products zᵢ = ⟨g, Δ̂ᵢ⟩ only, which are N(0, Ĝ) with Ĝ the Gram
matrix of the points. "Why Do More Experts Fail?" (arXiv 2505.21226) argues with the
width of what merging can reach; here the points are the task vectors scaled to length
1, so Ĝ holds their cosines.
"""

import math
from typing import NamedTuple

import numpy as np

# Draws in memory at a time.
CHUNK = 2**14


class Estimate(NamedTuple):
    """A Monte Carlo mean and its interval, mean ± z · standard error."""

    value: float
    low: float
    high: float


class Widths(NamedTuple):
    """Widths for growing K, all of them from the same draws.

    Attributes:
      hull: for each k = 1 … K, w(conv{0, Δ̂₁, …, Δ̂_k}) = E max(0, max over i ≤ k of zᵢ).
      marginal: hull of k less hull of k − 1 (that of k = 0 is 0): what the k-th adds.
      ellipsoid: w({Σ aᵢ Δ̂ᵢ : ‖a‖₂ ≤ 1}) = E √(Σ over i ≤ k of zᵢ²).
    """

    hull: list[Estimate]
    marginal: list[Estimate]
    ellipsoid: list[Estimate]


def widths(
    cosines: np.ndarray,
    *,
    orders: int = 1,
    draws: int = 2**17,
    seed: int = 0,
    level: float = 0.95,
) -> Widths:
    """Return the widths of the first k of K points, by Monte Carlo.

    Cost: draws × K² multiplications. The error of a width falls as 1 / √draws; with
    the default it is about 0.0016 at most for the hull.

    Args:
      cosines: Ĝ, float64 [K, K], the points' Gram matrix.
      orders: 1 takes the points as they come; more, the mean over so many random
        orders of them, each with its share of the draws, and then the interval is
        that of draws and orders together.
      draws: of g. seed: of draws and orders. level: of the intervals.
    """
    rng = np.random.default_rng(seed)
    count = len(cosines)
    root = _root(cosines)
    sums = np.zeros((3, 2, count))
    each = -(-draws // orders)
    # Each order is one observation where there are several; each draw where not.
    for _ in range(orders):
        order = rng.permutation(count) if orders > 1 else np.arange(count)
        own = np.zeros((3, 2, count))
        for start in range(0, each, CHUNK):
            many = min(CHUNK, each - start)
            z = rng.standard_normal((many, root.shape[1])) @ root[order].T
            hull = np.maximum(np.maximum.accumulate(z, axis=1), 0)
            parts = (
                hull,
                np.diff(hull, axis=1, prepend=0),
                np.sqrt(np.cumsum(z**2, axis=1)),
            )
            for i, part in enumerate(parts):
                own[i] += [part.sum(axis=0), (part**2).sum(axis=0)]
        if orders == 1:
            sums = own
        else:
            means = own[:, 0] / each
            sums += np.stack([means, means**2], axis=1)
    observed = each if orders == 1 else orders
    return Widths(*(_estimates(one, observed, level) for one in sums))


def _root(cosines: np.ndarray) -> np.ndarray:
    """Return R with R Rᵀ = Ĝ, also where Ĝ is singular (a Cholesky factor is not)."""
    values, vectors = np.linalg.eigh(cosines)
    # What is an eigenvalue of 0 but for rounding would be a root of 1e-8, not 1e-16.
    rounding = len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors * np.sqrt(np.where(values > rounding, values, 0))


def _estimates(sums: np.ndarray, observed: int, level: float) -> list[Estimate]:
    from scipy.special import ndtri

    mean = sums[0] / observed
    variance = np.maximum(sums[1] / observed - mean**2, 0) / max(observed - 1, 1)
    half = ndtri((1 + level) / 2) * np.sqrt(variance)
    return [
        Estimate(float(m), float(m - h), float(m + h))
        for m, h in zip(mean, half, strict=True)
    ]


def orthonormal_hull(count: int) -> float:
    """Return the hull's width of `count` orthonormal points, exactly.

    E max(0, max zᵢ) of independent zᵢ is the integral over t > 0 of 1 − Φ(t)^K.
    """
    from scipy.integrate import quad
    from scipy.special import ndtr

    return quad(lambda t: 1 - ndtr(t) ** count, 0, math.inf)[0]


def orthonormal_ellipsoid(count: int) -> float:
    """Return the ellipsoid's width of orthonormal points: the mean of χ with K degrees.

    √2 Γ((K + 1) / 2) / Γ(K / 2).
    """
    return math.sqrt(2) * math.exp(
        math.lgamma((count + 1) / 2) - math.lgamma(count / 2)
    )
