"""Where arrays live: a mesh, and ordered rules from leaf paths to its axes.

Axes: ``data`` holds whole copies and splits the batch; ``fsdp`` splits the batch and
the weights; ``tensor`` splits heads, MLPs and the vocabulary.
"""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from merging.runtime import memory, tree
from merging.runtime.errors import UserError

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of named axes, whose shardings the compiler propagates.

    Args:
      axes: ``{name: size}``; one size may be -1, for all devices that are left.
      devices: those to use; all by default.

    Raises:
      UserError: an unknown axis, two unknown sizes, a product that is not the number
        of devices, or several TPU slices that ``data`` does not go over.
    """
    devices = list(jax.devices() if devices is None else devices)
    axes = axis_sizes(axes, len(devices))
    auto = (AxisType.Auto,) * len(axes)
    slices = {getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}
    if len(slices) > 1:
        grid = _over_slices(axes, len(slices), devices)
        return Mesh(grid, tuple(axes), axis_types=auto)
    sizes, names = tuple(axes.values()), tuple(axes)
    return jax.make_mesh(sizes, names, axis_types=auto, devices=devices)


def axis_sizes(axes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Return the axes with the size that was left open, for so many devices.

    Raises:
      UserError: as `make_mesh`.
    """
    if strange := [name for name in axes if name not in AXES]:
        raise UserError(f"unknown mesh axes {strange}; valid: {', '.join(AXES)}.")
    sizes = list(axes.values())
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0:
        sizes[sizes.index(-1)] = devices // known
    if not sizes or min(sizes) < 1 or math.prod(sizes) != devices:
        raise UserError(
            f"mesh {dict(axes)} does not use {devices} devices exactly; give "
            "sizes whose product is that, or one of them as -1."
        )
    return dict(zip(axes, sizes, strict=True))


def _over_slices(axes: dict[str, int], slices: int, devices: Sequence[Any]) -> Any:
    """Return devices of several TPU slices, which only a network joins, as a grid.

    Whole copies are what asks least of the network: slices lie along ``data``.
    """
    if axes.get("data", 1) % slices:
        raise UserError(
            f"mesh {axes} splits more than copies over {slices} TPU slices; give a"
            f" data axis whose size is a multiple of {slices}."
        )
    inside = [n // slices if name == "data" else n for name, n in axes.items()]
    across = [slices if name == "data" else 1 for name in axes]
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices)


def specs(params: tree.Tree, rules: Rules) -> dict[str, PartitionSpec]:
    """Return ``{path: spec}``, each from the first rule whose regex is in the path.

    Raises:
      UserError: leaves that no rule matches, all of them.
    """
    found, unmatched = {}, []
    for path in tree.flatten(params):
        matching = (spec for pattern, spec in rules if re.search(pattern, path))
        spec = next(matching, None)
        if spec is None:
            unmatched.append(path)
        found[path] = spec
    if unmatched:
        raise UserError(
            f"no sharding rule matches {', '.join(unmatched)}; add one, such as "
            "('.*', PartitionSpec()) to replicate what is left."
        )
    return found


