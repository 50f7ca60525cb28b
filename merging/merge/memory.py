"""Merge models that are in memory: whole, or sharded over a mesh.

The engine is the one of streamed merges (`reduce`, `kernels`, `checks`); what differs
is where blocks come from and where results go. Here a block is an array on the devices,
in its own layout, and the result takes the base's place, or its buffers, if asked to.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from merging.merge import checks, kernels, on_host, packing
from merging.merge import statistics as further
from merging.merge.cutting import in_memory_blocks
from merging.merge.in_memory_reduce import InMemoryAnswers
from merging.merge.partition import Partition, RowMetadata
from merging.merge.reduce import LeafGroup, States, find_states
from merging.merge.stored import Blocks, StoredLeaf, Told, beside, whole
from merging.methods import Layout, Method
from merging.runtime import numerics, tree
from merging.runtime.errors import UserError
from merging.runtime.tree import Tree

Experts = Mapping[str, Tree] | Sequence[Tree]


def merge(
    base: Tree | None,
    experts: Experts,
    method: Method,
    *,
    seed: int = 0,
    donate: bool = False,
    statistics: Mapping[str, Tree] | None = None,
) -> dict[str, Any]:
    """Merge experts that share a base: θ = θ₀ + λ · combine(θᵢ − θ₀).

    Arithmetic in float32, rounded once to the base's dtypes; float64 stays float64.
    The same bits on any number of devices and any layout, and for any order of the
    experts. Integer and boolean leaves are taken from the base.

    Args:
      base: θ₀, a nested dict of arrays; None if the method needs none (`average`).
      experts: θᵢ by name, of the base's structure; or a sequence, whose names are then
        "0", "1", …. Random masks depend on the name. A leaf may be a `StoredLeaf`,
        which is read as it is merged, if there is a base.
      method: such as ``methods.ties(density=0.2)``.
      seed: of random masks.
      donate: write over the base's buffers, which are deleted.
      statistics: of each expert by name, nested dicts with the leaves' names, for a
        method that wants some (`methods.fisher`, `methods.regmean`). A leaf may be a
        `StoredLeaf` here, too.

    Returns:
      The merged parameters, with the base's structure, dtypes and shardings; without
      a base, those of the first expert given.

    Raises:
      UserError: no experts, a wrong number of weights, models that differ in leaves or
        integer values, a NaN or Inf in an input, a result beyond its dtype's range,
        statistics that are missing or fit no leaf; each lists every offender.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(3)}
    >>> experts = {"qa": {"w": jnp.array([1.0, 2.0, 0.0])},
    ...            "nli": {"w": jnp.array([3.0, -1.0, 0.0])}}
    >>> merging.merge(base, experts, merging.methods.task_arithmetic(0.5))["w"].tolist()
    [2.0, 0.5, 0.0]
    """
    job = _prepare(base, experts, method, seed, statistics)
    return _apply(job, method.scale, donate=donate and base is not None)


def merge_scales(
    base: Tree,
    experts: Experts,
    method: Method,
    scales: Sequence[float],
    *,
    seed: int = 0,
    reuse: bool = False,
    statistics: Mapping[str, Tree] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the merge for each λ, the same as `merge` with that scale, base kept.

    What the reductions find does not depend on λ, and is found once.

    Args:
      base: as for `merge`, as are experts, method and seed.
      experts: θᵢ.
      method: of any scale.
      scales: the values of λ.
      seed: of random masks.
      reuse: write each merge over the one before, which is deleted: however many are
        tried, they take the memory of one.
      statistics: as for `merge`.

    Raises:
      UserError: as `merge`; the method has no scale.

    >>> import jax.numpy as jnp, merging
    >>> base = {"w": jnp.zeros(4)}
    >>> qa, nli = {"w": jnp.array([4.0, 1, 0, -2])}, {"w": jnp.array([2.0, -3, 0, 1])}
    >>> method = merging.methods.task_arithmetic()
    >>> merges = merging.merge.merge_scales(base, [qa, nli], method, (0.5, 1.0))
    >>> [merged["w"].tolist() for merged in merges]
    [[3.0, -1.0, 0.0, -0.5], [6.0, -2.0, 0.0, -1.0]]
    """
    if not method.needs_base:
        raise UserError(f"{method.name} has no scale to vary.")
    job = _prepare(base, experts, method, seed, statistics)
    last = None
    for scale in scales:
        last = _apply(job, float(scale), spent=last if reuse else None)
        yield last


