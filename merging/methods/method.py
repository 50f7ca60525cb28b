"""`Method`: a merge as one value, and the pure functions that apply it to a block.

A method is data. Its numbers (scale, density, weights) are pytree leaves, so jit
traces them and a new λ compiles nothing; its words are static. It is immutable and
equal by value. The same value serves a merge in memory and a streamed one: both find
what its reductions ask for, then call `merge_block` on blocks.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merging.methods import combiners
from merging.methods.combiners import Combiner, Selection
from merging.methods.reductions import Reduction, Threshold
from merging.methods.statistics import Matrices, Statistics
from merging.methods.transforms import Transform, number
from merging.runtime import numerics
from merging.runtime.errors import UserError
from merging.runtime.numerics import Index

# How finely a leaf may be cut into blocks, the finest first: anywhere; between rows (of
# its last axis); between 2-D matrices (a stacked leaf is a batch of them); nowhere.
GRANULARITIES = ("element", "row", "matrix", "tensor")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["transforms", "combiner", "scale", "weights"],
    meta_fields=["name"],
)
@dataclass(frozen=True)
class Method:
    """A merge method: θ = θ₀ + λ · combine(transforms(Δ₁), …, transforms(Δ_K)).

    Attributes:
      name: the preset's.
      transforms: applied to each task vector, in order.
      combiner: makes one of the K.
      scale: λ; None merges the models themselves and needs no base.
      weights: wᵢ, in the experts' order; None is all 1.
    """

    name: str
    transforms: tuple[Transform, ...]
    combiner: Combiner
    scale: float | None
    weights: tuple[float, ...] | None

    @property
    def needs_base(self) -> bool:
        """Whether it merges task vectors."""
        return self.scale is not None

    @property
    def takes(self) -> int | None:
        """How many experts it merges; None is any number."""
        return self.combiner.takes and self.combiner.takes[0]

    @property
    def granularity(self) -> str:
        """The coarsest of its parts' granularities."""
        combiner = self.combiner
        parts = (*self.transforms, *combiner.selections, combiner)
        return max((part.granularity for part in parts), key=GRANULARITIES.index)

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """What its parts ask for, in order."""
        asked = [part.reduction() for part in self.transforms]
        for selection in self.combiner.selections:
            asked += selection.thresholds
        asked.append(self.combiner.reduction())
        listed = [one if isinstance(one, tuple) else (one,) for one in asked]
        return tuple(one for of in listed for one in of if one is not None)

    @property
    def statistics(self) -> Statistics | None:
        """What it must be told of each expert beside the weights, if anything."""
        return getattr(self.combiner, "statistics", None)

    @property
    def ranks_model(self) -> bool:
        """Whether magnitudes are ranked over all the leaves that it merges."""
        return any(
            isinstance(r, Threshold) and r.scope == "global" for r in self.reductions
        )

    def of(self, expert: int) -> tuple[Transform, ...]:
        """Return the transforms of one expert, whose numbers may be its own."""
        return tuple(
            dataclasses.replace(
                t, **{name: values[expert] for name, values in _per_expert(t).items()}
            )
            for t in self.transforms
        )

    def reordered(self, order: Sequence[int]) -> "Method":
        """Return it for experts in another order: the i-th was the order[i]-th.

        Raises:
          UserError: it does not merge that many; weights, or other numbers per expert,
            are not as many.
        """
        count, other = self.combiner.takes or (len(order), "")
        if len(order) != count:
            many = "one expert" if count == 1 else f"{count} experts"
            raise UserError(
                f"{self.name} merges {many}, not {len(order)}; {other} does."
            )
        given = [] if self.weights is None else [("weights", self.weights)]
        for transform in self.transforms:
            given += [(f"values of {n}", v) for n, v in _per_expert(transform).items()]
        wrong = [
            f"{len(values)} {name} for {len(order)} experts"
            for name, values in given
            if len(values) != len(order)
        ]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: give one for each, in their order.")

        def permuted(values: Sequence[Any]) -> tuple:
            return tuple(values[i] for i in order)

        transforms = tuple(
            dataclasses.replace(
                t, **{name: permuted(values) for name, values in _per_expert(t).items()}
            )
            for t in self.transforms
        )
        weights = None if self.weights is None else permuted(self.weights)
        return dataclasses.replace(self, transforms=transforms, weights=weights)


def compose(
    name: str,
    *transforms: Transform,
    combiner: Combiner,
    scale: float | None,
    weights: Sequence[float] | None = None,
) -> Method:
    """Chain task-vector transforms and a combiner into a method.

    Raises:
      UserError: a scale or a weight that is no finite number, or no weight at all.

    >>> import jax.numpy as jnp, merging
    >>> base, expert = {"w": jnp.zeros(4)}, {"w": jnp.array([4.0, 1, 0, -2])}
    >>> method = merging.methods.compose(
    ...     "trim, then rescale, then add",
    ...     merging.methods.trim(density=0.25),
    ...     merging.methods.rescale(0.5),
    ...     combiner=merging.methods.combiners.sum(),
    ...     scale=0.5,
    ... )
    >>> print(merging.merge(base, [expert], method)["w"])
    [ 4.  0.  0. -2.]
    """
    if weights is not None:
        several = isinstance(weights, Iterable) and not isinstance(weights, str)
        if not several or not len(weights := tuple(weights)):
            raise UserError(
                f"weights must be numbers, one per expert, not {weights!r}."
            )
        weights = tuple(number("each weight", w) for w in weights)
        combiner.check(weights)
    scale = None if scale is None else number("scale", scale)
    return Method(name, transforms, combiner, scale, weights)


