"""How leaves are cut into blocks: under a budget, or packed as they lie in memory.

Streamed models are cut under a memory budget (`partition`), from the sizes alone: the
same for any number of processes, which share the blocks out. Models in memory are not
cut (`in_memory_blocks`): small leaves on one device are packed into rows, so that
thirty of them cost one program and one call; every other leaf is a block of its own.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from merging.merge.partition import ROW, Block, Kind, Partition, Piece, rounded
from merging.methods import Matrices, Method, Sums, Threshold
from merging.runtime import tree
from merging.runtime.errors import UserError

# Larger blocks gain nothing; smaller ones cost calls.
LARGEST, SMALLEST = 2**22, 2**18
# Blocks in all, at least, so that four processes' shares differ by no more than 2 %.
FINENESS = 128
# So many blocks are made equal; of more, the last may be smaller.
FEW = 8
# Blocks that are worked on at a time, while one more is being read.
WORKERS = 3
# In memory: of a row, and of the leaves and blocks that are packed; that costs a copy
# in working precision.
PACKED_ROW, PACKED_LEAF, PACKED_BLOCK = 128, 2**20, 2**24
# A leaf that holds a layer after the other is named after `layers`, without a number.
_STACKED = re.compile(r"(?:^|[./])(?:layers|blocks)[./](?!\d)")
# Tables of a vocabulary, and PyTorch's weights, have their inputs last.
_INPUTS_LAST = re.compile(r"\.weight$|embed|(?:^|[./])(?:lm_)?head(?:[./]|$)")


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
        self._fits = budget // self._kind.bytes_in_memory(WORKERS)
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
        paths = [self._cut.paths[leaf] for leaf in self._kind.leaves]
        anywhere = self._granularity == "element" and not self._leafwise
        if anywhere and all(self._grain(path) == 1 for path in paths):
            return self._even()
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

    def _even(self) -> list[Block]:
        """Return blocks of one size, through the leaves: one program for all."""
        sizes = {i: math.prod(self._cut.shapes[i]) for i in self._kind.leaves}
        rows = sum(-(-size // ROW) for size in sizes.values())
        most = self._capacity // ROW
        step = rounded(most)
        if step * ROW > self._fits or (step > most and step * (FINENESS - 1) >= rows):
            step = rounded(most, down=True)
        if rows <= step * FEW:
            step = -(-rows // max(-(-rows // step), 1))
        blocks: list[Block] = []
        waiting: list[Piece] = []
        room = step
        for leaf, size in sizes.items():
            start = 0
            while start < size:
                stop = min(start + room * ROW, size)
                waiting.append(Piece(leaf, start, stop))
                room -= -(-(stop - start) // ROW)
                start = stop
                if not room:
                    blocks.append(Block(self._number, tuple(waiting), ROW))
                    waiting, room = [], step
        if waiting:
            blocks.append(Block(self._number, tuple(waiting), ROW))
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