class _Job(NamedTuple):
    """A merge that waits for its scale only; experts in the order of their names.

    Attributes:
      method: its weights in the experts' order.
      paths: of all leaves, in the order to return them.
      copied: the integer and boolean leaves.
      cut: the float leaves' blocks.
      metadata: of each block.
      leaves: {model's name: its float leaves}.
      first: the model whose dtypes and layout the result takes.
      base: θ₀, an array for each block, or Nones if it is not read.
      experts: θᵢ likewise; those in storage are read whenever they are indexed.
      states: of the method's parts.
      told: of each block its experts' statistics, or None; brought when indexed.
      statistics: {what to call an expert's: its arrays by path}.
    """

    method: Method
    paths: list[str]
    copied: dict[str, Array]
    cut: Partition
    metadata: list[RowMetadata]
    leaves: dict[str, list[Array]]
    first: str
    base: Sequence[Array | None]
    experts: list[Sequence[Array]]
    states: States
    told: Sequence[list[Array] | None]
    statistics: dict[str, dict[str, Any]]

    @property
    def like(self) -> list[Array]:
        """The base's (or else the first given expert's) float leaves."""
        return self.leaves[self.first]


def _prepare(
    base: Tree | None,
    experts: Experts,
    method: Method,
    seed: int,
    statistics: Mapping[str, Tree] | None = None,
) -> _Job:
    """Check the inputs, lay them out in blocks, and find the method's states."""
    given, method = _check_arguments(base, experts, method)
    statistics = {} if statistics is None else statistics
    further.require([method], given, statistics)
    known = {name: tree.flatten(statistics[name]) for name in sorted(statistics)}
    first = "base" if base is not None else f"expert {next(iter(given))}"
    experts = {name: given[name] for name in sorted(given)}
    models = {} if base is None else {"base": base}
    models |= {f"expert {name}": model for name, model in experts.items()}
    tree.require_same_structure(models)
    flat = {name: tree.flatten(model) for name, model in models.items()}
    checks.refuse_dtypes(flat)
    template = flat[first]
    floats = sorted(p for p in template if tree.dtype_class(template[p]) == "float")
    if any(isinstance(leaf, StoredLeaf) for leaf in template.values()):
        raise UserError("models that stay in storage are merged on a base in memory.")
    copied = _copy_discrete(flat, [p for p in template if p not in set(floats)])

    leaves = {n: [_on_device(of[p]) for p in floats] for n, of in flat.items()}
    like = leaves[first]
    leaves = {n: _align(arrays, like) for n, arrays in leaves.items()}
    read = {n: of for n, of in leaves.items() if n != "base" or method.needs_base}
    working = [
        numerics.working_dtype(*(x.dtype for x in same))
        for same in zip(*read.values(), strict=True)
    ]
    cut = in_memory_blocks(floats, like, method, working)
    layout = Layout(cut.paths, cut.shapes, np.dtype(np.float64) in working)
    every = tuple(range(len(floats)))
    metadata = [RowMetadata(block, layout, every) for block in cut.blocks]
    arrays: dict[str, Sequence[Array]] = {
        name: Blocks(cut, of, like)
        if any(isinstance(leaf, StoredLeaf) for leaf in of)
        else [packing.pack(cut, block, of) for block in cut.blocks]
        for name, of in read.items()
    }
    start = arrays.pop("base", [None] * len(cut.blocks))
    ready = list(arrays.values())
    group = LeafGroup("", method, layout, every, tuple(range(len(cut.blocks))))
    placed = [like[block.pieces[0].leaf] for block in cut.blocks]
    answers = InMemoryAnswers(
        cut.blocks, metadata, start, ready, layout, every, placed=placed
    )
    states = find_states(group, list(experts), seed, answers)
    told: Sequence[list[Array] | None] = [None] * len(cut.blocks)
    if (kind := method.statistics) is not None:
        covered = further.covered(kind, dict(zip(floats, like, strict=True)), known)
        told = Told(cut, like, kind, list(known.values()), covered)
        known = {further.label(kind, name): of for name, of in known.items()}
    return _Job(
        *(method, list(template), copied, cut, metadata, leaves, first),
        *(start, ready, states, told, known),
    )


