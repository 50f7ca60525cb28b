"""Answers to a method's statistics (`methods.statistics`) from arrays in memory."""

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from merging import methods
from merging.merge import memory_kernels as kernels
from merging.merge.memory_blocks import Block
from merging.methods import Kept, Layout, Method
from merging.runtime import numerics


def drive(inquiry: Generator, answer: Callable[[Any], Any]) -> Any:
    """Answer a statistic's questions until it returns its state."""
    reply = None
    while True:
        try:
            question = inquiry.send(reply)
        except StopIteration as stop:
            return stop.value
        reply = answer(question)


def count_ballot(
    method: Method,
    blocks: Sequence[Block],
    base: Sequence[Array],
    experts: Sequence[Sequence[Array]],
    states: Sequence[Sequence[Any]],
) -> int:
    """Answer `Ballot`: elements with a positive sum of votes, less those negative.

    Args:
      method: whose combiner asks.
      blocks: the model's.
      base: an array for each block.
      experts: [expert][block].
      states: [expert][transform].
    """
    parts = [
        kernels.ballot(
            method,
            base[b],
            [expert[b] for expert in experts],
            [[block.spread(state) for state in of] for of in states],
            block.offset,
            strides=block.strides,
        )
        for b, block in enumerate(blocks)
    ]
    return sum(int(np.asarray(part, np.int64).sum()) for part in parts)


class Counter:
    """Counts magnitudes of one expert's Δ, as the transforms before a trim leave it.

    On a CPU the keys are made once and counted by NumPy, which is several times
    faster at it than a compiled reduction. Elsewhere, and for leaves that are cut
    over devices, each question is one reduction on the devices and stores nothing.
    """

    def __init__(
        self,
        layout: Layout,
        blocks: Sequence[Block],
        base: Sequence[Array],
        expert: Sequence[Array],
    ):
        self._layout, self._blocks = layout, blocks
        self._base, self._expert = base, expert
        self._key_dtype = jnp.dtype(jnp.uint64 if layout.wide else jnp.uint32)
        self._on_host = [
            block.rows is not None or _on_one_cpu(array)
            for block, array in zip(blocks, expert, strict=True)
        ]

        self._where = {
            leaf: (b, start, stop)
            for b, block in enumerate(blocks)
            for leaf, start, stop in block.segments(layout.sizes)
        }

    def states(
        self, transforms: tuple[methods.Transform, ...], name: str, seed: int
    ) -> list[Any]:
        """Return the state of each transform for this expert."""
        found: list[Any] = []
        for i, transform in enumerate(transforms):
            before = _Before(self, transforms[:i], tuple(found))
            sample = before.sample if all(self._on_host) else None
            inquiry = transform.inquire(self._layout, name, seed, sample)
            found.append(drive(inquiry, before.count))
        return found

    def host_keys(self, transforms, states) -> list[np.ndarray | None]:
        """Return the magnitude keys of each block that is counted here, flat."""
        return [
            np.asarray(
                kernels.keys(
                    *self._inputs(b, transforms, states),
                    strides=block.strides,
                    dtype=self._key_dtype,
                )
            ).reshape(-1)
            if self._on_host[b]
            else None
            for b, block in enumerate(self._blocks)
        ]

    def leaf_keys(self, keys: list[np.ndarray | None], leaf: int) -> np.ndarray:
        """Return one leaf's part of `host_keys`."""
        b, start, stop = self._where[leaf]
        return keys[b][start:stop]

    def count_on_host(
        self, keys: list[np.ndarray | None], question: Kept
    ) -> np.ndarray:
        """Return the counts of what is counted here: int64 [leaves or 1, trials]."""
        counts = np.zeros(question.threshold.shape, np.int64)
        for (row, start, stop), flat in self._pieces(keys, len(counts)):
            for trial in np.flatnonzero(question.threshold[row] >= 0):
                cutoff = (
                    None if question.cutoff is None else question.cutoff[row, trial]
                )
                threshold = question.threshold[row, trial]
                counts[row, trial] += _count_kept(flat[start:stop], threshold, cutoff)
        return counts

    def count_on_devices(self, transforms, states, question: Kept) -> dict[int, list]:
        """Return, not yet waited for, the counts of the other blocks by row."""
        counts: dict[int, list] = {}
        for b, block in enumerate(self._blocks):
            leaf = block.leaves[0]
            row = leaf if len(question.threshold) > 1 else 0
            if self._on_host[b] or (question.threshold[row] < 0).all():
                continue
            threshold = np.maximum(question.threshold[row], 0).astype(self._key_dtype)
            size = int(self._layout.sizes[leaf])
            cutoff = np.full(len(threshold), size)
            if question.cutoff is not None:
                cutoff = question.cutoff[row]
            found = kernels.count(
                *self._inputs(b, transforms, states),
                threshold,
                numerics.as_index(cutoff, size),
                strides=block.strides,
            )
            counts.setdefault(row, []).append(found)
        return counts

    def _pieces(self, keys, rows: int):
        """Yield ((row, start, stop), flat keys): each leaf, or each block for a total.

        A packed block's padding is 0 and no trial is, so it may be counted whole.
        """
        for block, flat in zip(self._blocks, keys, strict=True):
            if flat is not None and rows == 1:
                yield (0, 0, flat.size), flat
            elif flat is not None:
                for segment in block.segments(self._layout.sizes):
                    yield segment, flat

    def _inputs(self, b: int, transforms, states) -> tuple:
        block = self._blocks[b]
        spread = [block.spread(state) for state in states]
        return transforms, self._base[b], self._expert[b], spread, block.offset


class _Before:
    """The Δ that one transform sees; its keys are made when first asked about."""

    def __init__(self, counter: Counter, transforms, states):
        self._counter, self._inputs = counter, (transforms, states)

    @functools.cached_property
    def _keys(self) -> list[np.ndarray | None]:
        return self._counter.host_keys(*self._inputs)

    def sample(self, leaf: int, stride: int) -> np.ndarray:
        """Return every stride-th key of a leaf."""
        return self._counter.leaf_keys(self._keys, leaf)[::stride]

    def count(self, question: Kept) -> np.ndarray:
        """Answer the question."""
        # The devices are set to work before the host is.
        waiting = self._counter.count_on_devices(*self._inputs, question)
        counts = self._counter.count_on_host(self._keys, question)
        for row, found in waiting.items():
            for parts in found:
                parts = np.asarray(parts, np.int64)
                counts[row] += parts.reshape(len(parts), -1).sum(axis=1)
        return counts


def _on_one_cpu(leaf: Array) -> bool:
    devices = leaf.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _count_kept(keys: np.ndarray, threshold: int, cutoff: int | None) -> int:
    threshold = keys.dtype.type(threshold)
    if cutoff is None or cutoff >= keys.size:
        return np.count_nonzero(keys >= threshold)
    early = np.count_nonzero(keys[:cutoff] == threshold)
    return np.count_nonzero(keys > threshold) + early
