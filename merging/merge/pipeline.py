"""Blocks from disk to the devices: some are read while others are computed or written.

Buffers are made once and used again. On a CPU the devices compute on them in place,
so a buffer is free again only when everything that was computed from it is done.
"""

import collections
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging.checkpoints import Source
from merging.merge.cutting import workers
from merging.merge.partition import ROW, Block, Kind, Partition, rounded
from merging.methods import Statistics
from merging.runtime import memory

READERS = 2


class Loaded(NamedTuple):
    """A block in memory.

    Attributes:
      number: its place in the partition.
      block: what it holds.
      models: host arrays [rows, columns], one for each model that was asked for.
      statistics: of each expert, if they were asked for: likewise, or [m inputs,
        inputs] for m matrices.
    """

    number: int
    block: Block
    models: list[np.ndarray]
    statistics: list[np.ndarray] | None = None


class Pipeline:
    """Reads blocks ahead, in order.

    Args:
      cut: whose blocks.
      sources: the models, the base first if there is one.
      has_base: whether there is.
      budget: bytes of memory for blocks.
      statistics: of each kind that is wanted, every expert's, in their order.
    """

    def __init__(
        self,
        cut: Partition,
        sources: Sequence[Source],
        has_base: bool,
        budget: int,
        statistics: Mapping[Statistics, Sequence[Source]] = {},  # noqa: B006
    ):
        self.has_base = has_base
        self._cut, self._sources, self._statistics = cut, sources, statistics
        self._devices = jax.local_devices()
        self._usual = _usual_rows(cut)
        sharding = PartitionSpec("rows")
        self._sharding = NamedSharding(Mesh(self._devices, ("rows",)), sharding)
        slot = max((self._bytes(block) for block in cut.blocks), default=0)
        count = workers(cut, budget)
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
        wanted: Callable[[Kind], Sequence[int]],
        work: Callable[[Loaded], None],
        told: bool = False,
    ) -> Iterator[Block]:
        """Read blocks, work on several at a time, and yield each when done.

        Args:
          numbers: places in the partition, in order.
          wanted: which models of a kind to read, by their places among the sources.
          work: called in a thread; what it was given is valid until it returns.
          told: whether to read statistics, too, where there are some.
        """
        waiting: collections.deque[tuple[Block, Future]] = collections.deque()
        try:
            for number in self._shapes_first(numbers):
                if not self._slots:
                    block, job = waiting.popleft()
                    self._slots.append(job.result())
                    yield block
                block = self._cut.blocks[number]
                models = wanted(self._cut.kinds[block.kind])
                slot = self._slots.pop()
                loaded, reads = self._read_into(slot, number, block, models, told)
                job = self._workers.submit(_after, reads, work, loaded, slot)
                waiting.append((block, job))
            while waiting:
                block, job = waiting.popleft()
                self._slots.append(job.result())
                yield block
        finally:
            wait([job for _, job in waiting if not job.cancel()])

    def _shapes_first(self, numbers: Sequence[int]) -> list[int]:
        """Put one block of each shape first, so that no program compiles at the end."""
        blocks = self._cut.blocks
        first: dict[tuple, int] = {}
        for number in numbers:
            block = blocks[number]
            shape = (block.kind, self._rows(block), block.columns)
            first.setdefault(shape, number)
        early = set(first.values())
        return sorted(numbers, key=lambda number: number not in early)

    def load(self, block: Block, models: Sequence[int]) -> Loaded:
        """Read a block of some models, which need not be one of the partition's."""
        buffer = memory.aligned(self._bytes(block))
        loaded, reads = self._read_into(buffer, -1, block, models)
        for read in reads:
            read.result()
        return loaded

    def on_devices(self, block: Block, tree: Any) -> Any:
        """Return arrays of a block's rows over the local devices.

        Without a copy on a CPU. A block of matrices goes to one device, which needs
        them whole.
        """
        if self._on_one(block):
            return jax.device_put(tree, self._devices[0])
        return jax.device_put(tree, self._sharding)

    def beside(self, block: Block, tree: Any) -> Any:
        """Return what is known of a block's rows, for a call with its arrays.

        One device's calls take small arrays in a tenth of the time of placing them.
        """
        return tree if self._on_one(block) else self.on_devices(block, tree)

    def _on_one(self, block: Block) -> bool:
        return len(self._devices) == 1 or block.matrix is not None

    def _bytes(self, block: Block) -> int:
        kind, size = self._cut.kinds[block.kind], self._rows(block) * block.columns
        return sum(memory.padded(size * dtype.itemsize) for dtype in kind.read) + sum(
            memory.padded(math.prod(self._told(block)) * dtype.itemsize)
            for dtype in kind.statistics
        )

    def _told(self, block: Block) -> tuple[int, int]:
        """Return the shape of each expert's statistics of a block."""
        kind = self._cut.kinds[block.kind]
        if kind.method.statistics.of == "element":
            return self._rows(block), block.columns
        return kind.statistics_of(block) // block.matrix.inputs, block.matrix.inputs

    def _rows(self, block: Block) -> int:
        """Return a block's rows, or more, so that few shapes are compiled."""
        rows, devices = sum(block.counts), len(self._devices)
        if block.matrix:
            return rows
        if block.columns == ROW and not block.whole:
            rows = max(rows, self._usual.get(block.kind, 0))
        rows = rounded(rows)
        return -(-rows // devices) * devices

    def _read_into(
        self,
        slot: np.ndarray,
        number: int,
        block: Block,
        models: Sequence[int],
        told: bool = False,
    ) -> tuple[Loaded, list[Future]]:
        kind, at, jobs = self._cut.kinds[block.kind], 0, []

        def begin(source: Source, dtype: np.dtype, shape: tuple, read: Callable):
            nonlocal at
            size = shape[0] * shape[1] * dtype.itemsize
            flat = slot[at : at + size].view(dtype)
            at += memory.padded(size)
            jobs.append(self._readers.submit(read, source, block, flat))
            return flat.reshape(shape)

        shape = (self._rows(block), block.columns)
        arrays = [
            begin(self._sources[model], kind.read[model], shape, self._read)
            for model in models
        ]
        if not (told and kind.statistics):
            return Loaded(number, block, arrays), jobs
        wanted, shape = kind.method.statistics, self._told(block)
        read = self._read if wanted.of == "element" else self._read_of_inputs
        pairs = zip(self._statistics[wanted], kind.statistics, strict=True)
        statistics = [begin(source, dtype, shape, read) for source, dtype in pairs]
        return Loaded(number, block, arrays, statistics), jobs

    def _read_of_inputs(self, source: Source, block: Block, flat: np.ndarray) -> None:
        (piece,), matrix = block.pieces, block.matrix
        start = piece.start // (matrix.rows * matrix.columns) * matrix.inputs**2
        source.read_into(self._cut.paths[piece.leaf], start, flat)

    def _read(self, source: Source, block: Block, flat: np.ndarray) -> None:
        row = 0
        for piece, rows in zip(block.pieces, block.counts, strict=True):
            start, size = row * block.columns, piece.stop - piece.start
            path = self._cut.paths[piece.leaf]
            out = flat[start : start + size]
            source.read_into(path, piece.start, out)
            row += rows
            flat[start + size : row * block.columns] = 0
        flat[row * block.columns :] = 0


def _usual_rows(cut: Partition) -> dict[int, int]:
    """Return the rows of most blocks of a kind, if others are few or hardly smaller."""
    rows: dict[int, list[int]] = {}
    for block in cut.blocks:
        if block.columns == ROW and not block.whole and not block.matrix:
            rows.setdefault(block.kind, []).append(sum(block.counts))
    most = {kind: (max(of), max(of) * len(of) / sum(of)) for kind, of in rows.items()}
    return {kind: rows for kind, (rows, grown) in most.items() if grown <= 1.125}


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
