"""Leaves that stay in storage while they are merged, for models too many to hold.

Each is read where a block of it is looked at, laid out as the base's leaf is, and
forgotten again: a merge then holds the base, the result, and a leaf of each expert.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import Array

from merging.merge import packing
from merging.merge.partition import Partition


class StoredLeaf:
    """A leaf of an expert that is read whenever it is needed.

    Args:
      shape: its shape.
      dtype: its dtype.
      read: sharding -> the leaf so laid out. Of several processes all call it, in one
        order.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: np.dtype,
        read: Callable[[jax.sharding.Sharding], Array],
    ):
        self.shape, self.dtype, self.read = tuple(shape), np.dtype(dtype), read


class Blocks(Sequence[Array]):
    """A model's blocks in memory, those of stored leaves from storage each time.

    Args:
      cut: the blocks.
      leaves: the model's float leaves, in the partition's order.
      like: the arrays whose layouts they take.
    """

    def __init__(
        self,
        cut: Partition,
        leaves: Sequence[Array | StoredLeaf],
        like: Sequence[Array],
    ):
        self._cut, self._leaves, self._like = cut, leaves, like

    def __len__(self) -> int:
        return len(self._cut.blocks)

    def __getitem__(self, b: int) -> Array:
        block = self._cut.blocks[b]
        places = [piece.leaf for piece in block.pieces]
        read = {i: whole(self._leaves[i], self._like[i]) for i in places}
        return packing.pack(self._cut, block, read)


def whole(leaf: Array | StoredLeaf, like: Array) -> Array:
    """Return a leaf as an array, read in another's layout if it is stored."""
    return leaf.read(like.sharding) if isinstance(leaf, StoredLeaf) else leaf
