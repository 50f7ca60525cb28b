"""Answers to a method's statistics (`methods.statistics`) from arrays in memory."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging import methods, numerics
from merging.methods import Kept, Layout, Method
from merging.resident.blocks import Block


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
        _ballot(
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

    def host_keys(self, transforms, states) -> dict[int, np.ndarray]:
        """Return the magnitude keys of each leaf that is counted here, flat."""
        made = {}
        for b, block in enumerate(self._blocks):
            if self._on_host[b]:
                keys = _keys(
                    *self._inputs(b, transforms, states),
                    strides=block.strides,
                    dtype=self._key_dtype,
                )
                flat = np.asarray(keys).reshape(-1)
                for leaf, start, stop in block.segments(self._layout.sizes):
                    made[leaf] = flat[start:stop]
        return made

    def device_counts(self, transforms, states, question: Kept) -> dict[int, Array]:
        """Return the counts of each leaf that is counted on its devices."""
        counts = {}
        for b, block in enumerate(self._blocks):
            leaf = block.leaves[0]
            if self._on_host[b] or (question.threshold[leaf] < 0).all():
                continue
            threshold = np.maximum(question.threshold[leaf], 0).astype(self._key_dtype)
            size = int(self._layout.sizes[leaf])
            counts[leaf] = _count(
                *self._inputs(b, transforms, states),
                threshold,
                numerics.as_index(question.cutoff[leaf], size),
                strides=block.strides,
            )
        return counts

    def _inputs(self, b: int, transforms, states) -> tuple:
        block = self._blocks[b]
        spread = [block.spread(state) for state in states]
        return transforms, self._base[b], self._expert[b], spread, block.offset


class _Before:
    """The Δ that one transform sees; its keys are made when first asked about."""

    def __init__(self, counter: Counter, transforms, states):
        self._counter, self._inputs = counter, (transforms, states)
        self._made: dict[int, np.ndarray] | None = None

    def _keys(self) -> dict[int, np.ndarray]:
        if self._made is None:
            self._made = self._counter.host_keys(*self._inputs)
        return self._made

    def sample(self, leaf: int, stride: int) -> np.ndarray:
        """Return every stride-th key of a leaf."""
        return self._keys()[leaf][::stride]

    def count(self, question: Kept) -> np.ndarray:
        """Answer the question: int64 [leaves, trials]."""
        counts = np.zeros(question.threshold.shape, np.int64)
        # The devices are set to work before the host is.
        waiting = self._counter.device_counts(*self._inputs, question)
        for leaf, keys in self._keys().items():
            for trial in np.flatnonzero(question.threshold[leaf] >= 0):
                threshold = question.threshold[leaf, trial]
                cutoff = question.cutoff[leaf, trial]
                counts[leaf, trial] = _count_on_host(keys, threshold, cutoff)
        for leaf, parts in waiting.items():
            parts = np.asarray(parts, np.int64)
            counts[leaf] = parts.reshape(len(parts), -1).sum(axis=1)
        return counts


def _on_one_cpu(leaf: Array) -> bool:
    devices = leaf.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _count_on_host(keys: np.ndarray, threshold: int, cutoff: int) -> int:
    threshold = keys.dtype.type(threshold)
    if cutoff >= keys.size:
        return np.count_nonzero(keys >= threshold)
    early = np.count_nonzero(keys[:cutoff] == threshold)
    return np.count_nonzero(keys > threshold) + early


@partial(jax.jit, static_argnames=("strides", "dtype"))
def _keys(transforms, base, expert, states, offset, *, strides, dtype):
    index = numerics.element_index(expert.shape, strides, offset)
    return methods.magnitude_keys(transforms, base, expert, states, index, dtype)


@partial(jax.jit, static_argnames="strides")
def _count(transforms, base, expert, states, offset, threshold, cutoff, *, strides):
    index = numerics.element_index(expert.shape, strides, offset)
    return methods.count_kept(
        transforms, base, expert, states, index, threshold, cutoff
    )


@partial(jax.jit, static_argnames="strides")
def _ballot(method, base, experts, states, offset, *, strides):
    index = numerics.element_index(experts[0].shape, strides, offset)
    return methods.count_votes(method, base, experts, states, index)
