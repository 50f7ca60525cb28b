"""Methods on the sphere: weights as directions, which are averaged along great circles.

Each merges the models themselves (`scale=None`, no base), or with a number for `scale`
their task vectors. Whatever a method does on the sphere, what comes out is a sum of the
experts with a factor each; and the factors follow from a leaf's K × K dot products, so
one pass finds everything, however many steps the method takes then.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods import combiners
from merging.methods.combiners import Weights, add
from merging.methods.method import Method, compose
from merging.methods.reductions import Layout, Sums, gram_matrices, gram_terms
from merging.methods.registry import register
from merging.methods.transforms import number
from merging.runtime import numerics
from merging.runtime.errors import UserError, nearest

# Below this sine two directions are one, or opposite: there is no arc between them.
_COLINEAR = 1e-8
# Of the norms that are added: a shorter sum has cancelled, and has no direction. Dot
# products are of float32, so that its square is off by some 1e-6 of theirs.
_CANCELLED = 1e-2
# Two models only; these are methods for more.
_PAIR = (2, "multislerp or karcher")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Spherical:
    """A sum of the experts, with factors that follow from a vector's dot products.

    Attributes:
      factors: of a Gram matrix [K, K] and the weights [K], both float64: [K].
      takes: as a combiner's.
      normalize: whether the weights are divided by their sum, which may not be 0.
      along: what a vector is: a leaf (``tensor``), or, of two models that `nuslerp`
        merges, a ``row`` or a ``column`` of a matrix.
    """

    factors: Callable[[np.ndarray, np.ndarray], np.ndarray]
    takes: tuple[int, str] | None = None
    normalize: bool = False
    along: str = "tensor"
    selections = ()

    @property
    def granularity(self) -> str:
        """Columns need a matrix whole, all else its rows."""
        return "matrix" if self.along == "column" else "row"

    def check(self, weights):
        """Refuse weights that sum to 0, if they are divided by that."""
        if self.normalize:
            combiners.refuse_sum_of_zero(weights)

    def reduction(self):
        """Ask for the dot products, but of rows, which every block holds whole."""
        return None if self.along == "row" else Sums(gram_terms, "the Gram matrix")

    def state(self, layout: Layout, found, weights):
        """Return each expert's factor: K arrays [leaves]."""
        if found is None:
            return ()
        gram = gram_matrices(found)
        given = np.ones(gram.shape[1]) if weights is None else np.array(weights)
        if self.normalize:
            given = given / math.fsum(given)
        rows = [self.factors(of, given) for of in gram]
        return tuple(np.array(rows).reshape(-1, gram.shape[1]).T)

    def combine(self, values, weights, state):
        """Add, each with its factor."""
        if self.along == "row":
            return _by_row(values, weights)
        if self.along == "column" and values[0].ndim == 3:
            turned = [jnp.swapaxes(value, -1, -2) for value in values]
            return jnp.swapaxes(_by_row(turned, weights), -1, -2)
        return _combination(values, state)


def _combination(values: Sequence[Array], factors: Sequence[Array]) -> Array:
    return add(
        [
            numerics.product(x, jnp.broadcast_to(f, x.shape).astype(x.dtype))
            for x, f in zip(values, factors, strict=True)
        ]
    )


