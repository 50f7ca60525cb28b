"""Answers to reductions from blocks whose arrays are in memory.

They are the whole model of a merge in memory, or the one leaf of a streamed block. Keys
that lie on one CPU are computed once and counted by NumPy, which is several times
faster at it than a compiled reduction. Elsewhere, and for leaves that are cut over
devices, each query is one reduction on the devices and stores nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from merging.merge import kernels
from merging.merge.histogram import BINS, IN_MEMORY_BINS, Histogram
from merging.merge.partition import Block, RowMetadata
from merging.merge.reduce import Stage
from merging.methods import CountQuery, Layout, Method, Sums, Votes
from merging.runtime import numerics


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
    ):
        self._everything = everything
        self._blocks, self._metadata, self._layout = blocks, metadata, layout
        self._base, self._experts = base, experts
        self._place = {leaf: i for i, leaf in enumerate(leaves)}
        self._on_host = [_on_one_cpu(array) for array in experts[0]]
        self._kept: tuple[Any, list[np.ndarray | None]] = (None, [])
        self._histogram: tuple[Any, Histogram] | None = None

    def sample(
        self, stage: Stage, expert: int
    ) -> Callable[[int, int], np.ndarray] | None:
        """Return every stride-th key of a leaf, if all keys can be had on the host."""
        if not all(self._on_host):
            return None
        found: dict[int, np.ndarray] = {}

        def sample(leaf: int, stride: int) -> np.ndarray:
            if not found:
                found.update((i, part) for i, _, part in self._pieces(stage, expert))
            return found.get(leaf, np.zeros(0, self._layout.key_dtype))[::stride]

        return sample

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Answer each expert's query."""
        return {e: self._count(stage, e, query) for e, query in queries.items()}

    def sums(self, stage: Stage, reduction: Sums, experts: Sequence[int]) -> np.ndarray:
        """Return the sums over each leaf: float64 [leaves, T]."""
        method = at_stage(stage, experts)
        totals = reduction.init(self._layout, len(experts), method.weights)
        for b, block in enumerate(self._blocks):
            found = np.asarray(self._reduced(stage, reduction, b, experts))
            (piece,) = block.pieces
            place = self._place[piece.leaf]
            reduction.combine(totals, found.reshape(len(found), -1), place)
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
        return sum(int(np.asarray(part, np.int64).sum()) for part in parts)

    def _reduced(self, stage: Stage, reduction: Any, b: int, experts) -> Array:
        """Return what a block adds to a reduction over some experts."""
        method = at_stage(stage, experts)
        block, metadata = self._blocks[b], self._metadata[b]
        return kernels.reduced(
            reduction,
            method,
            self._base[b] if method.needs_base else None,
            [self._experts[i][b] for i in experts],
            [[metadata.spread(state) for state in stage.states[i]] for i in experts],
            metadata.offset,
            strides=block.strides,
        )

    def _count(self, stage: Stage, expert: int, query: CountQuery) -> np.ndarray:
        # The devices are set to work before the host is.
        waiting = list(self._counts_on_devices(stage, expert, query))
        counts = np.zeros(query.threshold.shape, np.int64)
        if any(self._on_host):
            counts += self._count_on_host(stage, expert, query)
        for row, parts in waiting:
            parts = np.asarray(parts, np.int64)
            counts[row] += parts.reshape(len(parts), -1).sum(axis=1)
        return counts

    def _count_on_host(self, stage: Stage, expert: int, query: CountQuery):
        """Return the counts of the keys that lie here, by a histogram of them."""
        key = (stage.name, expert)
        if (
            self._histogram is None
            or self._histogram[0] != key
            or not self._histogram[1].answers(query)
        ):
            rows = len(query.threshold)
            bins = min(IN_MEMORY_BINS * rows, BINS)
            made = Histogram(query, rows, self._layout.key_dtype, bins)
            for leaf, start, part in self._pieces(stage, expert):
                made.add(leaf, start, part)
            made.finish()
            self._histogram = key, made
        return self._histogram[1].answer(query, lambda arrays: None)

    def _counts_on_devices(
        self, stage: Stage, expert: int, query: CountQuery
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
                *self._inputs(stage, expert, b),
                threshold.astype(self._layout.key_dtype),
                numerics.as_index(cutoff, size),
                strides=block.strides,
            )
            yield row, found

    def _pieces(
        self, stage: Stage, expert: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (leaf, start, keys) of each piece that lies on the host."""
        key = (stage.name, expert)
        if self._kept[0] != key:
            dtype = jnp.dtype(self._layout.key_dtype)
            found = [
                np.asarray(
                    kernels.keys(
                        *self._inputs(stage, expert, b),
                        strides=block.strides,
                        dtype=dtype,
                    )
                )
                if self._on_host[b]
                else None
                for b, block in enumerate(self._blocks)
            ]
            self._kept = key, found
        for block, keys in zip(self._blocks, self._kept[1], strict=True):
            for piece, part in block.parts(keys) if keys is not None else ():
                yield self._place[piece.leaf], piece.start, part

    def _inputs(self, stage: Stage, expert: int, b: int) -> tuple:
        """Return what the kernels for one expert take of a block."""
        metadata = self._metadata[b]
        states = [metadata.spread(state) for state in stage.states[expert]]
        arrays = self._base[b], self._experts[expert][b]
        return stage.before[expert], *arrays, states, metadata.offset


def at_stage(stage: Stage, experts: Sequence[int]) -> Method:
    """Return the method whose task vectors are those of some experts at a stage."""
    method = dataclasses.replace(stage.group.method, name="")
    if len(experts) == len(stage.before):
        return method
    (one,) = experts
    return dataclasses.replace(method, transforms=stage.before[one], weights=None)


def _on_one_cpu(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return True
    devices = array.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"
