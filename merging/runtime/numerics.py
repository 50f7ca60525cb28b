"""Exact magnitude selection and counter-based masks: what every layout must agree on.

Four things here make the same bits come out on any mesh and for any block size:

* an element is known by its **index in the whole leaf** (row-major), computed from
  iotas, so a sharded array is never flattened (that would all-gather it);
* magnitudes are compared by their **bit pattern**, which orders non-negative floats
  as unsigned integers do, so a threshold is exact and selection needs counts only;
* random masks are a **hash of the index**, so no generator's state has an order;
* every operation **rounds by itself**: nothing is left to the compiler's discretion.
"""

import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

# A count of at most this many elements fits an int32 on the device.
COUNT_LIMIT = 2**31 - 1
# Neighbours in a row whose float terms are summed on the device; a power of two.
PIECE = 1024
_WORD = 0xFFFFFFFF
_ROWS = Layout(major_to_minor=(0, 1))


class Index(NamedTuple):
    """Element indices as uint32 words; `high` is None where all are below 2**32."""

    low: Array
    high: Array | None


def as_index(values: int | np.ndarray, elements: int) -> Index:
    """Return host integers below or equal to `elements`, a leaf's size, as words."""
    values = np.asarray(values, np.uint64)
    low = (values & np.uint64(_WORD)).astype(np.uint32)
    if elements <= _WORD:
        return Index(low, None)
    return Index(low, (values >> np.uint64(32)).astype(np.uint32))


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return how far apart neighbours along each axis are, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def element_index(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: Index
) -> Index:
    """Return each element's index in its leaf, for a block of a leaf.

    Args:
      shape: of the block.
      strides: the *leaf's* row-major strides, one for each axis of the block.
      offset: the index of the block's first element; broadcasts against `shape`.
    """
    low = jnp.broadcast_to(jnp.asarray(offset.low, jnp.uint32), shape)
    high = offset.high
    if high is not None:
        high = jnp.broadcast_to(jnp.asarray(high, jnp.uint32), shape)
    for axis, stride in enumerate(strides):
        steps = lax.broadcasted_iota(jnp.uint32, shape, axis)
        step_low = steps * np.uint32(stride & _WORD)
        total = low + step_low
        if high is not None:
            carry = (total < low).astype(jnp.uint32)
            high = high + _product_high(steps, stride) + carry
        low = total
    return Index(low, high)


def _product_high(steps: Array, stride: int) -> Array:
    """Return bits 32-63 of uint32 `steps` times `stride`, in 16-bit halves."""
    a1, a0 = steps >> 16, steps & np.uint32(0xFFFF)
    b1, b0 = np.uint32(stride >> 16 & 0xFFFF), np.uint32(stride & 0xFFFF)
    middle = a1 * b0 + (a0 * b0 >> 16)
    other = a0 * b1 + (middle & np.uint32(0xFFFF))
    upper = a1 * b1 + (middle >> 16) + (other >> 16)
    return upper + steps * np.uint32(stride >> 32 & _WORD)


def precedes(index: Index, cutoff: Index) -> Array:
    """Return where `index` < `cutoff`, elementwise."""
    below = index.low < cutoff.low
    if index.high is None:
        return below
    return (index.high < cutoff.high) | ((index.high == cutoff.high) & below)


def working_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """Return what a leaf of these dtypes is computed in: float32, or float64 if any."""
    wide = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def scaled(values: Array, factor: Array) -> Array:
    """Return values times a finite scalar, rounded before anything else uses it.

    Compilers contract a product and a sum into one fused multiply-add where they see
    fit, which may differ with shape and layout and changes the last bit. An integer
    addition between the two keeps them apart: of 0, as a finite number equals itself,
    which the compiler cannot know. Of a factor that is a constant it does know it, so
    there the values are asked, at the price of a comparison each.
    """
    asked = factor if isinstance(factor, jax.core.Tracer) else values
    factor = jnp.asarray(factor, values.dtype)
    bits = jnp.uint64 if values.dtype == jnp.float64 else jnp.uint32
    zero = (asked != asked).astype(bits)
    product = lax.bitcast_convert_type(values * factor, bits)
    return lax.bitcast_convert_type(product + zero, values.dtype)


def divided(values: Array, divisor: Array) -> Array:
    """Return values over a scalar, correctly rounded.

    XLA may replace a division by a scalar with a product by its reciprocal, and does
    so or not depending on the sharding; a divisor that looks like an array prevents it.
    And XLA on CPUs stores a quotient that is used several times, but computes a choice
    in place: this one is between NaN and NaN.
    """
    nan, divisor = values != values, jnp.asarray(divisor, values.dtype)
    return jnp.where(nan, values, values / jnp.where(nan, values, divisor))


