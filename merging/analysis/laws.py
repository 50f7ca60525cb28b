"""Laws of merging, fitted by weighted least squares.

``merging``: E[L | N, k] = L* + B·N^−β + A₀·N^−γ / (k + b), the loss of a merge of k
experts of N parameters (arXiv 2509.24244, which weighs by k: a mean over subsets of
that size varies as 1 / k). b is free. Of one N, only L* + B·N^−β = `floor` and
A₀·N^−γ = `tail` can be told: E[L | k] = floor + tail / (k + b).

``saturating``: E[gain | K] = a·(1 − exp(−K / τ)), the gain over the base, of one N.

Both are linear but for a few numbers (β, γ, b; τ): these are searched, from several
starts, by SciPy's bounded least squares, and the rest has a closed form for each trial
(variable projection, Golub and Pereyra 1973), with L*, B, A₀ ≥ 0.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from merging.runtime.errors import UserError

MERGING, SATURATING = "merging", "saturating"
FORMS = (MERGING, SATURATING)
WEIGHTS = ("k", "none")
_EXPONENTS = (0.02, 0.1, 0.3, 0.7, 1.2)
_EXPONENT_BOUNDS = (1e-3, 3.0)
# A share of its bounds within which a number counts as not told by the data.
_EDGE = 1e-3
# A share of the observations' norm up to which a term counts as 0: rounding.
_NOTHING = 1e-12


class Observation(NamedTuple):
    """One merge's loss, or gain.

    Attributes:
      N: parameters of the model. k: experts. value: the loss or gain.
      seed, subset: names of the run's seed and of its experts; what a bootstrap draws.
    """

    N: float
    k: float
    value: float
    seed: str = ""
    subset: str = ""


class Law(NamedTuple):
    """A fitted law.

    Attributes:
      form: of `FORMS`.
      parameters: by name; see the module.
      r_squared: 1 − Σ r² / Σ (y − ȳ)², all observations alike, whatever the weights.
      rmse: √(Σ w r² / Σ w), in the value's unit.
      noise: √(Σ w r² / (n − p)): of an observation of weight 1; NaN where there are no
        more observations than numbers.
      weights: of `WEIGHTS`.
      at_bound: names of numbers that ended on a bound, and of `free` ones: the data
        do not tell them.
      free: names of those that only a term of 0 has: any value fits as well.
    """

    form: str
    parameters: dict[str, float]
    r_squared: float
    rmse: float
    noise: float
    weights: str
    at_bound: tuple[str, ...]
    free: tuple[str, ...] = ()

    def predict(self, N: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Return the expected values, of the arguments' broadcast shape."""
        p = self.parameters
        N, k = np.asarray(N, float), np.asarray(k, float)
        if self.form == SATURATING:
            return p["a"] * -np.expm1(-k / p["tau"]) + 0 * N
        if "floor" in p:
            return p["floor"] + p["tail"] / (k + p["b"]) + 0 * N
        reached = p["L"] + p["B"] * N ** -p["beta"]
        return reached + p["A"] * N ** -p["gamma"] / (k + p["b"])


