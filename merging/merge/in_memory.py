"""Merge models that are in memory: whole, or sharded over a mesh."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from merging.merge import memory_blocks as layouts
from merging.merge import memory_kernels as kernels
from merging.merge.memory_blocks import Block
from merging.merge.memory_counting import Counter, count_ballot, drive
from merging.methods import Layout, Method
from merging.runtime import numerics, tree
from merging.runtime.errors import UserError
from merging.runtime.tree import Tree


def merge(
    base: Tree | None,
    experts: Mapping[str, Tree],
    method: Method,
    *,
    seed: int = 0,
    donate: bool = True,
) -> dict[str, Any]:
    """Merge experts that share a base: θ = θ₀ + λ · combine(θᵢ − θ₀).

    Arithmetic in float32, rounded once to the base's dtypes; float64 stays float64.
    The same bits on any number of devices and any layout, and for any order of the
    experts. Integer and boolean leaves are taken from the base.

    Args:
      base: θ₀, a nested dict of arrays; None if the method needs none (`average`).
      experts: θᵢ by name, of the base's structure. Random masks depend on the name.
      method: such as ``methods.ties(density=0.2)``.
      seed: of random masks.
      donate: write over the base's buffers, which are deleted; False keeps the base.

    Returns:
      The merged parameters, with the base's structure, dtypes and shardings.

    Raises:
      UserError: no experts, a wrong number of weights, models that differ in leaves or
        integer values, a NaN or Inf in an input; each lists every offender.
    """
    job = _prepare(base, experts, method, seed)
    return _apply(job, method.scale, donate and base is not None)


def merge_scales(
    base: Tree,
    experts: Mapping[str, Tree],
    method: Method,
    scales: Sequence[float],
    *,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the merge for each λ, the same as `merge` with that scale, base kept.

    Thresholds and the majority sign do not depend on λ and are found once.
    """
    if not method.needs_base:
        raise UserError(f"{method.name} has no scale to vary.")
    job = _prepare(base, experts, method, seed)
    for scale in scales:
        yield _apply(job, float(scale), donate=False)


class _Job(NamedTuple):
    """A merge that waits for its scale only; experts in the order of their names.

    Attributes:
      method: its weights in the experts' order.
      paths: of all leaves, in the order to return them.
      copied: the integer and boolean leaves.
      layout: the float leaves.
      blocks: how they are laid out.
      like: the base's (or else the first expert's) float leaves.
      taken: the experts' leaves, which may not be written over.
      base: θ₀, an array for each block, or Nones if it is not read.
      experts: θᵢ likewise.
      states: [expert][transform].
      verdict: of the combiner.
    """

    method: Method
    paths: list[str]
    copied: dict[str, Array]
    layout: Layout
    blocks: list[Block]
    like: list[Array]
    taken: list[Array]
    base: list[Array | None]
    experts: list[list[Array]]
    states: list[list[Any]]
    verdict: Any


def _prepare(
    base: Tree | None, experts: Mapping[str, Tree], method: Method, seed: int
) -> _Job:
    """Check the inputs, lay them out in blocks, and find the method's statistics."""
    method = _check_arguments(base, experts, method)
    names = sorted(experts)  # sums then round alike whatever order they came in
    models = {} if base is None else {"base": base}
    models |= {f"expert {name}": experts[name] for name in names}
    tree.require_same_structure(models)
    flat = {name: tree.flatten(model) for name, model in models.items()}
    template = next(iter(flat.values()))
    floats = sorted(p for p in template if tree.dtype_class(template[p]) == "float")
    copied = _copy_discrete(flat, [p for p in template if p not in set(floats)])

    leaves = {n: [_on_device(of[p]) for p in floats] for n, of in flat.items()}
    like = next(iter(leaves.values()))
    leaves = {n: _align(arrays, like) for n, arrays in leaves.items()}
    taken = [x for n, of in leaves.items() if n != "base" for x in of]
    if not method.needs_base:
        leaves.pop("base", None)
    working = [
        numerics.working_dtype(*(x.dtype for x in same))
        for same in zip(*leaves.values(), strict=True)
    ]
    layout = Layout(tuple(floats), tuple(x.shape for x in like), jnp.float64 in working)
    blocks = layouts.plan(like, working, pack=method.cut == "element")
    arrays = {n: [layouts.pack(b, of) for b in blocks] for n, of in leaves.items()}
    _require_finite(layout, blocks, arrays, leaves)

    start = arrays.pop("base", [None] * len(blocks))
    ready = list(arrays.values())
    job = _Job(
        method,
        list(template),
        copied,
        layout,
        blocks,
        like,
        taken,
        start,
        ready,
        [],
        None,
    )
    for i, (name, of) in enumerate(zip(names, ready, strict=True)):
        counter = Counter(layout, blocks, start, of)
        job.states.append(counter.states(method.of(i), name, seed))
    verdict = drive(
        method.combiner.inquire(),
        lambda _: count_ballot(method, blocks, start, ready, job.states),
    )
    return job._replace(verdict=verdict)