def key_top(key_dtype: jnp.dtype) -> int:
    """Return an integer above every finite or infinite magnitude's key."""
    narrow = np.dtype(key_dtype) == np.uint32
    return (0x7F80_0000 if narrow else 0x7FF0_0000_0000_0000) + 1


def magnitude_keys(values: Array, key_dtype: jnp.dtype) -> Array:
    """Return unsigned integers that order as |values| do: the bits less the sign.

    `key_dtype` is uint32, or uint64 where the model holds a float64 leaf: then its
    float32 leaves are widened, exactly, so that one ranking covers both.
    """
    wide = jnp.dtype(key_dtype) == jnp.uint64
    bits = lax.bitcast_convert_type(
        values.astype(jnp.float64 if wide else jnp.float32), key_dtype
    )
    return bits & jnp.asarray(2 ** (63 if wide else 31) - 1, key_dtype)


def kept(keys: Array, index: Index, threshold: Array, cutoff: Index | None) -> Array:
    """Return which elements a trim keeps: above the threshold, or on it and early.

    An element on the threshold is kept if its index comes before `cutoff`; with None,
    or the leaf's size, all of them are.
    """
    if cutoff is None:
        return keys >= threshold
    return (keys > threshold) | ((keys == threshold) & precedes(index, cutoff))


def kept_in_rows(keys: Array, rank: Array, exact: bool) -> Array:
    """Return which elements are among the `rank` largest of their row (last axis).

    Bisection over the key's bits, and with `exact` over the bits of the column, so
    that of the elements on the threshold only the first are kept. Each step is one
    count along the row: a row that is cut over devices costs an all-reduce of the
    counts and is gathered nowhere.

    Args:
      keys: [..., columns] unsigned.
      rank: int32, scalar or of each row [..., 1]; 0 keeps nothing.
      exact: break ties by column; otherwise keep all of them.
    """
    columns = keys.shape[-1]
    column = lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)

    def largest(bits: int, start: Array, chosen) -> Array:
        def step(i, found):
            trial = found | (jnp.ones_like(found) << (bits - 1 - i).astype(found.dtype))
            enough = jnp.sum(chosen(trial), -1, jnp.int32, keepdims=True) >= rank
            return jnp.where(enough, trial, found)

        return lax.fori_loop(0, bits, step, start)

    rows = (*keys.shape[:-1], 1)
    bits = keys.dtype.itemsize * 8 - 1
    threshold = largest(bits, jnp.zeros(rows, keys.dtype), lambda key: keys >= key)
    keep = keys >= threshold
    if exact:
        # The most columns that can be cut off the end and still leave `rank`.
        def first(cut: Array) -> Array:
            early = column < columns - cut
            return (keys > threshold) | ((keys == threshold) & early)

        cut = largest(columns.bit_length(), jnp.zeros(rows, jnp.int32), first)
        keep = first(cut)
    return keep & (rank > 0)