def shardings(params: tree.Tree, rules: Rules, mesh: Mesh) -> dict[str, Any]:
    """Return the tree of NamedShardings; axes the mesh doesn't have split nothing.

    Args:
      params: arrays or abstract arrays.
      rules: ordered ``(regex, PartitionSpec)``.
      mesh: the devices.

    Raises:
      UserError: leaves that no rule matches, that have fewer dimensions than their
        rule, or a dimension that the mesh does not divide; all of them.
    """
    chosen = specs(params, rules)
    wrong = []
    for path, leaf in tree.flatten(params).items():
        chosen[path] = _present(chosen[path], mesh)
        wrong += _misfits(path, tree.shape(leaf), chosen[path], mesh)
    if wrong:
        raise UserError(
            "these leaves do not fit the mesh; change its axes, the model's sizes or "
            "the rules:\n  " + "\n  ".join(wrong)
        )
    return tree.unflatten({p: NamedSharding(mesh, s) for p, s in chosen.items()})


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Return how a batch is split: rows over data and fsdp, after ``leading`` axes."""
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, axes or None))


def place_batch(mesh: Mesh | None, array: Any, leading: int = 0) -> Any:
    """Return the array [.., B, ..] split over the mesh; untouched without a mesh.

    Raises:
      UserError: the mesh does not divide the batch.
    """
    if mesh is None or not np.ndim(array):
        return array
    _require_divides(mesh, np.shape(array)[leading])
    return place(array, batch_sharding(mesh, leading))


def settled(params: Any) -> Any:
    """Return a tree of arrays, each held to the devices where it is.

    JAX compiles a program once more for arrays that may move, such as those that an
    initialisation made.
    """

    def held(array: Any) -> jax.Array:
        if isinstance(array, jax.Array):
            return jax.device_put(array, array.sharding)
        return jax.device_put(array, jax.local_devices()[0])

    return jax.tree.map(held, params)


def place(array: Any, where: NamedSharding) -> jax.Array:
    """Return the array in a sharding that may span processes.

    Each process gives the whole array, and what its own devices hold is put there.
    """
    if where.is_fully_addressable or getattr(array, "sharding", None) == where:
        return jax.device_put(array, where)
    array = np.asarray(array)  # device_put would compare all processes' copies
    return jax.make_array_from_callback(array.shape, where, array.__getitem__)


def to_host(array: Any) -> np.ndarray:
    """Return the whole of an array that may span processes; called by all of them."""
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return multihost_utils.process_allgather(array, tiled=True)


def rows_here(mesh: Mesh | None, rows: int) -> np.ndarray:
    """Return which rows of a batch this process's devices hold, in order.

    Raises:
      UserError: the mesh does not divide the batch.
    """
    if mesh is None:
        return np.arange(rows)
    _require_divides(mesh, rows)
    parts = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def place_rows(
    mesh: Mesh | None, array: np.ndarray, rows: int, leading: int = 0
) -> Any:
    """Return a batch split over the mesh, of which each process gives its own rows.

    Args:
      mesh: the devices; without one, the array is returned.
      array: the rows `rows_here`, after ``leading`` axes.
      rows: of the whole batch.
      leading: axes before that of the rows.
    """
    if mesh is None:
        return array
    here = rows_here(mesh, rows)

    def part(index):
        wanted = np.arange(rows)[index[leading]]
        first = int(np.searchsorted(here, wanted[0]))
        mine = slice(first, first + len(wanted))
        return array[(*index[:leading], mine, *index[leading + 1 :])]

    shape = (*array.shape[:leading], rows, *array.shape[leading + 1 :])
    return jax.make_array_from_callback(shape, batch_sharding(mesh, leading), part)


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Return the context in which `split_rows` knows the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def split_rows(array: jax.Array) -> jax.Array:
    """Keep an array [B, …] split by rows over the mesh that is set (`on`), if any is.

    Weights are split over ``fsdp`` as well, and the compiler, left alone, may follow
    them: then every device computes all rows of a slice of the features.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    if not axes:
        return array
    rest = (PartitionSpec.UNCONSTRAINED,) * (array.ndim - 1)
    return jax.lax.with_sharding_constraint(array, PartitionSpec(axes, *rest))


def device_memory() -> int:
    """Return the bytes that this process's first device has; 0 where no one knows.

    On CPUs, whose virtual devices share the machine's, a part of that.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return memory.of_machine() // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def device_bytes(params: Any) -> int:
    """Return the bytes of a tree, of arrays or abstract, on one of its devices."""
    found = 0
    for leaf in jax.tree.leaves(params):
        shape = leaf.shape
        if leaf.sharding is not None:
            shape = leaf.sharding.shard_shape(shape)
        found += math.prod(shape) * leaf.dtype.itemsize
    return found


def batch_parts(mesh: Mesh) -> int:
    """Return over how many parts of the mesh a batch is split."""
    return math.prod(mesh.shape.get(axis, 1) for axis in ("data", "fsdp"))


def _require_divides(mesh: Mesh, rows: int) -> None:
    if rows % (parts := batch_parts(mesh)):
        raise UserError(f"a batch of {rows} does not divide over {parts} devices.")


def _present(spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(
        *(tuple(a for a in _names(p) if a in mesh.shape) for p in spec)
    )


def _misfits(path: str, shape: tuple, spec: PartitionSpec, mesh: Mesh) -> list[str]:
    if len(spec) > len(shape):
        return [f"{path}: shape {shape} has fewer dimensions than its rule {spec}"]
    return [
        f"{path}: dimension {i} of {shape} does not divide by {parts} "
        f"({' x '.join(_names(names))})"
        for i, names in enumerate(spec)
        if names
        and shape[i] % (parts := math.prod(mesh.shape[a] for a in _names(names)))
    ]


def _names(part: Any) -> tuple[str, ...]:
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)