def _apply(job: _Job, scale: float | None, donate: bool) -> dict[str, Any]:
    """Merge every block, and put the leaves back in their places."""
    method = dataclasses.replace(job.method, scale=scale, name="")
    old = _to_write_over(job) if donate else None
    merged: list[Any] = [None] * len(job.like)
    for b, block in enumerate(job.blocks):
        base, run = job.base[b], kernels.merge
        if donate and block.rows is None:
            base, run = old[block.leaves[0]], kernels.merge_over
        result = run(
            base,
            method,
            [expert[b] for expert in job.experts],
            [[block.spread(state) for state in states] for states in job.states],
            job.verdict,
            block.offset,
            strides=block.strides,
            dtype=block.dtype,
            sharding=_mesh_sharding(job.like[block.leaves[0]]),
        )
        parts = layouts.unpack(block, result, old, job.like)
        for i, leaf in zip(block.leaves, parts, strict=True):
            merged[i] = leaf
    found = dict(zip(job.layout.paths, merged, strict=True)) | job.copied
    return tree.unflatten({path: found[path] for path in job.paths})


def _check_arguments(base, experts, method: Method) -> Method:
    """Refuse what is wrong before any work; return the method, weights in order."""
    if not isinstance(experts, Mapping) or not experts:
        raise UserError("experts must be a mapping of at least one name to parameters.")
    strange = [repr(name) for name in experts if not isinstance(name, str)]
    if strange:
        raise UserError(f"expert names must be strings, not {', '.join(strange)}.")
    if base is None and method.needs_base:
        raise UserError(f"{method.name} merges task vectors: it needs the base.")
    given = list(experts)
    return method.reordered([given.index(name) for name in sorted(given)])


def _copy_discrete(flat: Mapping[str, Mapping], paths: list[str]) -> dict[str, Array]:
    """Return copies of the integer and boolean leaves, which must all be equal."""
    (first, template), *rest = flat.items()
    wrong = []
    for path in paths:
        kind = tree.dtype_class(template[path])
        if kind not in ("integer", "bool"):
            wrong.append(f"{path}: {kind} leaves cannot be merged")
            continue
        wrong += [
            f"{path}: {name!r} differs from {first!r}"
            for name, leaves in rest
            if not bool(jnp.array_equal(leaves[path], template[path]))
        ]
    if wrong:
        raise UserError(
            "integer and boolean leaves must be equal in all models, and are copied; "
            "leave these out of the merge:\n  " + "\n  ".join(wrong)
        )
    return {path: jnp.array(template[path]) for path in paths}


def _on_device(leaf: Any) -> Array:
    # A copy: memory that NumPy owns must not be written over.
    return leaf if isinstance(leaf, Array) else jnp.array(leaf)


def _align(leaves: list[Array], like: list[Array]) -> list[Array]:
    """Return the leaves in the first model's layouts."""
    return [
        x
        if x.sharding == y.sharding or x.sharding.is_equivalent_to(y.sharding, y.ndim)
        else jax.device_put(x, y.sharding)
        for x, y in zip(leaves, like, strict=True)
    ]


def _require_finite(layout, blocks, arrays, leaves) -> None:
    """Raise a UserError that names every leaf and model with a NaN or Inf."""
    checks = {name: [numerics.all_finite(x) for x in of] for name, of in arrays.items()}
    wrong = [
        f"{layout.paths[i]} in {name!r}"
        for name, fine in jax.device_get(checks).items()
        for block, ok in zip(blocks, fine, strict=True)
        if not ok
        for i in block.leaves
        if not numerics.all_finite(leaves[name][i])
    ]
    if wrong:
        raise UserError("NaN or Inf in the weights of:\n  " + "\n  ".join(wrong))


def _to_write_over(job: _Job) -> list[Array]:
    """Return the base's leaves, copied where something else needs the same buffer."""
    seen = {id(x) for x in job.taken}
    old = []
    for leaf in job.like:
        old.append(jnp.copy(leaf) if id(leaf) in seen else leaf)
        seen.add(id(leaf))
    return old


def _mesh_sharding(leaf: Array) -> NamedSharding | None:
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None
