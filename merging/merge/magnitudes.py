"""What a search for a threshold looks at: the magnitude keys of blocks, or a sample."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.merge import kernels
from merging.merge.kernels import Gathered
from merging.merge.partition import ROW, Block, Partition, Piece, RowMetadata
from merging.merge.pipeline import Loaded, Pipeline
from merging.merge.reduce import LeafGroup, Stage
from merging.methods import Method, Selection

# A sample: runs of neighbours, evenly spread over all leaves.
RUN, RUNS = 2048, 512


class Put(NamedTuple):
    """A block on the devices, with what is known of its rows.

    Attributes:
      loaded: the block.
      metadata: of its rows.
      models: its arrays on the devices.
      offset: the index of each row's first element, for a call with them.
      filled: how many elements of each row are there, likewise; None if all.
      place: makes such of other things that are known of rows.
    """

    loaded: Loaded
    metadata: RowMetadata
    models: list[jax.Array]
    offset: Any
    filled: Any
    place: Callable[[Any], Any]

    def spread(self, states: Sequence[Any]) -> Any:
        """Return states as columns, for a call."""
        return self.place([self.metadata.spread(state) for state in states])

    @property
    def fold(self) -> int:
        """How many rows, which lie on one device, are counted together."""
        rows, devices = len(self.models[0]), len(self.models[0].sharding.device_set)
        return math.gcd(rows // devices, kernels.FOLDED)


def put_block(pipeline: Pipeline, loaded: Loaded, group: LeafGroup) -> Put:
    """Place a block of a group's leaves on the devices."""
    block, rows = loaded.block, loaded.models[0].shape[0]
    metadata = RowMetadata(block, group.layout, group.leaves, rows)
    place = functools.partial(pipeline.beside, block)
    models = pipeline.on_devices(block, loaded.models)
    known = place((metadata.offset, metadata.filled))
    return Put(loaded, metadata, models, *known, place)


class Ranked(NamedTuple):
    """What a search looks at in a block.

    Attributes:
      stage: where it is looked at.
      search: its number.
      put: the block.
      read: the experts whose arrays come last among the block's models.
    """

    stage: Stage
    search: int
    put: Put
    read: Sequence[int]

    def keys(self) -> np.ndarray:
        """Return the magnitude keys [rows, columns]."""
        return np.asarray(kernels.keys(*self._inputs(), **self._how))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the keys of single elements, by their positions in the flat block."""
        loaded = self.put.loaded
        few = Gathered(self.put.metadata, positions, loaded.block.columns)
        arrays = jax.tree.map(few.elements, self._arrays(loaded.models))
        known = few.rows(self._states())
        inputs = *self._what(), *arrays, *known, few.offset
        return few.only(kernels.keys(*inputs, **self._how))

    def tallied(self, key: int) -> np.ndarray:
        """Return what `kernels.tallied` says of one key."""
        inputs = *self._inputs(), self.put.filled, self._type(key)
        return np.asarray(kernels.tallied(*inputs, fold=self.put.fold, **self._how))

    def codes(self, low: int, bins: int) -> np.ndarray:
        """Return, flat, where each key lies (`kernels.windowed`)."""
        window = self.put.filled, self._type(low), self._type(bins)
        found = kernels.windowed(*self._inputs(), *window, **self._how)
        return np.asarray(found).reshape(-1)

    def windowed(self, window: tuple[int, int]) -> tuple[np.ndarray | int, int]:
        """Return the keys in a window (or their number), and how many lie above."""
        low, bins = window
        if bins == 1:
            above, inside = kernels.tally(self.tallied(low), self.put.fold)
            return inside, above
        codes = self.codes(low, bins)
        above, _ = kernels.tally(codes, 1)
        positions = np.flatnonzero(codes == kernels.INSIDE)
        return self.at(positions) if len(positions) else np.zeros(0, self._type), above

    @property
    def _type(self) -> type[np.generic]:
        return self.stage.group.layout.key_dtype.type

    @property
    def _how(self) -> dict[str, Any]:
        dtype = self.stage.group.layout.key_dtype
        return {"strides": self.put.loaded.block.strides, "dtype": dtype}

    def _inputs(self) -> tuple[Any, ...]:
        """Return what the kernels that look at the whole block take."""
        put = self.put
        states = put.place(self._states())
        return *self._what(), *self._arrays(put.models), *states, put.offset

    def _what(self) -> tuple[Method, Selection | None]:
        experts = self.stage.experts(self.search)
        return self.stage.method(experts), self.stage.selection

    def _arrays(self, models: Sequence[Any]) -> list[Any]:
        """Return the base's array, or None, and those of the experts."""
        needs_base = self.stage.group.method.needs_base
        last = models[len(models) - len(self.read) :]
        mine = [last[self.read.index(i)] for i in self.stage.experts(self.search)]
        return [models[0] if needs_base else None, mine]

    def _states(self) -> list[Any]:
        """Return the states of transforms and selections, as columns."""
        spread, stage = self.put.metadata.spread, self.stage
        of = [[spread(s) for s in stage.states[i]] for i in stage.experts(self.search)]
        return [of, [spread(state) for state in stage.selected]]


