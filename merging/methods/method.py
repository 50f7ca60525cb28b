"""`Method`: a merge as one value, and the pure functions that apply it to a block.

A method is data. Its numbers (scale, density, weights) are pytree leaves, so jit
traces them and a new λ compiles nothing; its words are static. It is immutable and
equal by value. The same value serves a merge in memory and a streaming one: both find
the states (`statistics`), then call `merge_block` on blocks of any size.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merging.methods.combiners import Combiner
from merging.methods.transforms import Transform, number
from merging.runtime import numerics
from merging.runtime.errors import UserError
from merging.runtime.numerics import Index

_CUTS = ("element", "row", "matrix", "tensor")


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

    def of(self, expert: int) -> tuple[Transform, ...]:
        """Return the transforms of one expert, whose numbers may be its own."""
        return tuple(
            dataclasses.replace(t, **{name: getattr(t, name)[expert]})
            if (name := _per_expert(t))
            else t
            for t in self.transforms
        )

    def reordered(self, order: Sequence[int]) -> "Method":
        """Return it for experts in another order: the i-th was the order[i]-th.

        Raises:
          UserError: weights, or other numbers per expert, are not as many.
        """
        wrong = [
            f"{len(values)} {name} for {len(order)} experts"
            for name, values in self._numbers_per_expert()
            if len(values) != len(order)
        ]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: give one for each, in their order.")
        transforms = tuple(
            dataclasses.replace(t, **{name: _permuted(getattr(t, name), order)})
            if (name := _per_expert(t))
            else t
            for t in self.transforms
        )
        weights = None if self.weights is None else _permuted(self.weights, order)
        return dataclasses.replace(self, transforms=transforms, weights=weights)

    def _numbers_per_expert(self) -> list[tuple[str, tuple]]:
        found = [] if self.weights is None else [("weights", self.weights)]
        for transform in self.transforms:
            if name := _per_expert(transform):
                found.append((f"values of {name}", getattr(transform, name)))
        return found

    @property
    def cut(self) -> str:
        """The finest blocks a leaf may be cut into: `element` < `row` < … `tensor`."""
        return max((t.cut for t in self.transforms), key=_CUTS.index, default="element")


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
    """
    if weights is not None:
        if isinstance(weights, str) or not len(weights := tuple(weights)):
            raise UserError(
                f"weights must be numbers, one per expert, not {weights!r}."
            )
        weights = tuple(number("each weight", w) for w in weights)
        combiner.check(weights)
    scale = None if scale is None else number("scale", scale)
    return Method(name, transforms, combiner, scale, weights)


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


def merge_block(
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    verdict: Any,
    index: Index,
    dtype: jnp.dtype,
) -> Array:
    """Merge one block: float32 (or float64) arithmetic, one rounding, to `dtype`.

    Args:
      method: scale and weights may be traced.
      base: the block of θ₀; may be None if the method needs no base.
      experts: the same block of each θᵢ, in order.
      states: [expert][transform], for this block's leaf.
      verdict: what the combiner's `inquire` found.
      index: each element's index in its leaf.
      dtype: of the result.
    """
    start = base if method.needs_base else None
    values = task_vectors(method, start, experts, states, index)
    merged = method.combiner.combine(values, method.weights, verdict)
    if start is not None:
        merged = start.astype(merged.dtype) + numerics.scaled(merged, method.scale)
    return merged.astype(dtype)


def count_kept(
    transforms: Sequence[Transform],
    base: Array,
    expert: Array,
    states: Sequence[Any],
    index: Index,
    threshold: Array,
    cutoff: Index,
) -> Array:
    """Answer `statistics.Kept` for one block: [trials] or [trials, leading] int32.

    `transforms` are those *before* the trim that asks; `threshold` [trials] are keys.
    """
    keys = magnitude_keys(transforms, base, expert, states, index, threshold.dtype)
    counts = []
    for i in range(threshold.shape[0]):
        here = Index(*(w if w is None else w[i] for w in cutoff))
        counts.append(numerics.count(numerics.kept(keys, index, threshold[i], here)))
    return jnp.stack(counts)


def magnitude_keys(transforms, base, expert, states, index, key_dtype) -> Array:
    """Return the magnitude keys of one expert's block after some transforms."""
    delta = transform_block(transforms, base, expert, states, index)
    return numerics.magnitude_keys(delta, key_dtype)


def count_votes(
    method: Method,
    base: Array,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    index: Index,
) -> Array:
    """Answer `statistics.Ballot` for one block: int32 scalar or [leading]."""
    values = task_vectors(method, base, experts, states, index)
    votes = method.combiner.votes(values, method.weights)
    return numerics.total(jnp.sign(votes).astype(jnp.int32))


def task_vectors(
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    index: Index,
) -> list[Array]:
    """Return each expert's transformed task vector, in float32 (or float64)."""
    return [
        transform_block(method.of(i), base, expert, state, index)
        for i, (expert, state) in enumerate(zip(experts, states, strict=True))
    ]


def _per_expert(transform: Transform) -> str | None:
    """Return the name of a transform's number that is one for each expert."""
    names = (field.name for field in dataclasses.fields(transform))
    return next((n for n in names if isinstance(getattr(transform, n), tuple)), None)


def _permuted(values: Sequence[Any], order: Sequence[int]) -> tuple:
    return tuple(values[i] for i in order)
