"""The float leaves of a model in memory, as a few blocks that are merged alike.

A large leaf, or one that is sharded, is a block of its own, in its own shape and
layout. Small leaves on one device are packed: padded to whole rows and laid one below
the other, so that a model of thirty small leaves costs one kernel to compile and one
call, not thirty. What holds of a leaf (its threshold, its mask's key) then becomes a
column with an entry for each row.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.runtime import numerics
from merging.runtime.numerics import Index

ROW = 128
# Packing costs a copy in working precision: for small leaves only, and not too many.
PACKED_LEAF = 2**20
PACKED_BLOCK = 2**24


class Block(NamedTuple):
    """One or more leaves that are merged in one call.

    Attributes:
      leaves: their positions in the layout; several if they are packed.
      shape: of the block's arrays; [rows, ROW] if packed.
      strides: of each axis, in elements of the leaf.
      offset: the index in its leaf of the block's first element; packed: of each
        row's, [rows, 1].
      rows: packed: the first row of each leaf, and the end; otherwise None.
      dtype: the merged leaves'.
      working: the dtype of the arithmetic.
    """

    leaves: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: Index
    rows: np.ndarray | None
    dtype: jnp.dtype
    working: jnp.dtype

    def spread(self, state: Any) -> Any:
        """Return a state's entries for this block, to broadcast against its arrays."""
        if self.rows is None:
            return jax.tree.map(lambda x: x[self.leaves[0]], state)
        counts = np.diff(self.rows)
        return jax.tree.map(
            lambda x: np.repeat(x[list(self.leaves)], counts)[:, None], state
        )

    def segments(self, sizes: np.ndarray) -> list[tuple[int, int, int]]:
        """Return (leaf, start, stop) of each leaf in the flattened block."""
        if self.rows is None:
            return [(leaf, 0, int(sizes[leaf])) for leaf in self.leaves]
        starts = self.rows[:-1] * ROW
        return [
            (leaf, int(start), int(start + sizes[leaf]))
            for leaf, start in zip(self.leaves, starts, strict=True)
        ]


def plan(
    leaves: Sequence[Array], working: Sequence[jnp.dtype], pack: bool
) -> list[Block]:
    """Return blocks that cover the leaves.

    Args:
      leaves: the arrays whose dtype and layout the merged ones take.
      working: what each is computed in.
      pack: whether the method lets leaves be cut anywhere.
    """
    blocks: list[Block] = []
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        single = len(leaf.sharding.device_set) == 1
        if pack and single and 0 < leaf.size <= PACKED_LEAF:
            device = next(iter(leaf.sharding.device_set))
            group = groups.setdefault((device, leaf.dtype, working[i]), [])
            if group and sum(leaves[j].size for j in group) + leaf.size > PACKED_BLOCK:
                blocks.append(_packed(group, leaves, working[i]))
                group.clear()
            group.append(i)
        else:
            strides = numerics.row_major_strides(leaf.shape)
            offset = numerics.as_index(0, leaf.size)
            blocks.append(
                Block((i,), leaf.shape, strides, offset, None, leaf.dtype, working[i])
            )
    blocks += [_packed(group, leaves, key[2]) for key, group in groups.items()]
    return blocks


def pack(block: Block, leaves: Sequence[Array]) -> Array:
    """Return a block's array, from all of a model's leaves."""
    if block.rows is None:
        return leaves[block.leaves[0]]
    return _pack([leaves[i] for i in block.leaves], dtype=block.working)


def unpack(block: Block, merged: Array, old: Sequence[Array] | None, like) -> list:
    """Return a merged block's leaves.

    Args:
      block: where they lie.
      merged: the block's array.
      old: leaves of the same shapes and dtypes to be written over, or None.
      like: leaves of the same shapes.
    """
    if block.rows is None:
        return [merged]
    shapes = tuple(like[i].shape for i in block.leaves)
    if old is None:
        return _unpack(merged, shapes)
    return _unpack_over(merged, shapes, [old[i] for i in block.leaves])


def _packed(group: list[int], leaves: Sequence[Array], working: jnp.dtype) -> Block:
    counts = [-(-leaves[i].size // ROW) for i in group]
    rows = np.concatenate([[0], np.cumsum(counts)])
    first = np.repeat(rows[:-1], counts)
    starts = (np.arange(rows[-1]) - first)[:, None] * ROW
    # A block's columns have stride 1; its rows' starts are in the offset.
    return Block(
        tuple(group),
        (int(rows[-1]), ROW),
        (0, 1),
        numerics.as_index(starts, PACKED_LEAF),
        rows,
        leaves[group[0]].dtype,
        working,
    )


@partial(jax.jit, static_argnames="dtype")
def _pack(leaves: list[Array], dtype: jnp.dtype) -> Array:
    rows = [
        jnp.pad(x.reshape(-1).astype(dtype), (0, -x.size % ROW)).reshape(-1, ROW)
        for x in leaves
    ]
    return jnp.concatenate(rows)


def _split(merged: Array, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    leaves, row = [], 0
    for shape in shapes:
        size = math.prod(shape)
        end = row + -(-size // ROW)
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
