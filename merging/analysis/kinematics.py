"""How many experts fit into a space: statistical dimensions and a threshold on K.

**The theorem.** Amelunxen, Lotz, McCoy and Tropp 2014, "Living on the edge: phase
transitions in convex programs with random data" (arXiv 1303.6672), Theorem I, the
approximate kinematic formula. For convex cones C and C′ in R^d, Q a rotation drawn
uniformly, δ the statistical dimension, 0 < η < 1 and a_η = √(8 log(4 / η)):

  δ(C) + δ(C′) ≤ d − a_η √d  ⇒  C ∩ QC′ = {0} with probability at least 1 − η,
  δ(C) + δ(C′) ≥ d + a_η √d  ⇒  C ∩ QC′ ≠ {0} with probability at least 1 − η.

A k-dimensional subspace has δ = k (their Proposition 3.1), and for subspaces the
transition is exact: turned at random, they meet in 0 alone if and only if
δ(C) + δ(C′) ≤ d, with probability 1. While they do, what they span has dimension
δ(C) + δ(C′), and the next one can be added to it; with probability 1 again, however
often. Only cones that are no subspaces need a union bound over the K − 1 additions.

**The threshold.** An expert that keeps its score when all but k of its n coordinates
are dropped needs a space of dimension k at most. Let δᵢ be what expert i needs, and D
the dimension of the space that merging can use: the first K experts' needs stay apart
if and only if δ₁ + … + δ_K ≤ D. K* is the first K at which the sum exceeds D.

**What is assumed**, none of which holds exactly for trained models:
1. What an expert needs is a subspace of the weights' space. A critical density bounds
   its dimension from above: other weights might do with less.
2. Those of different experts are turned against each other uniformly at random.
   Positive cosines between task vectors, which are the rule, make K* larger.
3. An expert is lost as soon as its subspace meets what the others span: the theorem
   says that they meet, not what that costs. So K* is where trouble may begin.
4. D is known, in the unit of the δᵢ. All n coordinates is the most it can be.
"""

import math
from collections.abc import Sequence


def threshold(dimensions: Sequence[float], space: float) -> int | None:
    """Return K*; None if no expert needs any dimension.

    Where all that are given fit, it is extrapolated with their mean δ, and lies beyond
    their number.

    Args:
      dimensions: δᵢ ≥ 0 of the experts, in the order they are added.
      space: D, in the same unit (coordinates).
    """
    total = 0.0
    for count, dimension in enumerate(dimensions, 1):
        total += float(dimension)
        if total > space:
            return count
    if total <= 0:
        return None
    mean = total / len(dimensions)
    return len(dimensions) + math.floor((space - total) / mean) + 1


def l1_descent_cone(density: float) -> float:
    """Return δ / n of the ℓ₁ norm's descent cone at a vector of that density.

    ψ(ρ) = inf over τ ≥ 0 of ρ(1 + τ²) + (1 − ρ) √(2/π) ∫_τ^∞ (u − τ)² e^(−u²/2) du,
    Amelunxen et al. 2014, Proposition 4.5: an upper bound, within 2 / √(ρn · n) of it.
    What an expert needs if it is not known *which* coordinates matter, only how many.

    Args:
      density: ρ in 0..1, the share of coordinates that are not zero.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import erfc

    if density <= 0 or density >= 1:
        return float(density >= 1)

    def bound(tau: float) -> float:
        # √(2/π) ∫_τ^∞ (u − τ)² e^(−u²/2) du, integrated by parts.
        tail = (1 + tau**2) * erfc(tau / math.sqrt(2))
        tail -= math.sqrt(2 / math.pi) * tau * math.exp(-(tau**2) / 2)
        return density * (1 + tau**2) + (1 - density) * tail

    return float(minimize_scalar(bound, bounds=(0, 40), method="bounded").fun)
