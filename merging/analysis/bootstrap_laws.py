"""How sure a law is: bootstrap intervals, and tests on what it has not seen."""

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from merging.analysis import laws
from merging.analysis.laws import Law, Observation
from merging.runtime.errors import UserError

SEEDS, RESIDUALS = "seeds and subsets", "residuals"
_TRIES = 20  # draws for each resample, before seeds count as too different


class Sureness(NamedTuple):
    """A law with its bootstrap.

    Attributes:
      law: fitted on everything.
      drawn: laws fitted on what was drawn.
      of: what was drawn: `SEEDS`, or `RESIDUALS` where most (N, k) have observations of
        one seed only: then the law's own noise, normal, which is less to go by.
      level: of intervals; their ends are NaN where nothing could be drawn.
    """

    law: Law
    drawn: tuple[Law, ...]
    of: str
    level: float

    def interval(self, name: str) -> tuple[float, float]:
        """Return a parameter's percentile interval.

        NaN where the law, or more of those drawn than lie beyond one end, do not depend
        on it (`Law.free`): it may have any value there.
        """
        told = [law.parameters[name] for law in self.drawn if name not in law.free]
        beyond = (1 - self.level) / 2 * len(self.drawn)
        if name in self.law.free or len(self.drawn) - len(told) > beyond:
            return math.nan, math.nan
        return self._ends(np.array(told))

    def around(
        self, N: float, k: float, observations: int = 0, seed: int = 0
    ) -> tuple[float, float]:
        """Return the interval of the expected value at (N, k).

        Args:
          N, k: where.
          observations: if any, the interval of the mean of so many new ones instead:
            the law's own noise is added.
          seed: of that noise.
        """
        values = np.array([float(law.predict(N, k)) for law in self.drawn])
        if observations:
            weight = (k if self.law.weights == "k" else 1.0) * observations
            rng = np.random.default_rng(seed)
            noise = self.law.noise / np.sqrt(weight)
            # Many for each law, or the interval's ends would be those of few draws.
            values = values[:, None] + noise * rng.standard_normal((len(values), 64))
        return self._ends(values)

    def _ends(self, values: np.ndarray) -> tuple[float, float]:
        if not self.drawn:
            return math.nan, math.nan
        ends = (1 - self.level) / 2, (1 + self.level) / 2
        low, high = np.quantile(values, ends)
        return float(low), float(high)


def bootstrap(
    observed: Sequence[Observation],
    form: str = laws.MERGING,
    weights: str = "k",
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Sureness:
    """Fit a law, and again on resampled observations.

    Seeds are drawn with replacement, the same for all (N, k), and of each seed drawn
    its subsets at each (N, k): runs of one seed share what is lucky in it. Where fewer
    than two seeds share most (N, k), this would say little of how results vary, and the
    law's residuals are drawn instead; also where seeds hold so different (N, k) that
    hardly any draw tells the law.

    Raises:
      UserError: as `laws.fit`.
    """
    law, rng = laws.fit(observed, form, weights), random.Random(seed)

    def fitted(drawn: Sequence[Observation]) -> Law:
        return laws.fit(drawn, form, weights, law)

    if _share_most(observed):
        drawn = _of_seeds(observed, fitted, resamples, rng)
        if len(drawn) == resamples:
            return Sureness(law, tuple(drawn), SEEDS, level)
    drawn = []
    if not math.isnan(law.noise):  # else as many observations as numbers
        for _ in range(resamples):
            drawn.append(fitted([_noisy(law, one, rng) for one in observed]))
    return Sureness(law, tuple(drawn), RESIDUALS, level)


def _share_most(observed: Sequence[Observation]) -> bool:
    """Return whether more than half of all (N, k) have observations of two seeds."""
    seeds: dict[tuple[float, float], set[str]] = {}
    for one in observed:
        seeds.setdefault((one.N, one.k), set()).add(one.seed)
    shared = sum(len(of) > 1 for of in seeds.values())
    return 2 * shared > len(seeds)


def _of_seeds(
    observed: Sequence[Observation],
    fitted: Callable[[Sequence[Observation]], Law],
    resamples: int,
    rng: random.Random,
) -> list[Law]:
    """Return laws of so many resamples; fewer, if `_TRIES` each do not give them."""
    by_seed: dict[str, dict[tuple, list[Observation]]] = {}
    for one in observed:
        cells = by_seed.setdefault(one.seed, {})
        cells.setdefault((one.N, one.k), []).append(one)
    one_size = len({one.N for one in observed}) == 1
    found: list[Law] = []
    for _ in range(_TRIES * resamples):
        if len(found) == resamples:
            break
        resampled = [
            rng.choice(cell)
            for name in rng.choices(list(by_seed), k=len(by_seed))
            for cell in by_seed[name].values()
            for _ in cell
        ]
        if (len({one.N for one in resampled}) == 1) != one_size:
            continue  # the law of one size is another form
        with contextlib.suppress(UserError):  # too few (N, k), or two sizes
            found.append(fitted(resampled))
    return found


def _noisy(law: Law, one: Observation, rng: random.Random) -> Observation:
    weight = one.k if law.weights == "k" else 1.0
    noise = rng.gauss(0, law.noise / weight**0.5)
    return one._replace(value=float(law.predict(one.N, one.k)) + noise)


class Prediction(NamedTuple):
    """What a law says of an (N, k) that it was not fitted on.

    Attributes:
      observed: the mean of what was observed there, of so many `observations`.
      predicted, low, high: with the interval of such a mean.
      error: |predicted − observed| / |observed|.
      covered: whether the interval holds what was observed; None without one.
    """

    N: float
    k: float
    observed: float
    observations: int
    predicted: float
    low: float
    high: float
    error: float
    covered: bool | None


def held_out(
    observed: Sequence[Observation],
    seen: Callable[[Observation], bool],
    form: str = laws.MERGING,
    weights: str = "k",
    **how: float,
) -> tuple[Sureness, list[Prediction]]:
    """Fit on what is seen, and predict the rest.

    Args:
      observed: everything.
      seen: which of it to fit on, such as ``lambda o: o.k <= 8``.
      form, weights, how: as for `bootstrap`.

    Raises:
      UserError: nothing is left to predict, or as `laws.fit`.
    """
    known = [one for one in observed if seen(one)]
    rest: dict[tuple[float, float], list[float]] = {}
    for one in observed:
        if not seen(one):
            rest.setdefault((one.N, one.k), []).append(one.value)
    if not rest:
        raise UserError("a held-out test has nothing to predict: all rows are fitted.")
    sure = bootstrap(known, form, weights, **how)
    found = []
    for (N, k), values in sorted(rest.items()):
        mean = float(np.mean(values))
        predicted = float(sure.law.predict(N, k))
        low, high = sure.around(N, k, len(values))
        error = abs(predicted - mean) / abs(mean) if mean else float("inf")
        covered = None if math.isnan(low) else low <= mean <= high
        found.append(
            Prediction(N, k, mean, len(values), predicted, low, high, error, covered)
        )
    return sure, found
