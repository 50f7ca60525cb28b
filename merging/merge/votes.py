"""Blocks merged with a vote on each element's sign, and what the votes are.

Votes are counted on the host, of every few rows together.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from merging import methods
from merging.merge.kernels import Kernel, merge_traced, tally
from merging.runtime import numerics

# What a vote says of an element, as `kernels.tally` adds it up, and one that cancels.
POSITIVE, NEGATIVE, CANCELLED = 1, 1 << 4, 1 << 8


@functools.partial(Kernel, static_argnames=("strides", "fold", "dtype"))
def merge_and_vote(
    base, method, experts, states, combined, offset, true, *, strides, fold, dtype
) -> tuple[Array, Array]:
    """Return the block merged under the majority in `combined`, and all elected signs.

    The second array, uint32, has the signs of a few rows together. Its lowest byte is
    the sum of POSITIVE and NEGATIVE; the third has a bit for each row whose votes, not
    all zero, sum to zero, so that the model's majority decides; the fourth one for each
    row whose value is not finite.

    Args:
      base: as all that are not named here, see `kernels.merge`.
      true: what the compiler does not know to be so.
      fold: how many rows together, up to `kernels.FOLDED`.
    """

    def packed() -> Array:
        inputs = base, method, experts, states, combined, offset
        merged = merge_traced(*inputs, strides=strides, dtype=dtype)
        index = numerics.element_index(merged.shape, strides, offset)
        values = methods.task_vectors(method, base, experts, states, index)
        sums = method.combiner.votes(values, method.weights)
        anything = sum(jnp.abs(value) for value in values) > 0
        cancelled = jnp.where(anything, jnp.uint32(CANCELLED), jnp.uint32(0))
        signed = jnp.where(sums > 0, jnp.uint32(POSITIVE), jnp.uint32(NEGATIVE))
        codes = jnp.where(sums == 0, cancelled, signed)
        bits = lax.bitcast_convert_type(merged, unsigned)
        if narrow:
            return bits.astype(jnp.uint32) | codes << 16
        return jnp.stack([bits, codes.astype(unsigned)])

    def nothing() -> Array:
        shape = experts[0].shape
        return jnp.zeros(shape if narrow else (2, *shape), f"uint{max(size, 32)}")

    # For two results XLA on CPUs computes everything twice, but not through a
    # condition, whose one array is taken apart.
    size = dtype.itemsize * 8
    narrow, unsigned = size == 16, f"uint{size}"
    both = lax.cond(true, packed, nothing)
    if narrow:
        bits, codes = both.astype(jnp.uint16), both >> 16
    else:
        bits, codes = both[0], both[1].astype(jnp.uint32)
    infinity = np.array(np.inf, dtype).view(bits.dtype)
    magnitude = bits & (np.iinfo(bits.dtype).max >> 1)
    flags = codes // CANCELLED
    flags += jnp.where(magnitude >= infinity, jnp.uint32(1 << 8), jnp.uint32(0))
    shape = len(codes) // fold, fold, codes.shape[1]
    codes, flags = (codes % CANCELLED).reshape(shape), flags.reshape(shape)
    codes += flags << lax.broadcasted_iota(jnp.uint32, shape, 1) + 16
    merged = lax.bitcast_convert_type(bits, dtype)
    return merged, codes.sum(axis=1, dtype=jnp.uint32)


class Voted(NamedTuple):
    """A block that was merged under a majority.

    Attributes:
      merged: the block.
      finite: whether all of it is.
      ballot: how many more signs are positive than negative.
      cancelled: uint32, where in the flat block votes cancel, in order.
    """

    merged: np.ndarray
    finite: bool
    ballot: int
    cancelled: np.ndarray


def voted(merged: Array, codes: Array, fold: int) -> Voted:
    """Look at what `merge_and_vote` returned, having folded so many rows."""
    codes = np.asarray(codes)
    positive, negative = tally(codes.astype(np.uint8), fold)
    flags = (codes >> np.uint32(16)).astype(np.uint16)
    finite = int(flags.max(initial=0)) < 1 << 8
    flags = flags.astype(np.uint8).reshape(-1)
    some = np.flatnonzero(flags != 0)
    each = np.unpackbits(flags[some], bitorder="little")
    place, row = np.divmod(np.flatnonzero(each), 8)
    first, column = np.divmod(some[place], codes.shape[1])
    positions = (first * fold + row) * codes.shape[1] + column
    positions = np.sort(positions.astype(np.uint32))
    return Voted(np.asarray(merged), finite, positive - negative, positions)
