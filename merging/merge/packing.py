"""Small leaves in memory, packed into the rows of one block and taken out again."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from merging.merge.cutting import PACKED_ROW
from merging.merge.partition import Block, Partition


def pack(
    cut: Partition, block: Block, leaves: Sequence[Array] | Mapping[int, Array]
) -> Array:
    """Return a block's array, from a model's float leaves by their places."""
    if block.shape is not None:
        return leaves[block.pieces[0].leaf]
    (working,) = cut.kinds[block.kind].read
    return _pack([leaves[piece.leaf] for piece in block.pieces], dtype=working)


def unpack(
    cut: Partition, block: Block, merged: Array, old: Sequence[Array] | None
) -> list[Array]:
    """Return a merged block's leaves.

    Args:
      cut: the partition.
      block: where they lie.
      merged: the block's array.
      old: leaves of the same shapes and dtypes to be written over, or None.
    """
    if block.shape is not None:
        return [merged]
    places = [piece.leaf for piece in block.pieces]
    shapes = tuple(cut.shapes[i] for i in places)
    if old is None:
        return _unpack(merged, shapes)
    return _unpack_over(merged, shapes, [old[i] for i in places])


@partial(jax.jit, static_argnames="dtype")
def _pack(leaves: list[Array], dtype: jnp.dtype) -> Array:
    rows = [
        jnp.pad(x.reshape(-1).astype(dtype), (0, -x.size % PACKED_ROW)) for x in leaves
    ]
    return jnp.concatenate([row.reshape(-1, PACKED_ROW) for row in rows])


def _split(merged: Array, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    leaves, row = [], 0
    for shape in shapes:
        size = math.prod(shape)
        end = row + -(-size // PACKED_ROW)
        leaves.append(merged[row:end].reshape(-1)[:size].reshape(shape))
        row = end
    return leaves


_unpack = jax.jit(_split, static_argnums=1)
# The old leaves are not read: they are given so that their buffers are written over.
_unpack_over = jax.jit(
    lambda merged, shapes, old: _split(merged, shapes),
    static_argnums=1,
    donate_argnums=2,
    keep_unused=True,
)
