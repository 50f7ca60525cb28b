"""What is computed for one block on the devices: the compiled functions.

A block is an array [rows, columns] for each model; what holds of a leaf (a threshold,
a mask's key) is a column [rows, 1], and so is the index of each row's first element.
Each function returns one large array: XLA on CPUs computes everything twice for two.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from merging import methods
from merging.runtime import numerics

# What a vote says of an element, and where its byte is in a packed word.
POSITIVE, NEGATIVE, CANCELLED = 1, 2, 4
_CODE_BYTE = 2 if sys.byteorder == "little" else 1
# What `windowed` says of one.
ABOVE, INSIDE = 1, 2


@partial(jax.jit, static_argnames="dtype")
def merge(method, base, experts, states, offset, verdict, *, dtype) -> Array:
    """Return the merged block; NaN wherever any input is NaN or infinite.

    Args:
      method: name left out, so that only its structure compiles.
      base: [rows, columns], or None.
      experts: of each expert, likewise.
      states: [expert][transform].
      offset: each row's first element, as `numerics.Index`.
      verdict: of the combiner.
      dtype: of the result.
    """
    index = _index(experts[0], offset)
    merged = methods.merge_block(method, base, experts, states, verdict, index, dtype)
    # x − x is 0 for a finite x and NaN for any other.
    sound = sum((x - x) for x in _widened(base, experts)) == 0
    return jnp.where(sound, merged, jnp.nan)


@partial(jax.jit, static_argnames="dtype")
def merge_and_vote(method, base, experts, states, offset, *, dtype) -> Array:
    """Return the block merged under a positive majority, and each elected sign.

    In one array of unsigned integers, to be taken apart by `unpacked`: of a 16-bit
    result the sign's code above the bits; of a wider one the codes after all the bits.
    """
    merged = merge(method, base, experts, states, offset, True, dtype=dtype)
    codes = _votes(method, base, experts, states, offset)
    size = dtype.itemsize * 8
    bits = lax.bitcast_convert_type(merged, f"uint{size}")
    if size == 16:
        return bits.astype(jnp.uint32) | codes.astype(jnp.uint32) << 16
    return jnp.stack([bits, codes.astype(bits.dtype)])


def unpacked(packed: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return what `merge_and_vote` packed: the merged block, and flat uint8 codes."""
    if dtype.itemsize == 2:
        codes = packed.reshape(-1).view(np.uint8)[_CODE_BYTE::4]
        return packed.astype(np.uint16).view(dtype), np.ascontiguousarray(codes)
    bits, codes = packed
    return bits.view(dtype), codes.reshape(-1).astype(np.uint8)


def _votes(method, base, experts, states, offset) -> Array:
    """Return each element's elected sign: POSITIVE, NEGATIVE, 0, or CANCELLED.

    0 where all experts are zero; CANCELLED where their votes, not all zero, sum to
    zero, so that the model's majority decides.
    """
    index = _index(experts[0], offset)
    values = methods.task_vectors(method, base, experts, states, index)
    sums = method.combiner.votes(values, method.weights)
    anything = sum(jnp.abs(value) for value in values) > 0
    cancelled = jnp.where(anything, jnp.uint8(CANCELLED), jnp.uint8(0))
    signed = jnp.where(sums > 0, jnp.uint8(POSITIVE), jnp.uint8(NEGATIVE))
    return jnp.where(sums == 0, cancelled, signed)


@partial(jax.jit, static_argnames="dtype")
def keys(transforms, base, expert, states, offset, *, dtype) -> Array:
    """Return the magnitude keys of one expert's Δ after some transforms."""
    index = _index(expert, offset)
    return methods.magnitude_keys(transforms, base, expert, states, index, dtype)


@partial(jax.jit, static_argnames="dtype")
def windowed(transforms, base, expert, states, offset, low, bins, *, dtype) -> Array:
    """Return, as uint8, where each magnitude key lies: ABOVE a window, INSIDE, or 0.

    Args:
      transforms: of one expert, before the one that asks.
      base: [rows, columns].
      expert: likewise.
      states: of the transforms.
      offset: each row's first element.
      low: the window's first key.
      bins: its width.
      dtype: of keys.
    """
    found = keys(transforms, base, expert, states, offset, dtype=dtype)
    # What lies below the window wraps around to the far end.
    inside = (found - low) < bins
    above = jnp.where(found >= low, jnp.uint8(ABOVE), jnp.uint8(0))
    return jnp.where(inside, jnp.uint8(INSIDE), above)


def _index(like: Array, offset: numerics.Index) -> numerics.Index:
    # Columns have stride 1; rows begin where the offset says.
    return numerics.element_index(like.shape, (0, 1), offset)


def _widened(base: Any, experts: Any) -> list[Array]:
    inputs = experts if base is None else [base, *experts]
    dtype = numerics.working_dtype(*(x.dtype for x in inputs))
    return [x.astype(dtype) for x in inputs]
