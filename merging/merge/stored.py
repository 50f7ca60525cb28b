"""Leaves that stay in storage while they are merged, for models too many to hold.

Each is read where a block of it is looked at, laid out as the base's leaf is, and
forgotten again: a merge then holds the base, the result, and a leaf of each expert.
Statistics, in storage or not, are laid out beside one block at a time alike.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from merging.merge import packing
from merging.merge.partition import Partition
from merging.methods import Statistics


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


class Told(Sequence[list[Array] | None]):
    """Each block's statistics of every expert; None where its leaves have none.

    They lie beside a block's leaves from when it is looked at: a mesh has a Gram matrix
    whole on every device, and all of them would be several times a model.

    Args:
      cut: the blocks.
      like: the arrays that they belong to, in the partition's order.
      kind: of the statistics.
      known: {path: statistics} of each expert.
      covered: the paths that have some.
    """

    def __init__(
        self,
        cut: Partition,
        like: Sequence[Array],
        kind: Statistics,
        known: Sequence[Mapping[str, Array | StoredLeaf]],
        covered: set[str],
    ):
        self._cut, self._like, self._kind = cut, like, kind
        self._known, self._covered = known, covered

    def __len__(self) -> int:
        return len(self._cut.blocks)

    def __getitem__(self, b: int) -> list[Array] | None:
        block, paths = self._cut.blocks[b], self._cut.paths
        places = [piece.leaf for piece in block.pieces]
        if paths[places[0]] not in self._covered:
            return None
        found = []
        for of in self._known:
            read = {i: beside(of[paths[i]], self._like[i], self._kind) for i in places}
            found.append(packing.pack(self._cut, block, read))
        return found


def beside(known: Array | StoredLeaf, leaf: Array, kind: Statistics) -> Array:
    """Return statistics on the devices of their leaf, laid out as it is if they can."""
    sharding = leaf.sharding
    if kind.of != "element" and isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    if isinstance(known, StoredLeaf):
        return known.read(sharding)
    return jax.device_put(known, sharding)


def whole(leaf: Array | StoredLeaf, like: Array) -> Array:
    """Return a leaf as an array, read in another's layout if it is stored."""
    return leaf.read(like.sharding) if isinstance(leaf, StoredLeaf) else leaf