def _apply(
    job: _Job, scale: float | None, *, donate: bool = False, spent: Tree | None = None
) -> dict[str, Any]:
    """Merge every block, and put the leaves back in their places.

    Args:
      job: what to merge.
      scale: λ.
      donate: write over the base.
      spent: an earlier result to write over.
    """
    method = dataclasses.replace(job.method, scale=scale, name="")
    old = _to_write_over(job) if donate else None
    if spent is not None:
        leaves = tree.flatten(spent)
        old = [leaves[path] for path in job.cut.paths]
    # A leaf without elements is in no block.
    merged: list[Any] = [None if x.size else jnp.copy(x) for x in job.like]
    # Of a base that is written over, what must be known is asked before.
    sound = [
        numerics.all_finite(x) if donate and x is not None else True for x in job.base
    ]
    finite = []
    for b, (block, metadata) in enumerate(
        zip(job.cut.blocks, job.metadata, strict=True)
    ):
        base, run = job.base[b], kernels.merge
        leaf = block.pieces[0].leaf
        if donate and block.shape is not None:
            base, run = old[leaf], kernels.merge_over
        elif old is not None and block.shape is not None:
            run = functools.partial(kernels.merge_into, old[leaf])
        like = job.like[leaf]
        on_mesh = isinstance(like.sharding, NamedSharding)
        how = {
            "strides": block.strides,
            "dtype": like.dtype,
            "matrix": block.matrix,
            "sharding": like.sharding if on_mesh else None,
            "statistics": job.told[b],
        }
        result = on_host.computed(
            lambda base, *others, run=run, how=how: run(base, method, *others, **how),
            *(block, method, base, [expert[b] for expert in job.experts]),
            [[metadata.spread(s) for s in of] for of in job.states.transforms],
            metadata.spread(job.states.combined),
            metadata.offset,
        )
        del how  # and this block's statistics, before the next one's are brought
        finite.append(numerics.all_finite(result))
        parts = packing.unpack(job.cut, block, result, old)
        for piece, leaf in zip(block.pieces, parts, strict=True):
            merged[piece.leaf] = leaf
    finite, sound = jax.device_get((finite, sound))
    if not all(finite):
        _refuse(job, finite, sound, merged, donate)
    found = dict(zip(job.cut.paths, merged, strict=True)) | job.copied
    return tree.unflatten({path: found[path] for path in job.paths})


def _check_arguments(
    base: Tree | None, experts: Experts, method: Method
) -> tuple[dict[str, Tree], Method]:
    """Refuse what is wrong before any work.

    Returns:
      The experts by name, and the method with its numbers in the order of the names:
      sums then round alike whatever order the experts came in.
    """
    if not isinstance(method, Method):
        raise UserError(
            f"method must be a value such as merging.methods.ties(), not {method!r}."
        )
    if isinstance(experts, Sequence) and not isinstance(experts, str):
        experts = {str(i): expert for i, expert in enumerate(experts)}
    if not isinstance(experts, Mapping) or not experts:
        raise UserError("experts must be a mapping of at least one name to parameters.")
    strange = [repr(name) for name in experts if not isinstance(name, str)]
    if strange:
        raise UserError(f"expert names must be strings, not {', '.join(strange)}.")
    if base is None and method.needs_base:
        raise UserError(f"{method.name} merges task vectors: it needs the base.")
    given, names = list(experts), sorted(experts)
    reordered = method.reordered([given.index(name) for name in names])
    return dict(experts), reordered