@dataclass(frozen=True)
class _Arc:
    """From the first expert, at 0, along an arc to the second, at 1."""

    threshold: float
    by_weight: bool

    def __call__(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        total = weights.sum()
        t = weights[1] if not self.by_weight else 0.5
        if self.by_weight and abs(total) >= 1e-6:
            t = weights[1] / total
        lengths = np.sqrt(gram[0, 0] * gram[1, 1])
        cosine = np.clip(gram[0, 1] / lengths, -1, 1) if lengths > 0 else 1.0
        angle = math.acos(cosine)
        # Of two that are nearly opposite, float32's dot products do not tell the arc.
        least = _CANCELLED if self.by_weight and cosine < 0 else _COLINEAR
        if abs(cosine) > self.threshold or math.sin(angle) < least:
            return np.array([1 - t, t])
        return np.sin(np.array([1 - t, t]) * angle) / math.sin(angle)


@register(
    "Shoemake 1985, doi 10.1145/325165.325242; mergekit 0.1.5, slerp",
    "θ = sin((1−t)ω)/sin ω θ₁ + sin(tω)/sin ω θ₂, ω the angle of θ₁, θ₂ in each leaf",
    evidence="at 24x not told apart from task arithmetic (K = 2: 0.46 against 0.50)",
)
def slerp(
    t: float = 0.5, threshold: float = 0.9995, scale: float | None = None
) -> Method:
    """Spherical interpolation of two models, from the first (t = 0) to the second.

    Args:
      t: how far.
      threshold: a leaf whose |cos ω| is larger is interpolated in a straight line, as
        one is that is zero in a model.
      scale: λ, to interpolate the task vectors; None interpolates the models.

    >>> import jax.numpy as jnp, merging
    >>> east, north = {"w": jnp.array([1.0, 0])}, {"w": jnp.array([0.0, 1])}
    >>> method = merging.methods.slerp(t=0.5)
    >>> merged = merging.merge(None, [east, north], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.71, 0.71]
    """
    t = number("t", t)
    arc = _Arc(number("threshold", threshold), False)
    combiner = Spherical(arc, takes=_PAIR)
    return compose("slerp", combiner=combiner, scale=scale, weights=(1 - t, t))


@register(
    "mergekit 0.1.5, nuslerp",
    "slerp at t = w₂ / (w₁ + w₂), of leaves, of their rows or of their columns",
    evidence="at 24x not told apart from task arithmetic (K = 2: 0.46 against 0.50)",
)
def nuslerp(
    weights: Weights = None, along: str = "tensor", scale: float | None = None
) -> Method:
    """Spherical interpolation of two models by their weights.

    Weights whose sum is next to 0 are taken for equal ones. Straight lines are taken
    only where there is no arc: between directions that are equal, or to a hundredth
    opposite.

    Args:
      weights: of the two.
      along: what is a vector: a whole leaf (``tensor``), each ``row`` of it (its last
        axis), or each ``column`` of its matrices [outputs, inputs]; what is no matrix
        is one vector.
      scale: λ, to interpolate the task vectors; None interpolates the models.

    Raises:
      UserError: an unknown word.

    >>> import jax.numpy as jnp, merging
    >>> east, north = {"w": jnp.array([1.0, 0])}, {"w": jnp.array([0.0, 1])}
    >>> method = merging.methods.nuslerp(weights=[1, 3])
    >>> merged = merging.merge(None, [east, north], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.38, 0.92]
    """
    if along not in ("tensor", "row", "column"):
        raise nearest("vector", along, ("tensor", "row", "column"))
    combiner = Spherical(_Arc(1.0, True), takes=_PAIR, along=along)
    return compose("nuslerp", combiner=combiner, scale=scale, weights=weights)


def _by_row(values: Sequence[Array], weights: Weights) -> Array:
    """Return `nuslerp` of each row (last axis), as `_Arc` does it of a leaf."""
    one, other = (jnp.atleast_1d(value) for value in values)
    t = _share_of_second(weights, one.dtype)
    dots = [
        numerics.row_sums(numerics.product(a, b))
        for a, b in ((one, one), (one, other), (other, other))
    ]
    lengths = numerics.product(jnp.sqrt(dots[0]), jnp.sqrt(dots[2]))
    cosine = jnp.clip(dots[1] / jnp.where(lengths > 0, lengths, 1), -1, 1)
    angle = jnp.arccos(cosine)
    sine = jnp.sin(angle)
    opposite = (cosine < 0) & (sine < _CANCELLED)
    straight = (lengths == 0) | (sine < _COLINEAR) | opposite
    sine = jnp.where(straight, 1, sine)
    factors = [
        jnp.where(straight, share, jnp.sin(numerics.scaled(angle, share)) / sine)
        for share in (1 - t, t)
    ]
    return _combination((one, other), factors).reshape(values[0].shape)


def _share_of_second(weights: Weights, dtype: jnp.dtype) -> Array:
    if weights is None:
        return jnp.asarray(0.5, dtype)
    first, second = (jnp.asarray(w, dtype) for w in weights)
    total = first + second
    some = jnp.abs(total) >= 1e-6
    return jnp.where(some, second / jnp.where(some, total, 1), 0.5)


@register(
    "mergekit 0.1.5, multislerp (C. Goddard)",
    "Σ wᵢ‖θᵢ‖ times the direction of Σ wᵢ θᵢ/‖θᵢ‖, in each leaf",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.27 against 0.26)",
)
def multislerp(
    weights: Weights = None,
    normalize: bool = True,
    eps: float = 1e-8,
    scale: float | None = None,
) -> Method:
    """Barycentre of the directions, in one step, with the mean of the lengths.

    It is defined in the tangent space at the mean direction, as the exponential map of
    the mean tangent. But that mean is zero, by the choice of the point, so what remains
    is the mean direction. Where the directions cancel to a hundredth there is none, and
    the models are added in straight lines, Σ wᵢθᵢ.

    Args:
      weights: one per expert.
      normalize: whether they are divided by their sum.
      eps: added to the norms; a shorter mean direction is none.
      scale: λ, to merge the task vectors; None merges the models.

    >>> import jax.numpy as jnp, merging
    >>> east, north = {"w": jnp.array([1.0, 0])}, {"w": jnp.array([0.0, 1])}
    >>> method = merging.methods.multislerp()
    >>> merged = merging.merge(None, [east, north], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.71, 0.71]
    """
    factors = _MeanDirection(number("eps", eps))
    return compose(
        "multislerp",
        combiner=Spherical(factors, normalize=bool(normalize)),
        scale=scale,
        weights=weights,
    )


