"""What is computed for one block on the devices: the compiled functions.

They serve both forms of a block (`partition.Block`). Of *rows*, [rows, columns] for
each model, what is known of a leaf (a threshold, a mask's key) is a column [rows, 1],
and so is the index of each row's first element, the offset; strides are (0, 1). Of a
leaf in its *own* shape and sharding these are scalars, and the strides are the leaf's.

They, and that of `votes`, are all that runs on the devices, so that what a merge would
cost on devices that are not there can be read from them, compiled ahead of time. Each
returns one large array: for two, XLA on CPUs computes everything twice.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from merging import methods
from merging.runtime import numerics

# What `windowed` says of one.
ABOVE, INSIDE = 1, 16
# Rows that `tallied` adds up.
FOLDED = 8
# The lower half of each byte in a word.
_HALVES = np.uint64(0x0F0F0F0F0F0F0F0F)

_calls = threading.RLock()


class Kernel:
    """A jitted function that may be called by several threads.

    JAX's own cache of programs may not be: to find one, it compares what is static in
    the arguments, and the `==` of a method's parts is Python, in which threads switch.
    When another then makes the cache grow, the first one's place in it is gone, and
    the process with it (SIGSEGV, in one of about a hundred merges). So one calls at a
    time; what was called computes on.

    Args:
      function: to be compiled.
      how: what `jax.jit` takes.
    """

    def __init__(self, function: Callable[..., Array], **how: Any):
        self._jitted = jax.jit(function, **how)
        self.lower = self._jitted.lower
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any, **static: Any) -> Array:
        """Call it, and compile it if no other call has."""
        with _calls:
            return self._jitted(*arguments, **static)


def merge_traced(
    base,
    method,
    experts,
    states,
    combined,
    offset,
    *,
    strides,
    dtype,
    matrix=None,
    sharding=None,
    statistics=None,
) -> Array:
    """Return the merged block; NaN wherever any input is NaN or infinite.

    Args:
      base: the block of θ₀; None if there is none.
      method: with its name left out, so that only its structure compiles.
      experts: of each expert, likewise.
      states: [expert][transform].
      combined: the combiner's state.
      offset: the index of the block's, or each row's, first element.
      strides: of the block's axes, in elements of the leaf.
      dtype: of the result.
      matrix: see `methods.merge_block`.
      sharding: of the result, for a leaf that lies on a mesh.
      statistics: of each expert, if the method wants some and the leaf has them.
    """
    gathers = matrix is not None and sharding is not None
    if gathers:
        # A decomposition needs all of a matrix, and is the same program everywhere.
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        base, experts, statistics = lax.with_sharding_constraint(
            (base, experts, statistics), whole
        )
    index = numerics.element_index(experts[0].shape, strides, offset)
    inputs = [base, *experts] if method.needs_base else experts
    working = numerics.working_dtype(*(x.dtype for x in inputs))
    merged = methods.merge_block(
        method, base, experts, states, combined, index, matrix, statistics
    )
    # x − x is 0 for a finite x and NaN for any other.
    widened = [x.astype(working) for x in inputs]
    merged = jnp.where(sum((x - x) for x in widened) == 0, merged, jnp.nan)
    if statistics is not None:
        known = jnp.array([jnp.isfinite(array).all() for array in statistics])
        merged = jnp.where(known.all(), merged, jnp.nan)
    merged = merged.astype(dtype)  # last: a CPU selects in float32, and rounds again
    if gathers:
        merged = lax.with_sharding_constraint(merged, whole)
    if sharding is None:
        return merged
    return lax.with_sharding_constraint(merged, sharding)


_STATIC = ("strides", "dtype", "matrix", "sharding")
merge = Kernel(merge_traced, static_argnames=_STATIC)
# An average does not read the base, whose buffers are to be reused all the same.
merge_over = Kernel(
    merge_traced, static_argnames=_STATIC, donate_argnums=0, keep_unused=True
)


@functools.partial(Kernel, static_argnames=_STATIC, donate_argnums=0, keep_unused=True)
def merge_into(
    old, *arguments, strides, dtype, matrix=None, sharding=None, statistics=None
) -> Array:
    """Return the merged block in the buffers of `old`, such as that of another λ."""
    del old
    how = {"strides": strides, "dtype": dtype, "matrix": matrix, "sharding": sharding}
    return merge_traced(*arguments, **how, statistics=statistics)


def tally(codes: np.ndarray, most: int) -> tuple[int, int]:
    """Return the sums of all bytes' lower and upper halves, several bytes at a time.

    Args:
      codes: uint8, contiguous.
      most: that half a byte is, up to 15.
    """
    flat, fold = codes.reshape(-1), 15 // most
    # Halves of a byte hold sums of `fold` of them; bytes, of 17 times as many.
    each = len(flat) // (8 * fold * 17)
    words = flat[: each * 8 * fold * 17].view(np.uint64).reshape(17, fold, each)
    rest = flat[each * 8 * fold * 17 :]
    folded = np.add.reduce(words, axis=1) if fold > 1 else words[:, 0]
    found = []
    for halves, left in (
        (folded & _HALVES, rest & 15),
        (folded >> np.uint64(4) & _HALVES, rest >> 4),
    ):
        sums = np.add.reduce(halves, axis=0).view(np.uint8)
        found.append(int(sums.sum(dtype=np.uint64)) + int(left.sum(dtype=np.uint64)))
    return found[0], found[1]


@functools.partial(Kernel, static_argnames="strides")
def reduced(
    reduction, method, base, experts, states, selected, offset, *, strides
) -> Array:
    """Return what a block adds to a reduction of `Votes` or `Sums`.

    Args:
      reduction: whose `update` is given the method's transformed task vectors.
      method: such as to the transforms before the one that asks.
      base: the block of θ₀, or None.
      experts: of each expert that is asked about.
      states: [expert][transform].
      selected: of the selections that were made.
      offset: as in `merge`.
      strides: likewise.
    """
    index = numerics.element_index(experts[0].shape, strides, offset)
    values = methods.task_vectors(method, base, experts, states, index, selected)
    if isinstance(reduction, methods.Sums) and reduction.original:
        bare = methods.alone(method, ())
        none = [()] * len(experts)
        values = methods.task_vectors(bare, base, experts, none, index) + values
    return reduction.update(values, method.weights)


@functools.partial(Kernel, static_argnames=("strides", "dtype"))
def keys(
    method, selection, base, experts, states, selected, offset, *, strides, dtype
) -> Array:
    """Return the magnitude keys of one expert's Δ, or of a selection's score."""
    index = numerics.element_index(experts[0].shape, strides, offset)
    return methods.magnitude_keys(
        method, selection, base, experts, states, selected, index, dtype
    )


@functools.partial(Kernel, static_argnames="strides")
def count(
    method,
    selection,
    base,
    experts,
    states,
    selected,
    offset,
    threshold,
    cutoff,
    *,
    strides,
):
    """Return how many of those magnitudes each trial would keep (`count_kept`)."""
    index = numerics.element_index(experts[0].shape, strides, offset)
    inputs = method, selection, base, experts, states, selected
    found = methods.magnitude_keys(*inputs, index, threshold.dtype)
    return methods.count_kept(found, index, threshold, cutoff)


@functools.partial(Kernel, static_argnames=("strides", "dtype"))
def windowed(
    method,
    selection,
    base,
    experts,
    states,
    selected,
    offset,
    filled,
    low,
    bins,
    *,
    strides,
    dtype,
) -> Array:
    """Return, as uint8, where each magnitude key lies: ABOVE a window, INSIDE, or 0.

    Args:
      method: to the transforms before the one that asks.
      selection: that ranks a score, or None.
      base: the block of θ₀.
      experts: of each expert that is looked at.
      states: of the transforms.
      selected: of the selections that were made.
      offset: as in `merge`.
      filled: how many elements of each row there are; what comes after is 0. None if
        rows are full.
      low: the window's first key.
      bins: its width.
      strides: as in `merge`.
      dtype: of keys.
    """
    inputs = method, selection, base, experts, states, selected, offset
    found = keys(*inputs, strides=strides, dtype=dtype)
    # What lies below the window wraps around to the far end.
    inside = (found - low) < bins
    above = jnp.where(found >= low, jnp.uint8(ABOVE), jnp.uint8(0))
    codes = jnp.where(inside, jnp.uint8(INSIDE), above)
    if filled is None:
        return codes
    column = lax.broadcasted_iota(filled.dtype, codes.shape, 1)
    return jnp.where(column < filled, codes, jnp.uint8(0))


@functools.partial(Kernel, static_argnames=("fold", "strides", "dtype"))
def tallied(
    method,
    selection,
    base,
    experts,
    states,
    selected,
    offset,
    filled,
    key,
    *,
    fold,
    strides,
    dtype,
) -> Array:
    """Return how many magnitude keys of every few rows are above one, or are it.

    As uint8 [rows / fold, columns], to be taken apart by `tally`. Other arguments are
    those of `windowed`.

    Args:
      key: the one.
      fold: how many rows, up to `FOLDED`.
    """
    inputs = method, selection, base, experts, states, selected, offset, filled
    codes = windowed(*inputs, key, dtype.type(1), strides=strides, dtype=dtype)
    parts = codes.reshape(-1, fold, codes.shape[1])
    return parts.sum(axis=1, dtype=jnp.uint8)


class Gathered:
    """A few elements of a block, as arrays [elements, 1] that are computed on alone.

    Args:
      metadata: the block's, as `partition.RowMetadata`.
      positions: of the elements in the flat block; one at least.
      width: columns of the block.
    """

    def __init__(self, metadata: Any, positions: np.ndarray, width: int):
        # Few sizes compile; what fills one up is computed for nothing.
        bits = max(len(positions) - 1, 7).bit_length()
        self._count, size = len(positions), 1 << bits + (bits < 14 and bits % 2 == 0)
        self._positions = np.resize(positions, size).astype(np.int64)
        self._row, column = np.divmod(self._positions, width)
        self.offset = metadata.index(self._row, column)

    def elements(self, array: np.ndarray) -> np.ndarray:
        """Return them from a block's array."""
        return array.reshape(-1).take(self._positions)[:, None]

    def rows(self, columns: Any) -> Any:
        """Return what is known of them from columns [rows, 1]."""
        return jax.tree.map(lambda x: x.take(self._row, axis=0), columns)

    def only(self, results: Any) -> np.ndarray:
        """Return the results, without those that filled up, flat."""
        return np.asarray(results).reshape(-1)[: self._count]


def nonfinite(array: np.ndarray, part: int = 2**17) -> bool:
    """Return whether any element on the host is NaN or infinite, from its bits."""
    unsigned = np.dtype(f"u{array.dtype.itemsize}").type
    infinity = np.array(np.inf, array.dtype).view(unsigned)
    magnitude = unsigned(np.iinfo(unsigned).max >> 1)
    bits = array.reshape(-1).view(unsigned)
    # In parts that stay in the cache.
    return any(
        (bits[at : at + part] & magnitude).max() >= infinity
        for at in range(0, len(bits), part)
    )
