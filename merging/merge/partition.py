"""Leaves cut into blocks, and the blocks dealt out to processes.

Every leaf is a row-major run of elements; a piece is a range of one, and a block one or
more pieces that are merged together. A block is an array for each model, in one of two
forms: *rows*, [rows, columns], in which each piece begins a row of its own and what is
left of its last row is padding; or *own*, a whole leaf in its own shape and sharding.

Where the cuts are changes no bit of the result (`cutting` makes them).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.methods import Layout, Matrices, Method, Sums, Threshold
from merging.methods.reductions import Reduction
from merging.runtime import numerics
from merging.runtime.numerics import Index

# Elements in a row of a streamed block. Small leaves share a block.
ROW = 1024
# Bytes per element of what a merge or a count computes in between.
SCRATCH = 16


def rounded(rows: int, down: bool = False) -> int:
    """Return so many rows, or up to a quarter more or fewer: few shapes compile."""
    step = max(2 ** (max(rows - 1, 1).bit_length() - 3), 1)
    return (rows // step if down else -(-rows // step)) * step


class Piece(NamedTuple):
    """Elements [start, stop) of a leaf, by its place among all leaves."""

    leaf: int
    start: int
    stop: int


class Kind(NamedTuple):
    """Leaves of one method and the same dtypes, in the order of their paths.

    Attributes:
      method: that merges them; None leaves them as they are in the first model.
      leaves: their places among the partition's leaves.
      read: the dtypes as stored, one for each model that is read, in order.
      dtype: of the result.
      statistics: the dtypes of each expert's, as stored; none where there are none.
      ratio: the most of their numbers for one element.
    """

    method: Method | None
    leaves: tuple[int, ...]
    read: tuple[np.dtype, ...]
    dtype: np.dtype
    statistics: tuple[np.dtype, ...] = ()
    ratio: float = 0.0

    @property
    def working(self) -> np.dtype:
        """The dtype of the arithmetic."""
        return numerics.working_dtype(*self.read)

    @property
    def bytes_per_element(self) -> int:
        """Bytes read and written for one element."""
        return sum(d.itemsize for d in self.read) + self.dtype.itemsize

    def bytes_in_memory(self, workers: int) -> int:
        """Return the memory that one element of each block in flight takes."""
        inputs = sum(d.itemsize for d in self.read)
        inputs += math.ceil(self.ratio * sum(d.itemsize for d in self.statistics))
        return (workers + 1) * inputs + workers * (self.dtype.itemsize + SCRATCH)

    def statistics_of(self, block: "Block") -> int:
        """Return how many numbers of each expert's statistics belong to a block."""
        if not self.statistics:
            return 0
        return self.method.statistics.size(block.size, block.matrix)


