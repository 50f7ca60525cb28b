"""Leaves cut into blocks, and the blocks dealt out to processes.

Every leaf is a row-major run of elements; a piece is a range of one, and a block one or
more pieces that are merged together. A block is an array for each model, in one of two
forms: *rows*, [rows, columns], in which each piece begins a row of its own and what is
left of its last row is padding; or *own*, a whole leaf in its own shape and sharding.

Where the cuts are changes no bit of the result. Streamed models are cut under a memory
budget (`partition`), from the sizes alone: the same for any number of processes, which
share the blocks out. Models in memory are not cut (`in_memory_blocks`): small leaves on
one device are packed into rows, so that thirty of them cost one program and one call,
and every other leaf is a block of its own.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.methods import Layout, Matrices, Method, Sums, Threshold
from merging.methods.reductions import Reduction
from merging.runtime import numerics, tree
from merging.runtime.errors import UserError
from merging.runtime.numerics import Index

# Elements in a row of a streamed block. Small leaves share a block.
ROW = 1024
# Larger blocks gain nothing; smaller ones cost calls.
LARGEST, SMALLEST = 2**22, 2**18
# Blocks in all, at least, so that four processes' shares differ by no more than 2 %.
FINENESS = 128
# Blocks that are worked on at a time, while one more is being read.
WORKERS = 3
# Bytes per element of what a merge or a count computes in between.
SCRATCH = 16
# In memory: of a row, and of the leaves and blocks that are packed; that costs a copy
# in working precision.
PACKED_ROW, PACKED_LEAF, PACKED_BLOCK = 128, 2**20, 2**24
# A leaf that holds a layer after the other is named after `layers`, without a number.
_STACKED = re.compile(r"(?:^|[./])(?:layers|blocks)[./](?!\d)")
# Tables of a vocabulary, and PyTorch's weights, have their inputs last.
_INPUTS_LAST = re.compile(r"\.weight$|embed|(?:^|[./])(?:lm_)?head(?:[./]|$)")


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

    Args:
      block: the block.
      layout: of the leaves that one method merges.
      leaves: their places among all leaves.
      rows: of the block's arrays, which may be more than its pieces fill.
    """

    def __init__(
        self, block: Block, layout: Layout, leaves: Sequence[int], rows: int = 0
    ):
        place = {leaf: i for i, leaf in enumerate(leaves)}
        self._largest = int(layout.sizes.max(initial=0))
        self._own = block.shape is not None
        counts = [1] if self._own else block.counts
        rows = max(rows, sum(counts))
        self._leaves, self._starts = np.zeros((2, rows), np.int64)
        row = 0
        for piece, count in zip(block.pieces, counts, strict=True):
            here = slice(row, row + count)
            self._leaves[here] = place[piece.leaf]
            self._starts[here] = piece.start + np.arange(count) * block.columns
            row += count
        self.offset: Index = self.index(np.arange(rows), 0)
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

    A window of magnitudes that misses the threshold costs another. Exact ties cost two
    more: how many there are, and where the last one that is kept lies. Votes cost none.
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
        return 1 + 2 * (reduction.ties == "exact") + reduction.nonzero
    return int(isinstance(reduction, Sums))


def is_stacked(path: str) -> bool:
    """Return whether a leaf's first axis goes over the layers (`layers/mlp/up`)."""
    return _STACKED.search(path) is not None


def matrices(path: str, shape: tuple[int, ...]) -> Matrices | None:
    """Return how a leaf stores its matrices, or None if it is no matrix.

    A leaf of more axes is a batch of matrices; one that is stacked by layers
    (`layers/mlp/up`, but not `layers.0.mlp.up`) has an axis for them in front. Which of
    a matrix's axes is that of the inputs goes by the leaf's name, too.
    """
    own = shape[1:] if is_stacked(path) else shape
    if len(own) < 2 or not math.prod(shape):
        return None
    return Matrices(*own[-2:], inputs_first=not _INPUTS_LAST.search(path))