def fit(
    observed: Sequence[Observation],
    form: str = MERGING,
    weights: str = "k",
    start: Law | None = None,
) -> Law:
    """Return the law of the least weighted squared error.

    Args:
      observed: at least as many different (N, k) as the law has numbers.
      form: of `FORMS`. weights: ``k`` weighs an observation by its k; ``none`` alike.
      start: a law to begin at, in place of the usual starts; quicker.

    Raises:
      UserError: too few different (N, k), several N for `saturating`.
    """
    shape = _shape(observed, form)
    N, k, y = (np.array([o[i] for o in observed], float) for i in range(3))
    root = np.sqrt(k / k.mean() if weights == "k" else np.ones_like(k))
    scale = np.exp(np.log(N).mean())  # N to powers stay near 1

    def solved(point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = shape.columns(point, N / scale, k) * root[:, None]
        size = np.linalg.norm(columns, axis=0)
        shares = _nonnegative(columns / size, y * root)
        found = shares / size
        return found, columns @ found - y * root, shares

    # Imported late: the command line must start quickly.
    from scipy.optimize import least_squares

    low, high = (np.array(bound) for bound in zip(*shape.bounds, strict=True))
    if start is None:
        tried = sorted(shape.starts, key=lambda point: np.sum(solved(point)[1] ** 2))
        starts = tried[:3]
    else:
        starts = [shape.searched(start.parameters)]
    inside = 1e-9 * (high - low)
    best = min(
        (
            least_squares(
                lambda point: solved(point)[1],
                np.clip(point, low + inside, high - inside),
                bounds=(low, high),
                x_scale=np.maximum(np.abs(point), 1e-2),
                xtol=1e-12,
                ftol=1e-14,
            )
            for point in starts
        ),
        key=lambda found: found.cost,
    )
    linear, residuals, shares = solved(best.x)
    nothing = np.abs(shares) <= _NOTHING * np.linalg.norm(y * root)
    at_bound, free = _untold(shape, best.x, nothing)
    spread = float(np.sum((y - y.mean()) ** 2))
    missed = float(np.sum((residuals / root) ** 2))
    squares = float(np.sum(residuals**2))
    degrees = len(y) - len(linear) - len(best.x)
    return Law(
        form,
        {n: float(v) for n, v in shape.parameters(best.x, linear, scale).items()},
        1 - missed / spread if spread > 0 else math.nan,
        math.sqrt(squares / float(np.sum(root**2))),
        # Of an observation of weight 1: the weights above have a mean of 1.
        math.sqrt(squares / degrees * (k.mean() if weights == "k" else 1.0))
        if degrees > 0
        else math.nan,
        weights,
        at_bound,
        free,
    )


def _untold(
    shape: "_Shape", point: np.ndarray, nothing: np.ndarray
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a law's `at_bound` and `free`.

    Args:
      shape: of the law.
      point: what the search has found.
      nothing: bool [numbers solved for], whether the term of each is 0.
    """
    zero = [name for name, of in zip(shape.terms, nothing, strict=True) if of]
    free = tuple(name for of in zero for name in shape.terms[of])
    low, high = (np.array(bound) for bound in zip(*shape.bounds, strict=True))
    room = _EDGE * (high - low)
    edge = (point < low + room) | (point > high - room)
    ended = [name for name, at in zip(shape.names, edge, strict=True) if at]
    ended += [name for name in zero if name != "a"]  # which may have any sign
    return tuple(dict.fromkeys([*ended, *free])), free


class _Shape(NamedTuple):
    """What is searched, and what is solved for, of a form.

    Attributes:
      names: of the numbers that are searched. bounds, starts: of these.
      terms: {number solved for: those searched that its term alone has}.
      columns: ``(point, N, k) -> [observations, numbers solved for]``.
      parameters: ``(point, solution, scale of N) -> {name: number}``.
      searched: ``(parameters) -> point``.
    """

    names: tuple[str, ...]
    bounds: list[tuple[float, float]]
    starts: list[np.ndarray]
    terms: dict[str, tuple[str, ...]]
    columns: Callable[..., np.ndarray]
    parameters: Callable[..., dict[str, float]]
    searched: Callable[[dict[str, float]], np.ndarray]


def _shape(observed: Sequence[Observation], form: str) -> _Shape:
    sizes = {o.N for o in observed}
    counts = {o.k for o in observed}
    places = {(o.N, o.k) for o in observed}
    if form == SATURATING and len(sizes) > 1:
        raise UserError(f"the saturating law is of one N, and there are {len(sizes)}.")
    numbers = 2 if form == SATURATING else 3 if len(sizes) == 1 else 6
    if len(places) < numbers or (form == MERGING and len(counts) < 2):
        raise UserError(
            f"{len(places)} different (N, k) do not tell the {numbers} numbers of the "
            f"{form} law: give rows of more sizes or of more K."
        )
    if form == MERGING and len(sizes) == 2:
        raise UserError(
            "two sizes do not tell L*, B and β apart: give rows of one, or of three."
        )
    least, most = min(counts), max(counts)
    if form == SATURATING:
        return _saturating(least, most)
    return _merging(least, most) if len(sizes) > 1 else _of_one_size(least, most)


def _saturating(least: float, most: float) -> _Shape:
    # τ in logarithms: it may be a tenth of the smallest K or ten times the largest.
    ends = math.log(least / 10), math.log(most * 10)
    return _Shape(
        ("tau",),
        [ends],
        [np.array([at]) for at in np.linspace(*ends, 24)],
        {"a": ("tau",)},
        lambda point, N, k: -np.expm1(-k / math.exp(point[0]))[:, None],
        lambda point, linear, scale: {"a": linear[0], "tau": math.exp(point[0])},
        lambda p: np.array([math.log(p["tau"])]),
    )


def _offsets(least: float, most: float) -> tuple[tuple[float, float], np.ndarray]:
    """Return the bounds of log(k₀ + b), k₀ the smallest k, and starts."""
    ends = math.log(least / 20), math.log(100 * most)
    return ends, np.linspace(*ends, 9)


def _of_one_size(least: float, most: float) -> _Shape:
    ends, starts = _offsets(least, most)

    def columns(point, N, k):
        return np.stack([np.ones_like(k), 1 / (k - least + np.exp(point[0]))], axis=1)

    def parameters(point, linear, scale):
        b = math.exp(point[0]) - least
        return {"floor": linear[0], "tail": linear[1], "b": b}

    return _Shape(
        ("b",),
        [ends],
        [np.array([at]) for at in starts],
        {"floor": (), "tail": ("b",)},
        columns,
        parameters,
        lambda p: np.array([math.log(p["b"] + least)]),
    )


def _merging(least: float, most: float) -> _Shape:
    ends, starts = _offsets(least, most)

    def columns(point, N, k):
        beta, gamma, offset = point
        tail = N**-gamma / (k - least + np.exp(offset))
        return np.stack([np.ones_like(k), N**-beta, tail], axis=1)

    def parameters(point, linear, scale):
        beta, gamma, offset = map(float, point)
        return {
            "L": linear[0],
            "B": linear[1] * scale**beta,
            "beta": beta,
            "A": linear[2] * scale**gamma,
            "gamma": gamma,
            "b": math.exp(offset) - least,
        }

    return _Shape(
        ("beta", "gamma", "b"),
        [_EXPONENT_BOUNDS, _EXPONENT_BOUNDS, ends],
        [np.array(p) for p in itertools.product(_EXPONENTS, _EXPONENTS, starts[1::2])],
        {"L": (), "B": ("beta",), "A": ("gamma", "b")},
        columns,
        parameters,
        lambda p: np.array([p["beta"], p["gamma"], math.log(p["b"] + least)]),
    )


def _nonnegative(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    if columns.shape[1] == 1:  # of a gain, a may have any sign
        return columns.T @ y / np.sum(columns**2)
    return nnls(columns, y)[0]
