"""Model Stock: as far from the base as the experts agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.methods.combiners import add
from merging.methods.method import Method, compose
from merging.methods.reductions import Layout, Sums, gram_matrices, gram_terms
from merging.methods.registry import register
from merging.runtime import numerics
from merging.runtime.errors import nearest


@register(
    "Jang et al. 2024, arXiv 2403.19522",
    "θ = θ₀ + λ t (θ̄ − θ₀), t = K cos / (1 + (K − 1) cos) for each leaf",
    evidence="no reliable gain on LLMs (arXiv 2511.21437); at 24x not told apart from "
    "task arithmetic (K = 8: 0.23 against 0.26), its λ at the grid's end",
)
def model_stock(scale: float = 1.0, scope: str = "tensor") -> Method:
    """Model Stock: the mean of the experts, drawn towards the base where they disagree.

    cos is the mean of the pairwise cosines of the experts' task vectors on a leaf (or
    on each ``row`` of one, by `scope`); the cosines of a vector that is zero there
    count as 0. A leaf whose t has no value (the denominator is 0) keeps the base, as in
    mergekit 0.1.5. One expert has t = 1.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(2)}
    >>> qa, nli = {"w": jnp.array([1.0, 1])}, {"w": jnp.array([1.0, 0])}
    >>> method = merging.methods.model_stock()
    >>> merged = merging.merge(base, [qa, nli], method)
    >>> [round(x, 2) for x in merged["w"].tolist()]
    [0.83, 0.41]
    """
    if scope not in ("tensor", "row"):
        raise nearest("scope", scope, ("tensor", "row"))
    return compose("model_stock", combiner=Stock(scope), scale=scale)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Stock:
    """The mean of the task vectors times t; see `model_stock`.

    Attributes:
      scope: ``tensor`` or ``row``.
      least: two vectors' cosine is their dot product over no less than this, and a
        denominator of t that is no larger has no value; 0 but for mergekit's, 1e-6.
    """

    scope: str
    least: float = 0.0
    granularity = "row"
    selections = ()
    takes = None

    def check(self, weights):
        """Take none: there is no parameter for them."""

    def reduction(self):
        """Ask for the dot products, but of rows, which every block holds whole."""
        return None if self.scope == "row" else Sums(gram_terms, "the Gram matrix")

    def state(self, layout: Layout, found, weights):
        """Return t for each leaf: float64 [leaves]."""
        if found is None:
            return ()
        gram = gram_matrices(found)
        count = gram.shape[1]
        pairs = np.triu_indices(count, 1)
        norms = np.sqrt(np.einsum("lii->il", gram))
        dots = [gram[:, i, j] for i, j in zip(*pairs, strict=True)]
        lengths = [norms[i] * norms[j] for i, j in zip(*pairs, strict=True)]
        if count < 2:
            return np.ones(len(gram))
        return self._ratio(np, dots, lengths, count)

    def combine(self, values, weights, state):
        """Scale the mean."""
        mean = numerics.divided(add(values), len(values))
        ratio = state if self.scope == "tensor" else self._of_rows(values)
        ratio = jnp.broadcast_to(ratio, jnp.atleast_1d(mean).shape).astype(mean.dtype)
        return numerics.product(mean, ratio.reshape(mean.shape))

    def _of_rows(self, values: Sequence[Array]) -> Array:
        """Return t of each row: [..., 1]."""
        rows, count = [jnp.atleast_1d(value) for value in values], len(values)
        if count < 2:
            return jnp.ones((), rows[0].dtype)

        def dot(one: Array, other: Array) -> Array:
            return numerics.row_sums(numerics.product(one, other))

        norms = [jnp.sqrt(dot(row, row)) for row in rows]
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        dots = [dot(rows[i], rows[j]) for i, j in pairs]
        lengths = [numerics.product(norms[i], norms[j]) for i, j in pairs]
        return self._ratio(jnp, dots, lengths, count)

    def _ratio(self, xp, dots, lengths, count: int):
        """Return K cos / (1 + (K − 1) cos), cos the mean of dots over lengths."""
        cosines = []
        for dot, length in zip(dots, lengths, strict=True):
            length = xp.maximum(length, self.least)
            some = length > 0
            cosine = xp.where(some, dot / xp.where(some, length, 1), 0)
            cosines.append(xp.clip(cosine, -1, 1))
        cosine = add(cosines) / xp.full_like(cosines[0], len(cosines))
        # Sums, as a product and a sum may be contracted into one.
        above = add([cosine] * count)
        below = add([xp.ones_like(cosine), *[cosine] * (count - 1)])
        some = abs(below) > self.least
        return xp.where(some, above / xp.where(some, below, 1), 0)