def partition(
    abstracts: Sequence[Mapping[str, jax.ShapeDtypeStruct]],
    recipe: Mapping[str, Method | None],
    budget: int,
    *,
    dtype: np.dtype | None = None,
    first: int = 0,
    granularity: Callable[[str], int] = lambda path: 1,
    statistics: Mapping[str, tuple[np.dtype, ...]] = {},  # noqa: B006
) -> Partition:
    """Cut the leaves of a streamed merge into blocks.

    Args:
      abstracts: {path: shape and dtype} of each model, the base first if there is one;
        all of one structure.
      recipe: the method for each float leaf; None takes it from the first model.
      budget: bytes of memory for blocks.
      dtype: of the merged leaves; by default as in the model that has the say.
      first: which model that is; the base if there is one.
      granularity: elements that the writer wants to get together, for each path.
      statistics: the dtypes of every expert's, for each path that has some.

    Raises:
      UserError: the budget is too small for one row or one chunk of a leaf.
    """
    like = abstracts[first]
    paths = tuple(sorted(like))
    kinds: dict[tuple, list[int]] = {}
    for i, path in enumerate(paths):
        read = tuple(np.dtype(of[path].dtype) for of in abstracts)
        floating = tree.dtype_class(like[path]) == "float"
        method = recipe[path] if floating else None
        kept = floating and method is None
        target = np.dtype(dtype) if dtype is not None and floating else read[first]
        told = () if method is None else statistics.get(path, ())
        key = (method, read[:1] if kept else read, target, told)
        kinds.setdefault(key, []).append(i)

    def names(of: Sequence[int]) -> set[str]:
        return {paths[i] for i in of}

    found = Partition(
        paths,
        tuple(tuple(like[path].shape) for path in paths),
        tuple(
            Kind(m, tuple(of), r, d, t, _ratio(m, t, names(of), like))
            for (m, r, d, t), of in kinds.items()
        ),
        (),
    )
    total = sum(math.prod(shape) for shape in found.shapes)
    blocks: list[Block] = []
    for number, kind in enumerate(found.kinds):
        capacity = _capacity(kind, budget, total)
        blocks += _Cutter(found, number, capacity, budget, granularity).blocks()
    return found._replace(blocks=tuple(blocks))


def _ratio(
    method: Method | None, told: tuple, paths: set[str], leaves: Mapping[str, Any]
) -> float:
    """Return the most numbers of an expert's statistics for an element of a leaf."""
    if not told:
        return 0.0
    sizes = {path: max(math.prod(leaves[path].shape), 1) for path in paths}
    return max(
        method.statistics.size(size, matrices(path, leaves[path].shape)) / size
        for path, size in sizes.items()
    )


def in_memory_blocks(
    paths: Sequence[str], leaves: Sequence[Any], method: Method, working: Sequence[Any]
) -> Partition:
    """Return the partition of float leaves in memory, all merged by one method.

    Leaves without elements are in no block.

    Args:
      paths: of the leaves, sorted.
      leaves: the arrays whose dtype and layout the merged ones take.
      method: that merges them.
      working: the dtype that each is computed in.
    """
    kinds: dict[tuple, list[int]] = {}
    packs: dict[Any, list[int]] = {}
    packed: list[tuple[int, list[int]]] = []
    blocks: list[Block] = []
    places: dict[int, int] = {}

    def kind_of(i: int) -> int:
        key = (np.dtype(leaves[i].dtype), np.dtype(working[i]))
        kinds.setdefault(key, []).append(i)
        return list(kinds).index(key)

    # Sums are over pieces of 1,024 neighbours of one leaf, which packing would move.
    summed = any(isinstance(r, Sums) for r in method.reductions)
    may_pack = method.granularity == "element" and not summed
    for i, leaf in enumerate(leaves):
        places[i] = kind_of(i)
        devices = leaf.sharding.device_set
        if not leaf.size:  # nothing to merge, and a program to compile
            continue
        if may_pack and len(devices) == 1 and leaf.size <= PACKED_LEAF:
            pack = packs.setdefault((next(iter(devices)), places[i]), [])
            if pack and sum(leaves[j].size for j in pack) + leaf.size > PACKED_BLOCK:
                packed.append((places[i], pack[:]))
                pack.clear()
            pack.append(i)
            continue
        wants = method.granularity == "matrix"
        matrix = matrices(paths[i], leaf.shape) if wants else None
        piece, last = Piece(i, 0, leaf.size), leaf.shape[-1] if leaf.ndim else 1
        blocks.append(
            Block(places[i], (piece,), max(last, 1), True, matrix, tuple(leaf.shape))
        )
    packed += [(kind, pack) for (_, kind), pack in packs.items()]
    for kind, pack in packed:
        pieces = tuple(Piece(i, 0, leaves[i].size) for i in pack)
        blocks.append(Block(kind, pieces, PACKED_ROW))
    return Partition(
        tuple(paths),
        tuple(tuple(leaf.shape) for leaf in leaves),
        tuple(
            Kind(method, tuple(of), (work,), dtype)
            for (dtype, work), of in kinds.items()
        ),
        tuple(blocks),
    )


def workers(cut: Partition, budget: int) -> int:
    """Return how many blocks can be worked on at a time, one at least."""
    for count in range(WORKERS, 1, -1):
        if all(
            cut.kinds[block.kind].bytes_in_memory(count) * block.size <= budget
            for block in cut.blocks
        ):
            return count
    return 1


