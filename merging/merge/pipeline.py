"""Blocks from disk to the devices: some are read while others are computed or written.

Buffers are made once and used again. On a CPU the devices compute on them in place,
so a buffer is free again only when everything that was computed from it is done.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging.checkpoints import Source
from merging.merge.partition import Block, Group, Piece, Plan, workers
from merging.methods import Layout
from merging.runtime import memory, numerics
from merging.runtime.numerics import Index

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
        count = workers(plan, budget)
        self._slots = [memory.aligned(slot) for _ in range(count + 1)]
        self._workers = ThreadPoolExecutor(count, "work")
        self._readers = ThreadPoolExecutor(READERS, "read")

    def close(self) -> None:
        """Stop the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._workers.shutdown(cancel_futures=True)

    def each(
        self,
        numbers: Sequence[int],
        wanted: Callable[[Group], Sequence[int]],
        work: Callable[[Loaded], None],
    ) -> Iterator[Block]:
        """Read blocks, work on several at a time, and yield each when done.

        Args:
          numbers: places in the plan, in order.
          wanted: which models of a group to read, by their places among the sources.
          work: called in a thread; what it was given is valid until it returns.
        """
        waiting: collections.deque[tuple[Block, Future]] = collections.deque()
        try:
            for number in self._shapes_first(numbers):
                if not self._slots:
                    block, job = waiting.popleft()
                    self._slots.append(job.result())
                    yield block
                block = self._plan.blocks[number]
                models = wanted(self._plan.groups[block.group])
                slot = self._slots.pop()
                loaded, reads = self._read_into(slot, number, block, models)
                job = self._workers.submit(_after, reads, work, loaded, slot)
                waiting.append((block, job))
            while waiting:
                block, job = waiting.popleft()
                self._slots.append(job.result())
                yield block
        finally:
            wait([job for _, job in waiting if not job.cancel()])

    def _shapes_first(self, numbers: Sequence[int]) -> list[int]:
        """Put one block of each shape first: then their programs compile together."""
        blocks = self._plan.blocks
        first: dict[tuple, int] = {}
        for number in numbers:
            block = blocks[number]
            shape = (block.group, self._rows(block), block.columns)
            first.setdefault(shape, number)
        early = set(first.values())
        return sorted(numbers, key=lambda number: number not in early)

    def load(self, block: Block) -> Loaded:
        """Read a block of all models, which need not be one of the plan's."""
        buffer = memory.aligned(self._bytes(block))
        models = range(len(self._sources))
        loaded, reads = self._read_into(buffer, -1, block, models)
        for read in reads:
            read.result()
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
    ) -> tuple[Loaded, list[Future]]:
        read = self._plan.groups[block.group].read
        shape = (self._rows(block), block.columns)
        arrays, jobs, at = [], [], 0
        for model in models:
            size = shape[0] * shape[1] * read[model].itemsize
            flat = slot[at : at + size].view(read[model])
            at += memory.padded(size)
            arrays.append(flat.reshape(shape))
            jobs.append(self._readers.submit(self._read, model, block, flat))
        return Loaded(number, block, arrays), jobs

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


class Few:
    """A few elements of a block, as arrays [elements, 1] that are computed on alone.

    Args:
      columns: the block's.
      positions: of the elements in the flat block; one at least.
      width: columns of the block.
    """

    def __init__(self, columns: Columns, positions: np.ndarray, width: int):
        # Few sizes compile; what fills one up is computed for nothing.
        self._count, size = len(positions), 1 << max(len(positions) - 1, 7).bit_length()
        self._positions = np.resize(positions, size).astype(np.int64)
        self._row, column = np.divmod(self._positions, width)
        self.index = columns.index(self._row, column)

    def elements(self, array: np.ndarray) -> np.ndarray:
        """Return them from a block's array."""
        return array.reshape(-1).take(self._positions)[:, None]

    def rows(self, tree: Any) -> Any:
        """Return what holds of them from columns [rows, 1]."""
        return jax.tree.map(lambda x: x.take(self._row, axis=0), tree)

    def only(self, results: jax.Array) -> np.ndarray:
        """Return the results, without those that filled up, flat."""
        return np.asarray(results).reshape(-1)[: self._count]


def marked(codes: np.ndarray, mark: int) -> np.ndarray:
    """Return where the codes, few of which do, have the mark's bit.

    Looks at eight at a time, and then closer where there is one.
    """
    codes = np.concatenate([codes, np.zeros(-len(codes) % 8, np.uint8)])
    eights = codes.view(np.uint64)
    hit = np.flatnonzero(eights & np.uint64(mark * 0x0101010101010101))
    near = np.flatnonzero(eights[hit].view(np.uint8) & np.uint8(mark))
    return hit[near // 8] * 8 + near % 8


def _after(
    reads: list[Future],
    work: Callable[[Loaded], None],
    loaded: Loaded,
    slot: np.ndarray,
) -> np.ndarray:
    """Work when everything is read; return the buffers, free again."""
    for read in reads:
        read.result()
    work(loaded)
    return slot


def each_piece(block: Block, array: np.ndarray) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield each piece of a block with its elements, flat."""
    row = 0
    for piece, rows in zip(block.pieces, block.counts, strict=True):
        flat = array[row : row + rows].reshape(-1)
        yield piece, flat[: piece.stop - piece.start]
        row += rows