class Block(NamedTuple):
    """Pieces that are merged together.

    Attributes:
      kind: its place among the partition's kinds.
      pieces: each begins a row; of a block in its own shape, the one leaf.
      columns: of a row; a leaf's last dimension if its rows must stay whole.
      whole: whether its leaf's reductions can be found in this block alone.
      matrix: how the matrices lie that it holds whole, if the method wants them.
      shape: of a block in a leaf's own shape; None if it is rows.
    """

    kind: int
    pieces: tuple[Piece, ...]
    columns: int
    whole: bool = False
    matrix: Matrices | None = None
    shape: tuple[int, ...] | None = None

    @property
    def counts(self) -> list[int]:
        """Rows of each piece."""
        return [-(-(p.stop - p.start) // self.columns) for p in self.pieces]

    @property
    def size(self) -> int:
        """Elements of the array, the ends of rows that nothing fills included."""
        return sum(self.counts) * self.columns

    @property
    def elements(self) -> int:
        """Elements in all pieces."""
        return sum(p.stop - p.start for p in self.pieces)

    @property
    def strides(self) -> tuple[int, ...]:
        """How far apart neighbours along each axis are in their leaf.

        In rows, columns are neighbours, and where each row begins is its offset.
        """
        own = self.shape
        return (0, 1) if own is None else numerics.row_major_strides(own)

    def parts(self, array: np.ndarray) -> list[tuple[Piece, np.ndarray]]:
        """Return each piece with its elements of the block's array, flat."""
        return [(piece, part) for piece, (part,) in self.split([array])]

    def split(
        self, arrays: Sequence[np.ndarray]
    ) -> list[tuple[Piece, list[np.ndarray]]]:
        """Return each piece with its elements, flat, of some rows in each array."""
        flats = [array.reshape(-1) for array in arrays]
        begins = np.cumsum([0, *map(len, flats)]).tolist()
        found, start = [], 0
        for piece, rows in zip(self.pieces, self.counts, strict=True):
            stop = start + piece.stop - piece.start
            parts = [
                flat[max(start - begin, 0) : stop - begin]
                for flat, begin in zip(flats, begins, strict=False)
                if begin < stop and start < begin + len(flat)
            ]
            found.append((piece, parts))
            start += rows * self.columns
        return found


class RowMetadata:
    """What a block's elements need to know of their leaf: their index, and its states.

    Attributes:
      offset: the index of each row's first element [rows, 1].
      filled: how many elements of each row are a leaf's [rows, 1]; None if all are.

    Args:
      block: the block.
      layout: of the leaves that one method merges.
      leaves: their places among all leaves.
      rows: of the block's arrays, which may be more than its pieces fill.
    """

    def __init__(
        self, block: Block, layout: Layout, leaves: Sequence[int], rows: int = 0
    ):
        self._largest = int(layout.sizes.max(initial=0))
        self._own = block.shape is not None
        counts = [1] if self._own else block.counts
        rows = max(rows, sum(counts))
        self._leaves, self._starts, widths = np.zeros((3, rows), np.int64)
        row = 0
        for piece, count in zip(block.pieces, counts, strict=True):
            here = slice(row, row + count)
            self._leaves[here] = leaves.index(piece.leaf)
            within = np.arange(count) * block.columns
            self._starts[here] = piece.start + within
            left = piece.stop - piece.start - within
            widths[here] = np.minimum(left, block.columns)
            row += count
        self.offset: Index = self.index(np.arange(rows), 0)
        self.filled: np.ndarray | None = None
        if not self._own and (widths < block.columns).any():
            self.filled = widths.astype(np.uint32)[:, None]
        if self._own:
            self.offset = numerics.as_index(0, block.pieces[0].stop)

    def index(self, row: np.ndarray, column: np.ndarray | int) -> Index:
        """Return the indices in their leaves of single elements, as [elements, 1]."""
        found = (self._starts[row] + column)[:, None]
        return numerics.as_index(found, self._largest)

    def spread(self, state: Any) -> Any:
        """Return a state's entries to broadcast against the block's arrays.

        Columns [rows, 1]; scalars for a block in its leaf's own shape.
        """
        if self._own:
            return jax.tree.map(lambda x: np.asarray(x)[self._leaves[0]], state)
        return jax.tree.map(lambda x: np.asarray(x)[self._leaves][:, None], state)


class Partition(NamedTuple):
    """Which blocks to merge, in order.

    Attributes:
      paths: of all leaves, sorted.
      shapes: theirs.
      kinds: leaves treated alike.
      blocks: of all kinds, in order.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[Kind, ...]
    blocks: tuple[Block, ...]

    @property
    def methods(self) -> list[Method]:
        """The different methods, in their first leaves' order."""
        used = (kind.method for kind in self.kinds if kind.method is not None)
        return list(dict.fromkeys(used))

    def layout(self, leaves: Sequence[int]) -> Layout:
        """Return leaves as a method's reductions want them."""
        kind_of = {i: kind for kind in self.kinds for i in kind.leaves}
        return Layout(
            tuple(self.paths[i] for i in leaves),
            tuple(self.shapes[i] for i in leaves),
            any(kind_of[i].working == np.float64 for i in leaves),
        )

    def bytes_of(self, block: Block) -> int:
        """Return the bytes that are read and written for a block."""
        return block.elements * self.kinds[block.kind].bytes_per_element + self._told(
            block
        )

    def _told(self, block: Block) -> int:
        """Return the bytes of a block's statistics."""
        kind = self.kinds[block.kind]
        return kind.statistics_of(block) * sum(d.itemsize for d in kind.statistics)

    def read_for(self, block: Block) -> int:
        """Return the bytes that are read for a block, in all passes over it."""
        kind = self.kinds[block.kind]
        each = sum(d.itemsize for d in kind.read)
        return block.elements * each * self.passes_over(block) + self._told(block)

    def written_for(self, block: Block) -> int:
        """Return the bytes that are written for a block."""
        return block.elements * self.kinds[block.kind].dtype.itemsize

    def passes_over(self, block: Block) -> int:
        """Return how often a block is read, as a rule (see `reduction_passes`)."""
        method = self.kinds[block.kind].method
        return 1 if method is None or block.whole else 1 + reduction_passes(method)

    def share(self, process: int, processes: int) -> list[int]:
        """Return a process's blocks: neighbours, and an equal part of the bytes."""
        return self.shares(processes)[process]

    def shares(self, processes: int) -> list[list[int]]:
        """Return the blocks of each of so many processes, as `share` deals them."""
        sizes = np.array([self.bytes_of(b) for b in self.blocks], np.float64)
        middles = np.cumsum(sizes) - sizes / 2
        owner = (middles * processes / max(sizes.sum(), 1)).astype(int)
        return [np.flatnonzero(owner == p).tolist() for p in range(processes)]


def reduction_passes(method: Method) -> int:
    """Return how many passes before the merge find a method's reductions, as a rule.

    A window of magnitudes that misses the threshold costs another. Exact ties cost one
    more, which counts them. Votes cost none.
    """
    own = [part.reduction() for part in (*method.transforms, method.combiner)]
    selections = method.combiner.selections
    own += [selection.thresholds for selection in selections]  # found together
    # Scores of whole rows are not sampled before; six passes were seen in all.
    blind = sum(5 for selection in selections if selection.granularity != "element")
    return sum(map(_passes, own)) + blind


def _passes(reduction: Reduction | tuple[Reduction, ...] | None) -> int:
    if isinstance(reduction, tuple):  # they are found together
        return max(map(_passes, reduction))
    if isinstance(reduction, Threshold):
        return 1 + (reduction.ties == "exact") + reduction.nonzero
    return int(isinstance(reduction, Sums))
