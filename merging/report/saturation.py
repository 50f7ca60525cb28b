"""Where adding experts stops paying: a concave fit of gain against K (figure F6).

"Why Do More Experts Fail?" (arXiv 2505.21226) finds that each further expert adds
less. The curve fitted is gain(K) = a (1 - exp(-K / c)): nothing at K = 0, which is
the base, rising to the asymptote a; its marginal gain a/c exp(-K / c) shrinks.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from merging.report.summaries import Grid, ModelScores, by_seed

SATURATED = 0.9  # share of the asymptote at which a curve counts as saturated
FEWEST_POINTS = 3  # values of K above 0: two parameters and one degree of freedom
GOOD_FIT = 0.5  # smallest R² whose saturation point is quoted

# What `Fit.status` can say; only the first two quote a saturation point.
FITTED = "fitted"
BEYOND = "extrapolated: saturates beyond the largest K"
EARLY = "saturates before the smallest K: where cannot be told"
STRAIGHT = "no saturation seen: a straight line fits as well"
POOR = "poor fit: gains do not follow a saturating curve"
PEAKED = "gains rise and fall again: no saturating curve"
FALLING = "no gain over the base"
FEW = "too few values of K"


class Fit(NamedTuple):
    """A fitted gain curve.

    Attributes:
      asymptote, constant: a and c; None where nothing was fitted.
      saturation: the K that reaches `SATURATED` of the asymptote, where quoted.
      r_squared, rmse: of the points fitted, the base at K = 0 included.
      points: how many values of K above 0 were fitted.
    """

    status: str
    asymptote: float | None = None
    constant: float | None = None
    saturation: float | None = None
    r_squared: float | None = None
    rmse: float | None = None
    points: int = 0

    @property
    def quotable(self) -> bool:
        """Whether the curve may be drawn: it rises and describes the points."""
        return self.status in (FITTED, BEYOND, EARLY, STRAIGHT)

    def gain(self, K: float) -> float:
        """The fitted gain over the base at K experts."""
        return self.asymptote * -math.expm1(-K / self.constant)

    def marginal(self, K: float) -> float:
        """The fitted gain per further expert at K experts."""
        return self.asymptote / self.constant * math.exp(-K / self.constant)


def fit(gains: Mapping[int, float]) -> Fit:
    """Fit the curve to K → gain over the base (K ≥ 1), by bounded least squares."""
    counts = sorted(K for K in gains if K > 0)
    values = [gains[K] for K in counts]
    if len(counts) < FEWEST_POINTS:
        return Fit(FEW, points=len(counts))
    if max(values) <= 0:
        return Fit(FALLING, points=len(counts))
    shortest, longest = counts[0] / 10, counts[-1] * 10
    asymptote, constant = _least_squares(counts, values, shortest, longest)
    curve = Fit(FITTED, asymptote, constant, points=len(counts))
    errors = [curve.gain(K) - v for K, v in zip(counts, values, strict=True)] + [0.0]
    total = sum((v - statistics.fmean([*values, 0])) ** 2 for v in (*values, 0.0))
    residual = sum(error**2 for error in errors)
    curve = curve._replace(
        r_squared=1 - residual / total, rmse=math.sqrt(residual / len(errors))
    )
    saturation = -constant * math.log(1 - SATURATED)
    if asymptote <= 0:
        return curve._replace(status=FALLING)
    if values[-1] < SATURATED * max(values):
        return curve._replace(status=PEAKED)
    if curve.r_squared < GOOD_FIT:
        return curve._replace(status=POOR)
    if constant > 0.99 * longest:
        return curve._replace(status=STRAIGHT)
    if saturation < counts[0]:
        return curve._replace(status=EARLY)
    status = FITTED if saturation <= counts[-1] else BEYOND
    return curve._replace(status=status, saturation=saturation)


def _least_squares(
    counts: Sequence[int], values: Sequence[float], shortest: float, longest: float
) -> tuple[float, float]:
    """The a and c, with c within bounds, of the least squared error."""
    # Imported late: the command line must start quickly.
    from scipy.optimize import minimize_scalar

    def best_asymptote(log_c: float) -> float:
        # The curve is linear in a: for a given c the best a has a closed form, and
        # one bounded search over c is left, which cannot run away or stall.
        shape = [-math.expm1(-K / math.exp(log_c)) for K in counts]
        products = sum(s * v for s, v in zip(shape, values, strict=True))
        return products / sum(s * s for s in shape)

    def squared_error(log_c: float) -> float:
        curve = Fit(FITTED, best_asymptote(log_c), math.exp(log_c))
        return sum(
            (curve.gain(K) - v) ** 2 for K, v in zip(counts, values, strict=True)
        )

    # The error can have two valleys; a coarse scan finds the deeper one.
    low, high = math.log(shortest), math.log(longest)
    step = (high - low) / 24
    scan = [low + i * step for i in range(25)]
    start = min(scan, key=squared_error)
    found = minimize_scalar(
        squared_error,
        bounds=(max(low, start - step), min(high, start + step)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    log_c = min((float(found.x), start), key=squared_error)
    return best_asymptote(log_c), math.exp(log_c)


class Gains(NamedTuple):
    """Gain over the base on all held-in datasets, of one size, base and method.

    Attributes:
      by_seed: K → seed → gain; K = 0, the base, is left out (its gain is 0).
      marginal: (K before, K) → seed → gain per expert added between them.
      fit: the curve through the means over seeds.
      saturations: the saturation points of the seeds' own fits, where quoted.
    """

    by_seed: Mapping[int, Mapping[int, float]]
    marginal: Mapping[tuple[int, int], Mapping[int, float]]
    fit: Fit
    saturations: tuple[float, ...]


def points(
    grid: Grid, size: str, base: str, method: str, measure: str
) -> dict[int, dict[int, float]]:
    """Return K → seed → a measure, "gain" or "normalised_gain_all"; empty without data.

    Experts evaluated on every held-in dataset give the point at K = 1.
    """
    found: dict[int, dict[int, float]] = {}
    for K in grid.counts:
        if values := by_seed(grid.models(size, base, method, K), measure):
            found[K] = values
    if not found:
        return {}
    singles: Sequence[ModelScores] = grid.models(size, base, "expert", 1)
    if all(len(model.subset) == 1 for model in singles):
        if values := by_seed(singles, measure):
            found[1] = values
    return dict(sorted(found.items()))


def gains(grid: Grid, size: str, base: str, method: str, measure: str) -> Gains | None:
    """Return the gain curve of a measure (see `points`); None without data."""
    found = points(grid, size, base, method, measure)
    if not found:
        return None
    seeds = sorted({seed for values in found.values() for seed in values})
    own = [
        fit({K: values[seed] for K, values in found.items() if seed in values})
        for seed in seeds
    ]
    means = {K: statistics.fmean(values.values()) for K, values in found.items()}
    return Gains(
        by_seed=found,
        marginal=_marginal(found),
        fit=fit(means),
        saturations=tuple(f.saturation for f in own if f.saturation is not None),
    )


def _marginal(
    curve: Mapping[int, Mapping[int, float]],
) -> dict[tuple[int, int], dict[int, float]]:
    marginal = {}
    before, below = 0, None
    for K, values in curve.items():
        shared = (
            values if below is None else {s: v for s, v in values.items() if s in below}
        )
        marginal[before, K] = {
            seed: (value - (below[seed] if below else 0.0)) / (K - before)
            for seed, value in shared.items()
        }
        before, below = K, values
    return {steps: values for steps, values in marginal.items() if values}