class Sample:
    """Keys of every search: all of a small model, runs of neighbours of a large one."""

    def __init__(self, cut: Partition, pipeline: Pipeline, stage: Stage):
        self._cut, self._pipeline, self._stage = cut, pipeline, stage
        self._experts = range(len(stage.before))
        sizes = stage.group.layout.sizes
        self._everything = int(sizes.sum()) <= RUN * RUNS

    def of(self, search: int) -> Callable[[int, int], np.ndarray]:
        """Return the function that gives every stride-th key of a leaf, or its runs."""

        @functools.cache
        def keys() -> list[np.ndarray]:
            return self._keys(search)

        return lambda leaf, stride: keys()[leaf][:: stride if self._everything else 1]

    def _keys(self, search: int) -> list[np.ndarray]:
        group = self._stage.group
        place = {leaf: i for i, leaf in enumerate(group.leaves)}
        found: list[list[np.ndarray]] = [
            [np.zeros(0, group.layout.key_dtype)] for _ in place
        ]
        for loaded in self._loaded:
            put = put_block(self._pipeline, loaded, group)
            one = Ranked(self._stage, search, put, self._experts)
            for piece, part in loaded.block.parts(one.keys()):
                found[place[piece.leaf]].append(part)
        return [np.concatenate(parts) for parts in found]

    @functools.cached_property
    def _loaded(self) -> list[Loaded]:
        """The sampled pieces of all models, in a block for each kind; read once."""
        columns = ROW if self._everything else RUN
        every = self._pieces()
        models = read_for(self._stage, self._experts, self._pipeline.has_base)
        loaded = []
        for number, kind in enumerate(self._cut.kinds):
            pieces = tuple(piece for piece in every if piece.leaf in kind.leaves)
            if pieces:
                block = Block(number, pieces, columns)
                loaded.append(self._pipeline.load(block, models))
        return loaded

    def _pieces(self) -> list[Piece]:
        group = self._stage.group
        sizes = group.layout.sizes
        if self._everything:
            return [
                Piece(leaf, 0, int(size))
                for leaf, size in zip(group.leaves, sizes, strict=True)
                if size
            ]
        ends = np.cumsum(sizes)
        pieces = []
        for run in range(RUNS):
            position = (2 * run + 1) * int(ends[-1]) // (2 * RUNS)
            i = int(np.searchsorted(ends, position, side="right"))
            size = int(sizes[i])
            start = min(position - int(ends[i]) + size, max(size - RUN, 0))
            pieces.append(Piece(group.leaves[i], start, min(start + RUN, size)))
        return pieces


def read_for(stage: Stage, experts: Sequence[int], has_base: bool) -> list[int]:
    """Return which models a stage of some experts reads, the base first."""
    base = [0] if stage.group.method.needs_base else []
    return base + [expert + has_base for expert in experts]
