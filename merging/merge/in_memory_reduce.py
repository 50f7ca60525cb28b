"""Answers to reductions from blocks whose arrays are in memory.

They are the whole model of a merge in memory, or the one leaf of a streamed block.
Where all keys lie on one CPU, NumPy selects among them, which is several times as fast
as counting. Elsewhere, and for leaves that are cut over devices, each query is one
reduction on the devices and stores nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.merge import kernels, on_host, search
from merging.merge.partition import Block, Piece, RowMetadata
from merging.merge.reduce import Stage
from merging.methods import CountQuery, Layout, Sums, Threshold, Votes
from merging.runtime import numerics, processes
from merging.runtime.sharding import to_host


class InMemoryAnswers:
    """Blocks of one group of leaves, in memory.

    Args:
      blocks: all of the group's.
      metadata: of each.
      base: an array for each block; None where the method needs none.
      experts: [expert] an array for each block.
      layout: of the leaves.
      leaves: their places among the blocks' pieces.
      everything: whether these are all the leaves that the method merges, so that their
        votes are the model's.
      placed: an array of each block's layout, where the experts' must not be read yet.
    """

    together = False

    def __init__(
        self,
        blocks: Sequence[Block],
        metadata: Sequence[RowMetadata],
        base: Sequence[Array | None],
        experts: Sequence[Sequence[Array]],
        layout: Layout,
        leaves: Sequence[int],
        everything: bool = True,
        placed: Sequence[Array] | None = None,
    ):
        self._everything = everything
        self._blocks, self._metadata, self._layout = blocks, metadata, layout
        self._base, self._experts = base, experts
        self._place = {leaf: i for i, leaf in enumerate(leaves)}
        # Packed leaves are small, and counted one by one, wherever they lie.
        self._on_host = [
            len(block.pieces) > 1 or on_host.on_one_cpu(array)
            for block, array in zip(blocks, placed or experts[0], strict=True)
        ]
        self._kept: tuple[Any, list[tuple[Piece, list[np.ndarray]]]] = (None, [])

    def selected(
        self, stage: Stage, number: int, wanted: Threshold
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the rule at once if all keys are on the host."""
        if not all(self._on_host):
            return None
        keys: list[Sequence[np.ndarray]] = [()] * len(self._layout.paths)
        for leaf, parts in self._keys(stage, number):
            keys[leaf] = parts
        return search.selected(self._layout, wanted, keys)

    def sample(self, stage: Stage, number: int) -> None:
        """Return nothing: a sample would take as long as a count."""

    def ends(self, stage: Stage, number: int) -> None:
        """Return nothing: counts tell."""

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Answer each search's query."""
        return {i: self._count(stage, i, query) for i, query in queries.items()}

    def sums(self, stage: Stage, reduction: Sums, experts: Sequence[int]) -> np.ndarray:
        """Return the sums over each leaf: float64 [leaves, T]."""
        method = stage.method(experts)
        totals = reduction.init(self._layout, len(experts), method.weights)
        spread = False
        for b, block in enumerate(self._blocks):
            found = self._reduced(stage, reduction, b, experts)
            (piece,) = block.pieces
            place = self._place[piece.leaf]
            parts = [found]
            if isinstance(found, Array):
                spread |= not found.is_fully_addressable
                # Each part once, by the process that has it: no sum is gathered.
                parts = [x.data for x in found.addressable_shards if x.replica_id == 0]
            for part in map(np.asarray, parts):
                reduction.combine(totals, part.reshape(len(part), -1), place)
        if spread:
            processes.all_reduce([totals])
        return reduction.finish(totals, self._layout.wide)

    def votes(self, stage: Stage, reduction: Votes) -> int | None:
        """Return elements with a positive sum of votes less those negative."""
        if not self._everything:
            return None
        everyone = range(len(self._experts))
        parts = [
            self._reduced(stage, reduction, b, everyone)
            for b in range(len(self._blocks))
        ]
        return sum(int(to_host(part).sum(dtype=np.int64)) for part in parts)

    def _reduced(self, stage: Stage, reduction: Any, b: int, experts) -> Any:
        """Return what a block adds to a reduction over some experts."""
        method, *inputs = self._inputs(stage, experts, b)
        block = self._blocks[b]

        def reduced(*inputs):
            return kernels.reduced(reduction, method, *inputs, strides=block.strides)

        compute = on_host.summed if isinstance(reduction, Sums) else on_host.computed
        return compute(reduced, block, method, *inputs)

    def _count(self, stage: Stage, number: int, query: CountQuery) -> np.ndarray:
        # The devices are set to work before the host is.
        waiting = list(self._counts_on_devices(stage, number, query))
        counts = np.zeros(query.threshold.shape, np.int64)
        for leaf, parts in self._keys(stage, number):
            row, start = leaf if len(query.threshold) > 1 else 0, 0
            for keys in parts:
                counts[row] += _kept(keys, start, query, row)
                start += len(keys)
        for row, parts in waiting:
            parts = to_host(parts).astype(np.int64)
            counts[row] += parts.reshape(len(parts), -1).sum(axis=1)
        return counts

    def _counts_on_devices(
        self, stage: Stage, number: int, query: CountQuery
    ) -> Iterator[tuple[int, Array]]:
        """Yield (row of the query, counts that are not waited for yet)."""
        for b, block in enumerate(self._blocks):
            if self._on_host[b]:
                continue
            (piece,) = block.pieces
            leaf = self._place[piece.leaf]
            row = leaf if len(query.threshold) > 1 else 0
            if (query.threshold[row] < 0).all():
                continue
            threshold = np.maximum(query.threshold[row], 0)
            size = piece.stop
            cutoff = np.full(len(threshold), size)
            if query.cutoff is not None:
                cutoff = query.cutoff[row]
            found = kernels.count(
                *self._ranked(stage, number, b),
                threshold.astype(self._layout.key_dtype),
                numerics.as_index(cutoff, size),
                strides=block.strides,
            )
            yield row, found

    def _keys(
        self, stage: Stage, number: int
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield (leaf, its keys in parts) of those on the host; the last are kept."""
        ranked = (stage.name, *stage.experts(number))
        if self._kept[0] != ranked:
            found = []
            for b, block in enumerate(self._blocks):
                if self._on_host[b]:
                    found += block.split(self._keys_of(stage, number, b))
            self._kept = ranked, found
        for piece, parts in self._kept[1]:
            yield self._place[piece.leaf], parts

    def _keys_of(self, stage: Stage, number: int, b: int) -> list[np.ndarray]:
        """Return the keys of a block, some rows in each array."""
        method, selection, *inputs = self._ranked(stage, number, b)
        strides, dtype = self._blocks[b].strides, jnp.dtype(self._layout.key_dtype)

        def keys(*inputs):
            return kernels.keys(
                method, selection, *inputs, strides=strides, dtype=dtype
            )

        parts = on_host.in_parts(keys, self._blocks[b], method, *inputs)
        return [np.asarray(part) for part in parts]

    def _ranked(self, stage: Stage, number: int, b: int) -> tuple:
        """Return what the kernels of a search take of a block."""
        method, *rest = self._inputs(stage, stage.experts(number), b)
        return method, stage.selection, *rest

    def _inputs(self, stage: Stage, experts: Sequence[int], b: int) -> tuple:
        """Return what the kernels for some experts take of a block."""
        method, metadata = stage.method(experts), self._metadata[b]
        base = self._base[b] if method.needs_base else None
        arrays = [self._experts[i][b] for i in experts]
        states = [
            [metadata.spread(state) for state in stage.states[i]] for i in experts
        ]
        selected = [metadata.spread(state) for state in stage.selected]
        return method, base, arrays, states, selected, metadata.offset


def _kept(keys: np.ndarray, start: int, query: CountQuery, row: int) -> list[int]:
    """Return how many of a leaf's keys each trial of a query's row would keep.

    Args:
      keys: some of the leaf's.
      start: the index of their first in the leaf.
      query: what is asked.
      row: of the query.
    """
    counts = []
    for trial, threshold in enumerate(query.threshold[row]):
        edge = keys.dtype.type(max(threshold, 0))
        if query.cutoff is None:
            counts.append(np.count_nonzero(keys >= edge))
        else:
            before = max(int(query.cutoff[row][trial]) - start, 0)
            early = np.count_nonzero(keys[:before] == edge)
            counts.append(np.count_nonzero(keys > edge) + early)
    return counts