@jax.jit  # of all experts, and wherever it is asked for, traced once
def transform_block(
    transforms: Sequence[Transform],
    base: Array | None,
    expert: Array,
    states: Sequence[Any],
    index: Index,
) -> Array:
    """Return one expert's transformed task vector, in float32 (or float64).

    Args:
      transforms: all of a method's, or the first few.
      base: the block of θ₀, any float dtype; None gives the expert itself.
      expert: the same block of θᵢ.
      states: of each transform, for this expert and leaf.
      index: each element's index in its leaf (`numerics.element_index`).
    """
    inputs = [expert] if base is None else [expert, base]
    dtype = numerics.working_dtype(*(x.dtype for x in inputs))
    value = expert.astype(dtype)
    if base is not None:
        value = value - base.astype(dtype)
    for transform, state in zip(transforms, states, strict=False):
        value = transform.apply(value, state, index)
    return value


def task_vectors(
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    index: Index,
    selected: Sequence[Any] = (),
) -> list[Array]:
    """Return each expert's transformed task vector (or model), in float32 (or 64).

    Args:
      method: whose, or a part of its transforms.
      base: the block of θ₀; not read if the method needs none.
      experts: the same block of each θᵢ, in order.
      states: [expert][transform], for this block's leaf, of as many as are applied.
      index: each element's index in its leaf.
      selected: the states of the combiner's selections, of as many as are applied.
    """
    start = base if method.needs_base else None
    values = [
        transform_block(method.of(i), start, expert, state, index)
        for i, (expert, state) in enumerate(zip(experts, states, strict=True))
    ]
    for selection, state in zip(method.combiner.selections, selected, strict=False):
        values = selection.apply(values, method.weights, start, index, state)
    return values


def merge_block(
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    combined: Any,
    index: Index,
    matrix: Matrices | None = None,
    statistics: Sequence[Array] | None = None,
) -> Array:
    """Merge one block: float32 (or float64) arithmetic, not rounded to the output yet.

    Args:
      method: scale and weights may be traced.
      base: the block of θ₀; may be None if the method needs no base.
      experts: the same block of each θᵢ, in order.
      states: [expert][transform], for this block's leaf.
      combined: the combiner's state, likewise; if it has selections, their states and
        its own.
      index: each element's index in its leaf.
      matrix: how the matrices lie that the block holds whole, for a combiner of that
        granularity; None otherwise, and for what is no matrix.
      statistics: of each expert, for a method that wants some; None where there are
        none for this leaf.
    """
    selected = ()
    if method.combiner.selections:
        selected, combined = combined
    values = task_vectors(method, base, experts, states, index, selected)
    if matrix is not None:
        values = [matrix.taken_from(value) for value in values]
    told = ()
    if method.statistics is not None:
        told = (_told(method.statistics, statistics, matrix, values[0].dtype),)
    merged = method.combiner.combine(values, method.weights, combined, *told)
    if matrix is not None:
        merged = matrix.stored(merged)
    merged = merged.reshape(experts[0].shape)
    if method.needs_base:
        merged = base.astype(merged.dtype) + numerics.scaled(merged, method.scale)
    return merged


def alone(method: Method, transforms: Sequence[Transform]) -> Method:
    """Return what makes one expert's task vector, after some of its transforms.

    What the method does with it is left out, so that all methods share programs.
    """
    scale = 0.0 if method.needs_base else None
    return Method("", tuple(transforms), combiners.sum(), scale, None)


def magnitude_keys(
    method: Method,
    selection: Selection | None,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    selected: Sequence[Any],
    index: Index,
    key_dtype: jnp.dtype,
) -> Array:
    """Return the magnitude keys of one task vector, or of a score of several.

    Args:
      selection: whose score is ranked; None ranks the one expert's task vector.
      key_dtype: uint32, or uint64 where the model holds a float64 leaf.

    The others are those of `task_vectors`.
    """
    values = task_vectors(method, base, experts, states, index, selected)
    if selection is None:
        (ranked,) = values
    else:
        start = base if method.needs_base else None
        ranked = selection.score(values, method.weights, start)
    return numerics.magnitude_keys(ranked, key_dtype)


def count_kept(keys: Array, index: Index, threshold: Array, cutoff: Index) -> Array:
    """Answer a `CountQuery` for one block: [trials] or [trials, leading] int32.

    `threshold` [trials] are keys.
    """
    counts = []
    for i in range(threshold.shape[0]):
        here = Index(*(w if w is None else w[i] for w in cutoff))
        counts.append(numerics.count(numerics.kept(keys, index, threshold[i], here)))
    return jnp.stack(counts)


def _told(
    wanted: Statistics,
    given: Sequence[Array] | None,
    matrix: Matrices | None,
    dtype: jnp.dtype,
) -> list[Array] | None:
    """Return statistics as the combiner wants them."""
    if given is None:
        return None
    given = [array.astype(dtype) for array in given]
    if matrix is None:
        return given
    if wanted.of == "element":
        return [matrix.taken_from(array) for array in given]
    return [array.reshape(-1, matrix.inputs, matrix.inputs) for array in given]


def _per_expert(transform: Transform) -> dict[str, tuple]:
    """Return the numbers of a transform of which there is one for each expert."""
    named = {f.name: getattr(transform, f.name) for f in dataclasses.fields(transform)}
    return {name: value for name, value in named.items() if isinstance(value, tuple)}
