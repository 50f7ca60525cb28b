"""Methods of one model, or of one beside its base: there is nothing to vote on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods import combiners
from merging.methods.method import Method, compose
from merging.methods.reductions import Layout, Threshold
from merging.methods.registry import register
from merging.methods.transforms import number
from merging.runtime import numerics
from merging.runtime.errors import UserError

# Of a difference: a row's sum of its exponentials is far from overflow, up to here.
_LARGE = 50.0


@register("mergekit 0.1.5, passthrough", "θ = factor · θ₁: a model as it is")
def passthrough(factor: float = 1.0) -> Method:
    """Copy one model, times a factor; for rules, slices and conversions.

    >>> import jax.numpy as jnp, merging
    >>> expert = {"w": jnp.array([4.0, 1, 0, -2])}
    >>> method = merging.methods.passthrough(factor=0.5)
    >>> print(merging.merge(None, [expert], method)["w"])
    [ 2.   0.5  0.  -1. ]
    """
    return compose(
        "passthrough",
        combiner=combiners.sum(takes=(1, "average")),
        scale=None,
        weights=(number("factor", factor),),
    )


@register(
    "alchemonaut 2024, QuartetAnemoi; mergekit 0.1.5, nearswap",
    "θ = θ₀ + λ min(t / |Δ|, 1) Δ: what is near comes all the way, the rest by t",
)
def nearswap(t: float = 1e-4, scale: float = 1.0) -> Method:
    """Move the base towards one expert, no element by more than t.

    Args:
      t: the most that an element moves, > 0.
      scale: λ.

    >>> import jax.numpy as jnp, merging
    >>> base, expert = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1, 0, -2])}
    >>> method = merging.methods.nearswap(t=1.5)
    >>> print(merging.merge(base, [expert], method)["w"])
    [ 1.5  1.   0.  -1.5]
    """
    if number("t", t) <= 0:
        raise UserError(f"t must be positive, not {t!r}.")
    return compose(
        "nearswap",
        Near(float(t)),
        combiner=combiners.sum(takes=(1, "task_arithmetic")),
        scale=scale,
    )


@partial(jax.tree_util.register_dataclass, data_fields=["t"], meta_fields=[])
@dataclass(frozen=True)
class Near:
    """Shorten each element of Δ to t at most; see `nearswap`."""

    t: float
    granularity = "element"

    def reduction(self):
        """Need nothing."""

    def state(self, layout, expert, seed, found):
        """Keep nothing."""
        return ()

    def apply(self, delta, state, index):
        """Shorten: the share min(t / |Δ|, 1) of Δ is Δ within [−t, t]."""
        t = jnp.asarray(self.t, delta.dtype)
        return jnp.clip(delta, -t, t)


@register(
    "Arcee AI 2025; mergekit 0.1.5, arcee_fusion",
    "θ = θ₀ + λ m ⊙ Δ, m where |Δ| KL(row of θ₁ ‖ row of θ₀) ≥ median + 1.5 IQR",
)
def arcee_fusion(scale: float = 1.0) -> Method:
    """Keep the outliers of one expert's task vector, by importance.

    An element's importance is |Δ| times the Kullback-Leibler divergence of its row's
    softmax from that of the base's row; m keeps the upper outliers of each leaf. The
    quantiles are exact: the ⌊q (n − 1)⌋-th smallest. (mergekit takes those of a random
    million elements, and adds 1e-8 to probabilities.)

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(8)}
    >>> expert = {"w": jnp.array([4.0, 0.1, 0, 0.1, 0, -0.1, 0, 0.1])}
    >>> method = merging.methods.arcee_fusion()
    >>> print(merging.merge(base, [expert], method)["w"])
    [4. 0. 0. 0. 0. 0. 0. 0.]
    """
    combiner = combiners.sum(takes=(1, "ties"), selections=(Importance(),))
    return compose("arcee_fusion", combiner=combiner, scale=scale)


def _quantile(quarters: int) -> Threshold:
    return Threshold(_QuantileRank(quarters), "tensor", "keep_all", value=True)


@dataclass(frozen=True)
class _QuantileRank:
    quarters: int

    def __call__(self, elements: int) -> int:
        """Return the rank from the largest; 0 of no elements."""
        return elements - self.quarters * (elements - 1) // 4 if elements else 0


@jax.tree_util.register_static
@dataclass(frozen=True)
class Importance:
    """Keep the elements whose importance is an upper outlier; see `arcee_fusion`."""

    granularity = "row"
    thresholds = tuple(_quantile(quarters) for quarters in (1, 2, 3))

    def score(self, values, weights, base):
        """Return |Δ| times the row's divergence, ≥ 0."""
        (delta,) = values
        rows = jnp.atleast_1d(delta)
        start = jnp.broadcast_to(base.astype(rows.dtype), delta.shape)
        divergence = _divergence(start.reshape(rows.shape), rows)
        found = numerics.product(
            jnp.abs(rows), jnp.broadcast_to(divergence, rows.shape)
        )
        return found.reshape(delta.shape)

    def state(self, layout: Layout, found: Sequence[tuple[np.ndarray, np.ndarray]]):
        """Return the key of the least importance that is kept: an array [leaves]."""
        dtype = np.float64 if layout.wide else np.float32
        keys = [cut[0].astype(layout.key_dtype).view(dtype) for cut in found]
        with np.errstate(over="ignore", invalid="ignore"):  # of a leaf without elements
            low, middle, high = (key.astype(np.float64) for key in keys)
            return (middle + 1.5 * (high - low)).astype(dtype)

    def apply(self, values, weights, base, index, state):
        """Zero what is less important."""
        important = self.score(values, weights, base) >= state
        return [jnp.where(important, value, 0) for value in values]


def _divergence(base: Array, delta: Array) -> Array:
    """Return KL(softmax(θ₀ + Δ) ‖ softmax(θ₀)) of each row: [..., 1].

    As E_p[Δ] − log E_q[exp Δ], with q and p the softmax of θ₀ and of θ₀ + Δ: for what
    is near, logarithms of two softmaxes would leave nothing but rounding. Where exp Δ
    may overflow, log E_q[exp Δ] is the difference of the rows' log-sum-exps.
    """

    def softmax(x: Array) -> tuple[Array, Array]:
        """Return it, and the logarithm of what it is divided by."""
        largest = jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf)
        raised = jnp.exp(x - largest)
        total = numerics.row_sums(raised)
        return raised / total, largest + jnp.log(total)

    def mean(shares: Array, x: Array) -> Array:
        return numerics.row_sums(numerics.product(shares, x))

    (before, start), (after, end) = softmax(base), softmax(base + delta)
    small = jnp.minimum(delta, _LARGE)
    far = jnp.max(delta, axis=-1, keepdims=True, initial=-jnp.inf) > _LARGE
    gain = jnp.where(far, end - start, jnp.log1p(mean(before, jnp.expm1(small))))
    return jnp.maximum(mean(after, delta) - gain, 0)