@dataclass(frozen=True)
class _MeanDirection:
    eps: float

    def __call__(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        lengths = np.sqrt(np.diag(gram))
        mean = weights / (lengths + self.eps)
        length = math.sqrt(max(mean @ gram @ mean, 0))
        least = max(self.eps, _CANCELLED * (np.abs(mean) @ lengths))
        if len(weights) == 1 or length <= least:
            return weights
        return mean / length * (weights @ lengths)


@register(
    "Karcher 1977, doi 10.1002/cpa.3160300502; mergekit 0.1.5, karcher",
    "Σ wᵢ‖θᵢ‖ times the point of least Σ wᵢ angle²(θᵢ, ·), by iteration, in each leaf",
    evidence="at 24x not told apart from task arithmetic (K = 8: 0.27 against 0.26)",
)
def karcher(
    weights: Weights = None,
    max_iter: int = 10,
    tol: float = 1e-5,
    scale: float | None = None,
) -> Method:
    """The Riemannian centre of mass of the directions, with the mean of the lengths.

    Where the directions cancel to a hundredth it starts from the first of them, and
    what is opposite to a point to that extent does not pull it. Where the weights of
    the models that have a direction cancel there is no centre, and the models are added
    in straight lines, Σ wᵢθᵢ.

    Args:
      weights: one per expert, divided by their sum.
      max_iter: steps at most.
      tol: the step that is no step any more; a leaf of a smaller norm has no direction.
      scale: λ, to merge the task vectors; None merges the models.

    >>> import jax.numpy as jnp, merging
    >>> east, north = {"w": jnp.array([1.0, 0])}, {"w": jnp.array([0.0, 1])}
    >>> method = merging.methods.karcher()
    >>> merged = merging.merge(None, [east, north], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.71, 0.71]
    """
    if isinstance(max_iter, bool) or not isinstance(max_iter, int) or max_iter < 0:
        raise UserError(f"max_iter must be a whole number ≥ 0, not {max_iter!r}.")
    factors = _CentreOfMass(max_iter, number("tol", tol))
    return compose(
        "karcher",
        combiner=Spherical(factors, normalize=True),
        scale=scale,
        weights=weights,
    )


@dataclass(frozen=True)
class _CentreOfMass:
    steps: int
    tol: float

    def __call__(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if len(weights) == 1:
            return weights
        lengths = np.sqrt(np.diag(gram))
        there = lengths > self.tol
        if not there.any():
            return np.zeros(len(weights))
        # Everything is a combination of the unit vectors, and `dots` are theirs.
        units = np.where(there, 1 / np.where(there, lengths, 1), 0)
        dots = gram * units[:, None] * units
        shares = np.where(there, weights, 0)
        total = math.fsum(shares)
        if abs(total) <= self.tol * np.abs(shares).sum():
            return weights
        shares = shares / total
        point = self._centre(dots, shares, there)
        return weights @ lengths * point * units

    def _centre(
        self, dots: np.ndarray, shares: np.ndarray, there: np.ndarray
    ) -> np.ndarray:
        def length(x: np.ndarray) -> float:
            return math.sqrt(max(x @ dots @ x, 0))

        point = shares
        if length(point) <= max(self.tol, _CANCELLED * np.abs(point).sum()):
            point = np.eye(len(shares))[np.argmax(there)]
        point = point / length(point)
        for _ in range(self.steps):
            cosines = np.clip(dots @ point, -1, 1)
            angles = np.arccos(cosines)
            sines = np.sin(angles)
            # Half of the sum of two unit vectors has the length cos(angle / 2).
            opposite = np.cos(angles / 2) <= _CANCELLED
            moves = there & (angles >= self.tol) & (sines > 0) & ~opposite
            pull = shares * np.where(moves, angles / np.where(moves, sines, 1), 0)
            step = pull - (pull @ cosines) * point
            size = length(step)
            if size < self.tol:
                break
            point = math.cos(size) * point + math.sin(size) / size * step
            point = point / max(length(point), self.tol)
        return point