def _copy_discrete(flat: Mapping[str, Mapping], paths: list[str]) -> dict[str, Array]:
    """Return copies of the integer and boolean leaves, which must all be equal."""
    (first, template), *rest = flat.items()
    wrong = []
    for path in paths:
        wrong += [
            f"{path}: {name!r} differs from {first!r}"
            for name, leaves in rest
            if not _equal(whole(leaves[path], template[path]), template[path])
        ]
    checks.refuse_unequal(wrong)
    return {path: _copied(template[path]) for path in paths}


def _copied(leaf: Any) -> Any:
    """Return a copy; of NumPy's 64-bit integers as such, where JAX has none."""
    narrow = jnp.result_type(leaf) != tree.dtype(leaf)
    return np.array(leaf) if narrow else jnp.array(leaf)


def _equal(one: Any, other: Any) -> bool:
    # As NumPy has them: without x64, JAX would cut an int64 in half.
    on_host = [isinstance(x, np.ndarray) for x in (one, other)]
    return bool((np if any(on_host) else jnp).array_equal(one, other))


def _on_device(leaf: Any) -> Array:
    # A copy: memory that NumPy owns must not be written over.
    return leaf if isinstance(leaf, (Array, StoredLeaf)) else jnp.array(leaf)


def _align(leaves: list[Array], like: list[Array]) -> list[Array]:
    """Return the leaves in the first model's layouts."""
    return [
        x
        if isinstance(x, StoredLeaf)
        or x.sharding == y.sharding
        or x.sharding.is_equivalent_to(y.sharding, y.ndim)
        else jax.device_put(x, y.sharding)
        for x, y in zip(leaves, like, strict=True)
    ]


def _refuse(job: _Job, finite, sound, merged: list[Array], donated: bool) -> None:
    """Name every leaf and model with a NaN or Inf, or what is beyond its dtype."""
    wrong, beyond = [], []
    for block, ok, base_ok in zip(job.cut.blocks, finite, sound, strict=True):
        for leaf in [] if ok else [piece.leaf for piece in block.pieces]:
            path = job.cut.paths[leaf]
            for name, leaves in job.leaves.items():
                if name == "base" and not job.method.needs_base:
                    continue
                gone = name == "base" and donated and leaves[leaf].is_deleted()
                fine = base_ok
                if not gone:
                    fine = numerics.all_finite(whole(leaves[leaf], job.like[leaf]))
                if not fine:
                    wrong.append((path, name))
            wrong += [
                (path, name)
                for name, of in job.statistics.items()
                if path in of
                and not numerics.all_finite(
                    beside(of[path], job.like[leaf], job.method.statistics)
                )
            ]
            if not numerics.all_finite(merged[leaf]):
                beyond.append(path)
    order = [*job.leaves, *job.statistics]
    wrong.sort(key=lambda found: order.index(found[1]))
    dtypes = {merged[job.cut.paths.index(path)].dtype for path in beyond}
    checks.refuse_nonfinite(wrong, beyond, ", ".join(map(str, dtypes)))


def _to_write_over(job: _Job) -> list[Array]:
    """Return the base's leaves, copied where something else needs the same buffer."""
    experts = [of for name, of in job.leaves.items() if name != "base"]
    seen = {id(leaf) for of in experts for leaf in of}
    old = []
    for leaf in job.like:
        old.append(jnp.copy(leaf) if id(leaf) in seen else leaf)
        seen.add(id(leaf))
    return old
