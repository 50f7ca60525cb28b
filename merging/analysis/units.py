"""The parts of a model that statistics are kept for, cut into blocks to be read.

A unit is a leaf, or one layer of a leaf that is stacked by layers. It is cut from its
own beginning, every `PIECE` elements, whatever the blocks: so a sum over a piece is the
same sum for any budget and any number of processes.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.merge import rules
from merging.merge.cutting import WORKERS, is_stacked
from merging.merge.partition import ROW, SCRATCH, Block, Kind, Partition, Piece
from merging.runtime import tree
from merging.runtime.errors import UserError

# Elements that are summed in one matrix product; a multiple of ROW.
PIECE = 64 * ROW
# Elements of the largest block: of a chunk as Orbax writes it here, which is read whole
# for any part of it. Blocks at least, so that processes share.
LARGEST, FEWEST = 2**20, 64
# Bytes per element and vector of what a worker makes of a piece of float32, rounded up
# (float64 takes a few more): a task vector, its copy in float64, magnitudes, masks.
DERIVED = 24


class Unit(NamedTuple):
    """A leaf, or a layer of a stacked one.

    Attributes:
      leaf: its place among the partition's leaves.
      layer: its layer's number; None outside of all layers.
      kind: the leaf's path without the layer's number: the kind of matrix.
      start, stop: its elements in the leaf.
      shape: its own.
    """

    leaf: int
    layer: int | None
    kind: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return self.stop - self.start


def units(paths: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Unit]:
    """Return the units of leaves, in the leaves' order; none of an empty leaf."""
    found = []
    for leaf, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
        size = math.prod(shape)
        if not size:
            continue
        if is_stacked(path) and len(shape) > 1:
            each = size // shape[0]
            found += [
                Unit(leaf, i, path, i * each, (i + 1) * each, tuple(shape[1:]))
                for i in range(shape[0])
            ]
            continue
        named = rules.layer_leaf(path)
        layer = None if named is None else named.number
        kind = path if named is None else _joined(named.before, named.after)
        found.append(Unit(leaf, layer, kind, 0, size, tuple(shape)))
    return found


def _joined(before: str, after: str) -> str:
    """Return a path without its layer's number: `model.layers.mlp.up.weight`."""
    return re.sub(r"[._/]$", "", before) + after


def cut(
    abstracts: Sequence[Mapping[str, Any]],
    wanted: Callable[[str], bool],
    budget: int,
) -> tuple[Partition, list[Unit]]:
    """Cut the float leaves of models into blocks that fit a budget.

    Args:
      abstracts: {path: shape and dtype} of each model, the base first.
      wanted: whether a leaf takes part, by its path.
      budget: bytes of memory for blocks.

    Returns:
      The partition and all units. A block's pieces lie in one unit each.

    Raises:
      UserError: no leaf takes part, or the budget does not hold one piece.
    """
    first = abstracts[0]
    paths = tuple(
        sorted(p for p in first if tree.dtype_class(first[p]) == "float" and wanted(p))
    )
    shapes = tuple(tuple(first[path].shape) for path in paths)
    every = units(paths, shapes)
    if not every:
        raise UserError("no floating-point leaf takes part; see `only` and the models.")
    kinds: dict[tuple, list[int]] = {}
    for i, path in enumerate(paths):
        read = tuple(np.dtype(of[path].dtype) for of in abstracts)
        kinds.setdefault(read, []).append(i)
    described = tuple(Kind(None, tuple(i), r, np.dtype(r[0])) for r, i in kinds.items())
    total = sum(unit.size for unit in every)
    blocks: list[Block] = []
    for number, kind in enumerate(described):
        room = _capacity(kind, budget, total)
        own = [unit for unit in every if unit.leaf in kind.leaves]
        blocks += _blocks(number, own, room)
    return Partition(paths, shapes, described, tuple(blocks)), every


def _capacity(kind: Kind, budget: int, total: int) -> int:
    inputs = sum(dtype.itemsize for dtype in kind.read)
    each = (WORKERS + 1) * inputs + WORKERS * SCRATCH
    pieces = WORKERS * PIECE * DERIVED * (len(kind.read) - 1)
    fine = max(total // FEWEST, PIECE)
    room = min((budget - pieces) // each, LARGEST, fine) // PIECE * PIECE
    if room < PIECE:
        raise UserError(
            f"a memory budget of {budget} bytes does not hold {PIECE} elements of each "
            f"model; give at least {pieces + each * PIECE} (memory_budget)."
        )
    return room


def _blocks(kind: int, own: Sequence[Unit], room: int) -> list[Block]:
    """Fill blocks with pieces of units, neighbours together; cut no unit in vain."""
    blocks, waiting, left = [], [], room
    for unit in own:
        start = unit.start
        while start < unit.stop:
            rows = _rows(unit.stop - start)
            # What does not fit begins a block; a longer one is cut every so often.
            if waiting and left < rows and (left < PIECE or start == unit.start):
                blocks.append(Block(kind, tuple(waiting), ROW))
                waiting, left = [], room
            whole = rows <= left
            stop = unit.stop if whole else start + left // PIECE * PIECE
            waiting.append(Piece(unit.leaf, start, stop))
            left -= _rows(stop - start)
            start = stop
    if waiting:
        blocks.append(Block(kind, tuple(waiting), ROW))
    return blocks


def _rows(elements: int) -> int:
    """Return elements as they fill whole rows."""
    return -(-elements // ROW) * ROW