def kept_in_rows_on_host(
    keys: np.ndarray, rank: np.ndarray, exact: bool, part: int = 2**16
) -> np.ndarray:
    """Return what `kept_in_rows` does, by NumPy, in a fraction of the time: bool.

    Args:
      keys: [..., columns] unsigned.
      rank: of each row [..., 1], or of all; one above `columns` keeps the whole row.
      exact: as there.
      part: elements that are worked on at a time, to stay in the cache.
    """
    columns = keys.shape[-1]
    rows = np.ascontiguousarray(keys).reshape(-1, columns)
    ranks = np.broadcast_to(rank, (*keys.shape[:-1], 1)).reshape(-1)
    # What fills up a block has another leaf's.
    ranks = np.minimum(ranks, columns)
    kept, step = np.zeros(rows.shape, bool), max(part // columns, 1)
    for wanted in set(np.unique(ranks).tolist()) - {0}:
        which = np.flatnonzero(ranks == wanted)
        for at in range(0, len(which), step):
            here = which[at : at + step]
            if here[-1] - here[0] < len(here):  # neighbours: they need no copy
                here = slice(here[0], here[-1] + 1)
            some = rows[here]
            last = columns - wanted
            ordered = np.partition(some, last, axis=1)
            edge = ordered[:, last : last + 1]
            found = some >= edge
            if exact:
                places = np.count_nonzero(ordered[:, last:] == edge, axis=1)
                _drop_last(found, some == edge, places)
            kept[here] = found
    return kept.reshape(keys.shape)


def _drop_last(kept: np.ndarray, tied: np.ndarray, places: np.ndarray) -> None:
    """Of each row's tied elements keep only so many, the first; in place."""
    flat = np.flatnonzero(tied)
    counts = np.bincount(flat // tied.shape[1], minlength=len(tied))
    ends = np.cumsum(counts) - counts + places
    late = np.arange(len(flat)) >= np.repeat(ends, counts)
    kept.reshape(-1)[flat[late]] = False


def count(mask: Array) -> Array:
    """Return the number of True elements: int32 scalar, or [leading] if huge.

    A mask past int32's reach is counted per slice of its leading axis; the host adds
    the parts as int64. A mask whose slices are past it too must be cut into blocks.
    """
    return total(mask.astype(jnp.int32))


def total(values: Array) -> Array:
    """Return the sum of int32 values within ±1, in parts as `count` describes."""
    if values.size <= COUNT_LIMIT:
        return jnp.sum(values, dtype=jnp.int32)
    if values.ndim < 2 or values.size // values.shape[0] > COUNT_LIMIT:
        raise ValueError(f"a block of shape {values.shape} cannot be counted in int32")
    return jnp.sum(values, axis=range(1, values.ndim), dtype=jnp.int32)


def product(one: Array, other: Array) -> Array:
    """Return the elementwise product, rounded before anything else uses it.

    As in `scaled`: an integer addition keeps a compiler from fusing it with a sum. The
    number added is 0 for finite factors, which the compiler cannot know; others are
    refused before anything is published.
    """
    bits = jnp.uint64 if one.dtype == jnp.float64 else jnp.uint32
    zero = ((one != one) | (other != other)).astype(bits)
    found = lax.bitcast_convert_type(one * other, bits)
    return lax.bitcast_convert_type(found + zero, one.dtype)


def matmul(one: Array, other: Array) -> Array:
    """Return the product of two matrices, by the same routine whatever is around it.

    XLA takes another one, which adds in another order, where an operand lies the other
    way around in memory, or where a transposition is folded into the product.
    """
    one, other = (with_layout_constraint(x, _ROWS) for x in (one, other))
    found = jnp.matmul(one, other, precision=lax.Precision.HIGHEST)
    return with_layout_constraint(found, _ROWS)


def piece_sums(values: Array) -> Array:
    """Return sums of `PIECE` neighbours along the last axis: [..., pieces].

    Halves are added to halves until one is left, so the order of the additions is the
    same whatever the block, the device or the compiler.
    """
    values = jnp.atleast_1d(values)
    pieces = -(-values.shape[-1] // PIECE)
    short = pieces * PIECE - values.shape[-1]
    pad = [(0, 0)] * (values.ndim - 1) + [(0, short)]
    values = jnp.pad(values, pad).reshape(*values.shape[:-1], pieces, PIECE)
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def row_sums(values: Array) -> Array:
    """Return each row's sum (last axis), in an order that is always the same: [..., 1].

    The sums of pieces are pieces again, until one is left.
    """
    while values.shape[-1] > 1:
        values = piece_sums(values)
    return values


def mask_key(seed: int, expert: str, path: str) -> tuple[int, int]:
    """Return the two uint32 words that key one expert's mask of one leaf.

    crc32 of the names (Python's `hash` is salted anew in every process), mixed with
    the seed by splitmix64 so that neighbouring seeds share nothing.
    """
    words = zlib.crc32(expert.encode()) << 32 | zlib.crc32(path.encode())
    mixed = _splitmix64(_splitmix64(seed & 2**64 - 1) ^ words)
    return mixed & _WORD, mixed >> 32


def mask_bound(density: float) -> int:
    """Return the largest hash that is kept: round(density * 2**32) - 1, at least 0."""
    return min(max(round(density * 2**32), 1), 2**32) - 1


def random_bits(index: Index, key: tuple[Array, Array]) -> Array:
    """Return uniform uint32 bits, a pure function of the element index and the key.

    The three-multiply mix "triple32" (Wellons, https://nullprogram.com/blog/2018/07/31/;
    avalanche bias 0.02 %), with the key's second word and the index's high word
    entering between its rounds. An eighth of Threefry's cost, and no scratch.
    """
    bits = index.low ^ key[0]
    bits = (bits ^ (bits >> 17)) * np.uint32(0xED5AD4BB)
    bits = bits ^ key[1]
    if index.high is not None:
        bits = bits ^ _triple32(index.high)  # maps 0 to 0: narrow and wide agree
    bits = (bits ^ (bits >> 11)) * np.uint32(0xAC4C1B51)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x31848BAB)
    return bits ^ (bits >> 14)


def _triple32(bits: Array) -> Array:
    bits = (bits ^ (bits >> 17)) * np.uint32(0xED5AD4BB)
    bits = (bits ^ (bits >> 11)) * np.uint32(0xAC4C1B51)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x31848BAB)
    return bits ^ (bits >> 14)


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 2**64 - 1
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 2**64 - 1
    return state ^ (state >> 31)


@jax.jit
def all_finite(values: Array) -> Array:
    """Return whether no element is NaN or infinite: a bool scalar."""
    return jnp.all(jnp.isfinite(values))
