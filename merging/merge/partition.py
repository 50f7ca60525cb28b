"""Leaves cut into blocks under a memory budget, and dealt out to processes.

Every leaf is a row-major run of elements; a piece is a range of one, a block one or
more pieces that are read, merged and written together. Where the cuts are changes no
bit of the result, so a plan follows from the sizes alone: the same for any number of
processes, which share its blocks out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from merging.methods import Layout, Method
from merging.runtime import numerics, tree
from merging.runtime.errors import UserError

# Elements in a row of a block. Small leaves share a block, each from a row of its own.
ROW = 1024
# Larger blocks gain nothing; smaller ones cost calls.
LARGEST, SMALLEST = 2**22, 2**18
# Blocks in all, at least, so that four processes' shares differ by no more than 2 %.
FINENESS = 128
# Blocks that are worked on at a time, while one more is being read.
WORKERS = 3
# Bytes per element of what a merge or a count computes in between.
SCRATCH = 16


class Piece(NamedTuple):
    """Elements [start, stop) of a leaf, by its place among the plan's leaves."""

    leaf: int
    start: int
    stop: int


class Group(NamedTuple):
    """Leaves that are treated alike, in the order of their paths.

    Attributes:
      method: that merges them; None leaves them as they are in the first model.
      leaves: their places among the plan's leaves.
      read: the dtypes as stored, one for each model that is read, in order.
      dtype: of the result.
    """

    method: Method | None
    leaves: tuple[int, ...]
    read: tuple[np.dtype, ...]
    dtype: np.dtype

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
        return (workers + 1) * inputs + workers * (self.dtype.itemsize + SCRATCH)


class Block(NamedTuple):
    """Pieces of one group, one below the other in an array [rows, columns].

    Attributes:
      group: its place among the plan's groups.
      pieces: each begins a row.
      columns: of a row; `ROW`, or a leaf's last dimension if rows must stay whole.
      whole: whether a leaf's statistics can be found in this block alone.
    """

    group: int
    pieces: tuple[Piece, ...]
    columns: int
    whole: bool

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


class Plan(NamedTuple):
    """Which blocks to merge, in order.

    Attributes:
      paths: of all leaves, sorted.
      shapes: theirs.
      groups: leaves treated alike.
      blocks: of all groups.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]

    def layout(self, leaves: Sequence[int]) -> Layout:
        """Return leaves as a method's statistics want them."""
        group_of = {i: group for group in self.groups for i in group.leaves}
        return Layout(
            tuple(self.paths[i] for i in leaves),
            tuple(self.shapes[i] for i in leaves),
            any(group_of[i].working == np.float64 for i in leaves),
        )

    def bytes_of(self, block: Block) -> int:
        """Return the bytes that are read and written for a block."""
        return block.elements * self.groups[block.group].bytes_per_element

    def read_for(self, block: Block) -> int:
        """Return the bytes that are read for a block, in all passes over it."""
        group = self.groups[block.group]
        each = sum(d.itemsize for d in group.read)
        return block.elements * each * self.passes_over(block)

    def written_for(self, block: Block) -> int:
        """Return the bytes that are written for a block."""
        return block.elements * self.groups[block.group].dtype.itemsize

    def passes_over(self, block: Block) -> int:
        """Return how often a block is read, as a rule (see `survey_passes`)."""
        method = self.groups[block.group].method
        return 1 if method is None or block.whole else 1 + survey_passes(method)

    def share(self, process: int, processes: int) -> list[int]:
        """Return a process's blocks: neighbours, and an equal part of the bytes."""
        sizes = np.array([self.bytes_of(b) for b in self.blocks], np.float64)
        middles = np.cumsum(sizes) - sizes / 2
        owner = (middles * processes / max(sizes.sum(), 1)).astype(int)
        return [int(i) for i in np.flatnonzero(owner == process)]


def statistics_scope(method: Method) -> str:
    """Return over what a method ranks magnitudes: `model`, `tensor` or `none`.

    A ranking within rows needs no statistics: rows are never cut.
    """
    scopes = {getattr(t, "scope", "none") for t in method.transforms}
    if "global" in scopes:
        return "model"
    return "tensor" if method.cut == "tensor" or "tensor" in scopes else "none"


def survey_passes(method: Method) -> int:
    """Return how many passes before the merge find a method's statistics, as a rule.

    A window of magnitudes that misses the threshold costs another. Exact ties cost two
    more: how many there are, and where the last one that is kept lies.
    """
    ranked = [t for t in method.transforms if getattr(t, "scope", "row") != "row"]
    return sum(3 if getattr(t, "ties", "") == "exact" else 1 for t in ranked)