def _capacity(kind: Kind, budget: int, total: int) -> int:
    fits = budget // kind.bytes_in_memory(WORKERS)
    fine = min(LARGEST, max(SMALLEST, total // FINENESS))
    capacity = min(fits, fine) // ROW * ROW
    if capacity < ROW:
        least = kind.bytes_in_memory(WORKERS) * ROW
        raise UserError(
            f"a memory budget of {budget} bytes does not hold one block of each model; "
            f"give at least {least} (memory_budget)."
        )
    return capacity


class _Cutter:
    """Cuts the leaves of one kind."""

    def __init__(self, cut: Partition, number: int, capacity: int, budget: int, grain):
        self._cut, self._number, self._kind = cut, number, cut.kinds[number]
        self._capacity, self._grain = capacity, grain
        self._largest = budget // self._kind.bytes_in_memory(1)
        method = self._kind.method
        self._granularity = "element" if method is None else method.granularity
        reductions = () if method is None else method.reductions
        ranked = any(isinstance(r, Threshold) for r in reductions)
        summed = any(isinstance(r, Sums) for r in reductions)
        # Whether all that must be known of a leaf can be found in the leaf alone.
        self._leafwise = (ranked or summed) and not method.ranks_model
        # A ranking would take several passes more. Sums take one: that costs less than
        # a block so large that there is memory for one worker only.
        cheap = not ranked and self._granularity in ("element", "row")
        at_once = WORKERS if cheap else 1
        self._most_whole = budget // self._kind.bytes_in_memory(at_once)

    def blocks(self) -> list[Block]:
        """Return blocks that cover the kind's leaves, in their order."""
        blocks: list[Block] = []
        waiting: list[Piece] = []
        room = self._capacity

        def flush() -> None:
            if waiting:
                blocks.append(Block(self._number, tuple(waiting), ROW))
                waiting.clear()

        for leaf in self._kind.leaves:
            shape = self._cut.shapes[leaf]
            size = math.prod(shape)
            if size == 0:
                continue
            matrix = None
            if self._granularity == "matrix":
                matrix = matrices(self._cut.paths[leaf], shape)
            apart = self._granularity in ("row", "tensor") or matrix
            if apart or self._leafwise:
                blocks += self._alone(leaf, shape, size, matrix)
                continue
            if size > room:
                flush()
                room = self._capacity
            if size <= room:
                waiting.append(Piece(leaf, 0, size))
                room -= -(-size // ROW) * ROW
            else:
                blocks += self._pieces(leaf, size, ROW, ROW, None)
        flush()
        return blocks

    def _alone(self, leaf: int, shape, size: int, matrix) -> list[Block]:
        """Return a leaf's own blocks: one, if its reductions can be found in it."""
        columns = ROW if self._granularity == "element" else (*shape, 1)[len(shape) - 1]
        if matrix:
            unit = matrix.rows * matrix.columns
        elif self._granularity == "tensor":
            unit = size
        else:
            unit = columns
        fits = -(-size // columns) * columns <= self._most_whole
        if self._leafwise and fits:
            piece = Piece(leaf, 0, size)
            return [Block(self._number, (piece,), columns, True, matrix)]
        return self._pieces(leaf, size, columns, unit, matrix)

    def _pieces(
        self, leaf: int, size: int, columns: int, unit: int, matrix
    ) -> list[Block]:
        step = self._step(leaf, size, unit, matrix)
        return [
            Block(
                self._number,
                (Piece(leaf, start, min(start + step, size)),),
                columns,
                False,
                matrix,
            )
            for start in range(0, size, step)
        ]

    def _step(self, leaf: int, size: int, unit: int, matrix) -> int:
        """Return how many elements of a leaf one block takes, all about as many.

        Blocks of one size are one program to compile.
        """
        path = self._cut.paths[leaf]
        grain = self._grain(path)
        if self._granularity != "element":
            unit = math.lcm(grain, unit)
        elif grain > 1:
            unit = grain
        unit = min(unit, size)
        # A matrix is not cut, whatever the budget; nor is a leaf that must stay whole.
        if unit > self._largest and self._granularity in ("element", "row"):
            need = unit * self._kind.bytes_in_memory(1)
            raise UserError(
                f"{path}: {unit} elements of it must be in memory together (whole rows "
                f"or chunks), which takes a memory budget of {need} bytes; raise "
                "memory_budget."
            )
        most = max(self._capacity // unit, 1)
        units = -(-size // unit)
        return -(-units // -(-units // most)) * unit
