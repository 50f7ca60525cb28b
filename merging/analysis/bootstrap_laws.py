"""How sure a law is: bootstrap intervals, and tests on what it has not seen."""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from merging.analysis import laws
from merging.analysis.laws import Law, Observation
from merging.runtime.errors import UserError

SEEDS, RESIDUALS = "seeds and subsets", "residuals"


class Sureness(NamedTuple):
    """A law with its bootstrap.

    Attributes:
      law: fitted on everything.
      drawn: laws fitted on what was drawn.
      of: what was drawn: `SEEDS`, or `RESIDUALS` where there is one observation of each
        (N, k): then the law's own noise, normal, which is less to go by.
      level: of intervals; their ends are NaN where nothing could be drawn.
    """

    law: Law
    drawn: tuple[Law, ...]
    of: str
    level: float

    def interval(self, name: str) -> tuple[float, float]:
        """Return a parameter's percentile interval."""
        return self._ends(np.array([law.parameters[name] for law in self.drawn]))

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
    its subsets at each (N, k): runs of one seed share what is lucky in it.

    Raises:
      UserError: as `laws.fit`.
    """
    law = laws.fit(observed, form, weights)
    by_seed: dict[str, dict[tuple, list[Observation]]] = {}
    for one in observed:
        cells = by_seed.setdefault(one.seed, {})
        cells.setdefault((one.N, one.k), []).append(one)
    several = len(observed) > len({(o.N, o.k) for o in observed})
    drawn, rng = [], random.Random(seed)

    def resampled() -> list[Observation]:
        if not several:
            return [_noisy(law, one, rng) for one in observed]
        return [
            rng.choice(cell)
            for name in rng.choices(list(by_seed), k=len(by_seed))
            for cell in by_seed[name].values()
            for _ in cell
        ]

    if not several and math.isnan(law.noise):
        resamples = 0  # as many observations as numbers: nothing says how sure they are
    while len(drawn) < resamples:
        try:
            drawn.append(laws.fit(resampled(), form, weights, law))
        except UserError:  # a seed alone may lack sizes: draw again
            if not several or len(by_seed) < 2:
                raise
    return Sureness(law, tuple(drawn), SEEDS if several else RESIDUALS, level)


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
