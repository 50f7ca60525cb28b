"""How many experts fit into a space: statistical dimensions and a threshold on K.

**The theorem.** Amelunxen, Lotz, McCoy and Tropp 2014, "Living on the edge: phase
transitions in convex programs with random data" (arXiv 1303.6672), Theorem I, the
approximate kinematic formula. For convex cones C and C′ in R^d, Q a rotation drawn
uniformly, δ the statistical dimension, 0 < η < 1 and a_η = √(8 log(4 / η)):

  δ(C) + δ(C′) ≤ d − a_η √d  ⇒  C ∩ QC′ = {0} with probability at least 1 − η,
  δ(C) + δ(C′) ≥ d + a_η √d  ⇒  C ∩ QC′ ≠ {0} with probability at least 1 − η.

**The threshold.** An expert that keeps its score when all but k of its n coordinates
are dropped needs a space of dimension k at most; a k-dimensional subspace has δ = k
(their Proposition 3.1). Let δᵢ be what expert i needs, and D the dimension of the space
that merging can use. While two random subspaces meet only in 0, the dimension of what
they span is δ₁ + δ₂; so with subspaces, applied again and again, the first K experts'
needs stay apart while δ₁ + … + δ_K ≤ D − a_η √D, and from D + a_η √D on the last one
meets what those before it span. K* is the first K at which the sum exceeds D.

**What is assumed**, none of which holds exactly for trained models:
1. What an expert needs is a convex cone, here a subspace, of the weights' space. A
   critical density bounds its dimension from above: other weights might do with less.
2. Those of different experts are turned against each other uniformly at random.
   Positive cosines between task vectors, which are the rule, make K* larger.
3. An expert is lost as soon as its cone meets the others': the theorem says that they
   meet, not what that costs. So K* is where trouble may begin.
4. D is known. `parameters`, all n coordinates, is the most it can be; `coordinates`,
   how many of them carry the stack's energy (`geometry_rows`), is an estimate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Crossing(NamedTuple):
    """Where the sum of statistical dimensions exceeds the dimension of the space.

    Attributes:
      experts: K*, the first K whose sum exceeds D; with too few experts for that, it
        is extrapolated with the mean δ.
      low, high: the first K whose sum exceeds D − a_η √D, and D + a_η √D.
      extrapolated: whether K* (not its ends) lies beyond the experts that are given.
      sums: δ₁ + … + δ_k for each k that was given.
    """

    experts: int
    low: int
    high: int
    extrapolated: bool
    sums: tuple[float, ...]


def threshold(
    dimensions: Sequence[float], space: float, eta: float = 0.05
) -> Crossing | None:
    """Return K*; None if no expert needs any dimension.

    Args:
      dimensions: δᵢ > 0 of the experts, in the order they are added.
      space: D, in the same unit (coordinates).
      eta: the probability left on either side of the transition.
    """
    sums, total = [], 0.0
    for dimension in dimensions:
        sums.append(total := total + float(dimension))
    if total <= 0:
        return None
    width = math.sqrt(8 * math.log(4 / eta)) * math.sqrt(space)

    def first_above(limit: float) -> int:
        for count, reached in enumerate(sums, 1):
            if reached > limit:
                return count
        mean = total / len(sums)
        return len(sums) + math.floor((limit - total) / mean) + 1

    found = first_above(space)
    low, high = first_above(space - width), first_above(space + width)
    return Crossing(found, low, high, found > len(sums), tuple(sums))


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