def make_plan(
    abstracts: Sequence[Mapping[str, jax.ShapeDtypeStruct]],
    treatment: Mapping[str, Method | None],
    budget: int,
    *,
    dtype: np.dtype | None = None,
    granularity: Callable[[str], int] = lambda path: 1,
) -> Plan:
    """Cut the leaves of a merge into blocks.

    Args:
      abstracts: {path: shape and dtype} of each model, the base first if there is one;
        all of one structure.
      treatment: the method for each float leaf; None takes it from the first model.
      budget: bytes of memory for blocks.
      dtype: of the merged leaves; their first model's by default.
      granularity: elements that the writer wants to get together, for each path.

    Raises:
      UserError: the budget is too small for one row or one chunk of a leaf.
    """
    first = abstracts[0]
    paths = tuple(sorted(first))
    groups: dict[tuple, list[int]] = {}
    for i, path in enumerate(paths):
        read = tuple(np.dtype(of[path].dtype) for of in abstracts)
        floating = tree.dtype_class(first[path]) == "float"
        method = treatment[path] if floating else None
        kept = floating and method is None
        target = np.dtype(dtype) if dtype is not None and floating else read[0]
        key = (method, read[:1] if kept else read, target)
        groups.setdefault(key, []).append(i)
    plan = Plan(
        paths,
        tuple(tuple(first[path].shape) for path in paths),
        tuple(Group(m, tuple(of), r, d) for (m, r, d), of in groups.items()),
        (),
    )
    total = sum(math.prod(shape) for shape in plan.shapes)
    blocks: list[Block] = []
    for number, group in enumerate(plan.groups):
        capacity = _capacity(plan, group, budget, total)
        largest = _largest(group, budget)
        blocks += _Cutter(plan, number, capacity, largest, granularity).blocks()
    return plan._replace(blocks=tuple(blocks))


def workers(plan: Plan, budget: int) -> int:
    """Return how many blocks can be worked on at a time, one at least."""
    for count in range(WORKERS, 1, -1):
        if all(
            plan.groups[block.group].bytes_in_memory(count) * block.size <= budget
            for block in plan.blocks
        ):
            return count
    return 1


def _largest(group: Group, budget: int) -> int:
    """Return the most elements that may be in one block, worked on by itself."""
    return budget // group.bytes_in_memory(1)


def _capacity(plan: Plan, group: Group, budget: int, total: int) -> int:
    fits = budget // group.bytes_in_memory(WORKERS)
    fine = min(LARGEST, max(SMALLEST, total // FINENESS))
    capacity = min(fits, fine) // ROW * ROW
    if capacity < ROW:
        least = group.bytes_in_memory(WORKERS) * ROW
        raise UserError(
            f"a memory budget of {budget} bytes does not hold one block of each model; "
            f"give at least {least} (memory_budget)."
        )
    return capacity


class _Cutter:
    """Cuts the leaves of one group."""

    def __init__(self, plan: Plan, number: int, capacity: int, largest: int, grain):
        self._plan, self._number = plan, number
        self._group = plan.groups[number]
        self._capacity, self._largest, self._grain = capacity, largest, grain
        method = self._group.method
        self._scope = "none" if method is None else statistics_scope(method)
        self._rows_stay_whole = method is not None and method.cut == "row"

    def blocks(self) -> list[Block]:
        """Return blocks that cover the group's leaves, in their order."""
        blocks: list[Block] = []
        waiting: list[Piece] = []
        room = self._capacity
        for leaf in self._group.leaves:
            size = math.prod(self._plan.shapes[leaf])
            if size == 0:
                continue
            columns = self._columns(leaf)
            if self._rows_stay_whole or self._scope == "tensor":
                blocks += self._alone(leaf, size, columns)
                continue
            if size > room and waiting:
                blocks.append(Block(self._number, tuple(waiting), ROW, False))
                waiting, room = [], self._capacity
            if size <= room:
                waiting.append(Piece(leaf, 0, size))
                room -= -(-size // ROW) * ROW
            else:
                blocks += self._cut(leaf, size, ROW)
        if waiting:
            blocks.append(Block(self._number, tuple(waiting), ROW, False))
        return blocks

    def _columns(self, leaf: int) -> int:
        shape = self._plan.shapes[leaf]
        return (shape[-1] if shape else 1) if self._rows_stay_whole else ROW

    def _alone(self, leaf: int, size: int, columns: int) -> list[Block]:
        """Return a leaf's own blocks: one, if its statistics can be found in it."""
        if self._scope == "tensor" and -(-size // columns) * columns <= self._largest:
            return [Block(self._number, (Piece(leaf, 0, size),), columns, True)]
        return self._cut(leaf, size, columns)

    def _cut(self, leaf: int, size: int, columns: int) -> list[Block]:
        step = self._step(leaf, size, columns)
        return [
            Block(
                self._number,
                (Piece(leaf, start, min(start + step, size)),),
                columns,
                False,
            )
            for start in range(0, size, step)
        ]

    def _step(self, leaf: int, size: int, columns: int) -> int:
        """Return how many elements of a leaf one block takes, all about as many.

        Blocks of one size are one program to compile.
        """
        path = self._plan.paths[leaf]
        unit = self._grain(path)
        if self._rows_stay_whole:
            unit = math.lcm(unit, columns)
        elif unit == 1:
            unit = ROW
        unit = min(unit, size)
        if unit > self._largest:
            need = unit * self._group.bytes_in_memory(1)
            raise UserError(
                f"{path}: {unit} elements of it must be in memory together (whole rows "
                f"or chunks), which takes a memory budget of {need} bytes; raise "
                "memory_budget."
            )
        most = max(self._capacity // unit, 1)
        units = -(-size // unit)
        return -(-units // -(-units // most)) * unit
