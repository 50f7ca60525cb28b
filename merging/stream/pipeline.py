"""Blocks from disk to the devices: block i+1 is read while block i is computed.

Buffers are made once and used again. On a CPU the devices compute on them in place,
so a buffer is free again only when everything that was computed from it is done.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging import numerics
from merging.checkpoints import Source
from merging.methods import Layout
from merging.numerics import Index
from merging.plan import Block, Group, Piece, Plan
from merging.stream import memory

READERS = 2


class Loaded(NamedTuple):
    """A block in memory.

    Attributes:
      number: its place in the plan.
      block: what it holds.
      models: host arrays [rows, columns], one for each model that was asked for.
    """

    number: int
    block: Block
    models: list[np.ndarray]


class Pipeline:
    """Reads blocks ahead, in order.

    Args:
      plan: whose blocks.
      sources: the models, the base first if there is one.
      budget: bytes of memory for blocks.
    """

    def __init__(self, plan: Plan, sources: Sequence[Source], budget: int):
        self._plan, self._sources = plan, sources
        self._devices = jax.local_devices()
        sharding = PartitionSpec("rows")
        self._sharding = NamedSharding(Mesh(self._devices, ("rows",)), sharding)
        slot = max((self._bytes(block) for block in plan.blocks), default=0)
        count = min(max(budget * 3 // 4 // max(slot, 1), 2), 3)
        self._slots = [memory.aligned(slot) for _ in range(count)]
        self._readers = ThreadPoolExecutor(READERS, "read")

    def close(self) -> None:
        """Stop the readers."""
        self._readers.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def blocks(
        self, numbers: Sequence[int], wanted: Callable[[Group], Sequence[int]]
    ) -> Iterator[Iterator[Loaded]]:
        """Give an iterator of blocks; each is valid until the next one is asked for.

        Args:
          numbers: places in the plan, in the order to read them.
          wanted: which models of a group to read, by their places among the sources.
        """
        waiting: list[tuple[np.ndarray, Loaded, list[Future]]] = []
        remaining = iter(numbers)

        def each() -> Iterator[Loaded]:
            while True:
                while self._slots and (number := next(remaining, None)) is not None:
                    block = self._plan.blocks[number]
                    models = wanted(self._plan.groups[block.group])
                    slot = self._slots.pop()
                    waiting.append(self._read_into(slot, number, block, models))
                if not waiting:
                    return
                slot, loaded, jobs = waiting[0]
                for job in jobs:
                    job.result()
                yield loaded
                waiting.pop(0)
                self._slots.append(slot)

        try:
            yield each()
        finally:
            for slot, _, jobs in waiting:
                wait([job for job in jobs if not job.cancel()])
                self._slots.append(slot)

    def load(self, block: Block) -> Loaded:
        """Read a block of all models, which need not be one of the plan's."""
        buffer = memory.aligned(self._bytes(block))
        models = range(len(self._sources))
        _, loaded, jobs = self._read_into(buffer, -1, block, models)
        for job in jobs:
            job.result()
        return loaded

    def on_devices(self, tree: Any) -> Any:
        """Return arrays of rows over the local devices, without a copy on a CPU."""
        if len(self._devices) == 1:
            return jax.device_put(tree, self._devices[0])
        return jax.device_put(tree, self._sharding)

    def _bytes(self, block: Block) -> int:
        rows = self._rows(block)
        return sum(
            memory.padded(rows * block.columns * dtype.itemsize)
            for dtype in self._plan.groups[block.group].read
        )

    def _rows(self, block: Block) -> int:
        """Return a block's rows, rounded up so that few shapes are compiled."""
        rows, devices = sum(block.counts), len(self._devices)
        step = max(2 ** (max(rows - 1, 1).bit_length() - 3), 1)
        rows = -(-rows // step) * step
        return -(-rows // devices) * devices

    def _read_into(
        self, slot: np.ndarray, number: int, block: Block, models: Sequence[int]
    ) -> tuple[np.ndarray, Loaded, list[Future]]:
        read = self._plan.groups[block.group].read
        shape = (self._rows(block), block.columns)
        arrays, jobs, at = [], [], 0
        for model in models:
            size = shape[0] * shape[1] * read[model].itemsize
            flat = slot[at : at + size].view(read[model])
            at += memory.padded(size)
            arrays.append(flat.reshape(shape))
            jobs.append(self._readers.submit(self._read, model, block, flat))
        return slot, Loaded(number, block, arrays), jobs

    def _read(self, model: int, block: Block, flat: np.ndarray) -> None:
        row = 0
        for piece, rows in zip(block.pieces, block.counts, strict=True):
            start, size = row * block.columns, piece.stop - piece.start
            path = self._plan.paths[piece.leaf]
            out = flat[start : start + size]
            self._sources[model].read_into(path, piece.start, out)
            row += rows
            flat[start + size : row * block.columns] = 0
        flat[row * block.columns :] = 0


class Columns:
    """What holds of a block's rows: leaf indices and states, spread over them."""

    def __init__(self, layout: Layout, leaves: Sequence[int], loaded: Loaded):
        block = loaded.block
        place = {leaf: i for i, leaf in enumerate(leaves)}
        rows = loaded.models[0].shape[0]
        self._leaves = np.zeros(rows, np.int64)
        starts = np.zeros(rows, np.int64)
        row = 0
        for piece, count in zip(block.pieces, block.counts, strict=True):
            here = slice(row, row + count)
            self._leaves[here] = place[piece.leaf]
            starts[here] = piece.start + np.arange(count) * block.columns
            row += count
        self._starts = starts
        self._largest = int(layout.sizes.max(initial=0))
        self.offset: Index = numerics.as_index(starts[:, None], self._largest)

    def index(self, row: np.ndarray, column: np.ndarray) -> Index:
        """Return the indices in their leaves of single elements, as [elements, 1]."""
        found = (self._starts[row] + column)[:, None]
        return numerics.as_index(found, self._largest)

    def spread(self, state: Any) -> Any:
        """Return a state's entries as columns [rows, 1]."""
        return jax.tree.map(lambda x: np.asarray(x)[self._leaves][:, None], state)


def each_piece(block: Block, array: np.ndarray) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield each piece of a block with its elements, flat."""
    row = 0
    for piece, rows in zip(block.pieces, block.counts, strict=True):
        flat = array[row : row + rows].reshape(-1)
        yield piece, flat[: piece.stop - piece.start]
        row += rows
