"""Answers to reductions by passes over the blocks of checkpoints.

A pass reads every block that is asked about once and answers all experts. What it finds
is written down with what was asked: a merge that was stopped makes no pass twice.
"""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.merge import checks, kernels
from merging.merge.histogram import Histogram
from merging.merge.in_memory_reduce import InMemoryAnswers, at_stage
from merging.merge.journal import Journal
from merging.merge.kernels import Gathered
from merging.merge.partition import ROW, Block, Partition, Piece, RowMetadata
from merging.merge.pipeline import Loaded, Pipeline
from merging.merge.reduce import LeafGroup, Stage
from merging.methods import CountQuery, Sums, Threshold, Votes
from merging.runtime import processes
from merging.runtime.progress import Progress

# A sample: runs of neighbours, evenly spread over all leaves.
RUN, RUNS = 256, 1024


class Passes:
    """The blocks of checkpoints, as `reduce.Answers`.

    Args:
      cut: the merge's partition.
      pipeline: to read blocks with.
      names: of the models that it reads, the base first.
      journal: keeps the answers.
      mine: the blocks that this process reads.
      progress: told the bytes that were read.
    """

    together = True

    def __init__(
        self,
        cut: Partition,
        pipeline: Pipeline,
        names: Sequence[str],
        journal: Journal,
        mine: Sequence[int],
        progress: Progress,
    ):
        self._cut, self._pipeline, self._names = cut, pipeline, names
        self._journal, self._mine, self._progress = journal, set(mine), progress
        self._histograms: dict[tuple[str, int], Histogram] = {}
        self._sample: tuple[str, _Sample] | None = None
        self._lock = threading.Lock()

    def selected(self, stage: Stage, expert: int, wanted: Threshold) -> None:
        """Return nothing: no process holds all keys."""

    def sample(
        self, stage: Stage, expert: int
    ) -> Callable[[int, int], np.ndarray] | None:
        """Return the function that gives sampled keys of a leaf."""
        if self._sample is None or self._sample[0] != stage.name:
            self._sample = stage.name, _Sample(self._cut, self._pipeline, stage)
        return self._sample[1].of(expert)

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Answer from the journal or the last passes, or make one for the rest."""
        name = f"{stage.name}/{turn}"
        asked = {expert: _plain(query) for expert, query in queries.items()}
        if (kept := self._journal.answers(name, asked)) is not None:
            return {e: np.array(kept[e], np.int64) for e in queries}
        known = self._histograms
        missing = {
            expert: query
            for expert, query in queries.items()
            if (stage.name, expert) not in known
            or not known[stage.name, expert].answers(query)
        }
        if missing:
            made = self._counted(stage, missing)
            known |= {(stage.name, expert): one for expert, one in made.items()}
        replies = {
            expert: known[stage.name, expert].answer(query, processes.all_reduce)
            for expert, query in queries.items()
        }
        plain = {expert: reply.tolist() for expert, reply in replies.items()}
        self._journal.keep_answers(name, asked, plain)
        return replies

    def sums(self, stage: Stage, reduction: Sums, experts: Sequence[int]) -> np.ndarray:
        """Return the sums over each leaf, by one pass: float64 [leaves, T]."""
        layout = stage.group.layout
        name = f"{stage.name}/sums"
        asked = dict.fromkeys(experts, f"{reduction.name} of {list(experts)}")
        if (kept := self._journal.answers(name, asked)) is not None:
            return np.array(kept[experts[0]], np.float64).reshape(len(layout.paths), -1)
        place = {leaf: i for i, leaf in enumerate(stage.group.leaves)}
        method = at_stage(stage, experts)
        models = self._models(stage, experts)
        totals = reduction.init(layout, len(experts), method.weights)

        def add(loaded: Loaded) -> None:
            put = self._put(stage.group, loaded)
            arrays = put.models if method.needs_base else [None, *put.models]
            partial = kernels.reduced(
                reduction,
                method,
                arrays[0],
                arrays[1:],
                [put.spread(stage.states[i]) for i in experts],
                put.offset,
                strides=loaded.block.strides,
            )
            partial, row = np.asarray(partial), 0
            if not np.isfinite(partial).all():
                self._refuse(loaded, models)
            for piece, rows in zip(
                loaded.block.pieces, loaded.block.counts, strict=True
            ):
                part = partial[:, row : row + rows].reshape(len(partial), -1)
                with self._lock:  # several blocks are worked on at a time
                    reduction.combine(totals, part, place[piece.leaf])
                row += rows

        self._read(stage.group.blocks, models, add, "adding up")
        processes.all_reduce([totals])
        found = reduction.finish(totals, layout.wide)
        # Python writes a float so that it is read back as the very same.
        self._journal.keep_answers(name, asked, dict.fromkeys(experts, found.tolist()))
        return found

    def votes(self, stage: Stage, reduction: Votes) -> int | None:
        """Leave it open: blocks are merged under either majority (`blocks`)."""
        return None

    def in_memory(self, group: LeafGroup, loaded: Loaded) -> InMemoryAnswers:
        """Return the answers from a block that holds its leaf whole."""
        put = self._put(group, loaded)
        base, experts = None, put.models
        if group.method.needs_base:
            base, *experts = put.models
        return InMemoryAnswers(
            [loaded.block],
            [put.metadata],
            [base],
            [[expert] for expert in experts],
            group.layout,
            group.leaves,
            everything=False,
        )

    def _models(self, stage: Stage, experts: Sequence[int]) -> list[int]:
        """Return which models a stage of some experts reads, the base first."""
        return read_for(stage, experts, self._pipeline.has_base)

    def _counted(
        self, stage: Stage, queries: Mapping[int, CountQuery]
    ) -> dict[int, Histogram]:
        """Read every block that is asked about, once, and count."""
        group = stage.group
        units = sum(len(query.threshold) for query in queries.values())
        made = {
            expert: Histogram(query, units, group.layout.key_dtype)
            for expert, query in queries.items()
        }
        place = {leaf: i for i, leaf in enumerate(group.leaves)}
        order = sorted(made)

        def asked(number: int) -> bool:
            leaves = [place[piece.leaf] for piece in self._cut.blocks[number].pieces]
            return any(
                len(query.threshold) == 1 or (query.threshold[leaves] >= 0).any()
                for query in queries.values()
            )

        def count(loaded: Loaded) -> None:
            put = self._put(group, loaded)
            for i, expert in enumerate(order):
                one = _Expert(stage, expert, put, i - len(order))
                histogram = made[expert]
                if window := histogram.window():
                    histogram.add_windowed(*one.windowed(window))
                    continue
                for piece, part in loaded.block.parts(one.keys()):
                    histogram.add(place[piece.leaf], piece.start, part)

        models = self._models(stage, order)
        numbers = [number for number in group.blocks if asked(number)]
        self._read(numbers, models, count, "counting magnitudes")
        for histogram in made.values():
            processes.all_reduce(histogram.totals())
            histogram.finish()
        return made

    def _read(
        self,
        numbers: Sequence[int],
        models: Sequence[int],
        work: Callable[[Loaded], None],
        note: str,
    ) -> None:
        """Work on this process's blocks among these."""
        mine = [number for number in numbers if number in self._mine]
        for block in self._pipeline.each(mine, lambda _: models, work):
            read = self._cut.kinds[block.kind].read
            size = sum(read[model].itemsize for model in models) * block.elements
            self._progress.advance(size, note)

    def _put(self, group: LeafGroup, loaded: Loaded) -> "_Put":
        rows = loaded.models[0].shape[0]
        metadata = RowMetadata(loaded.block, group.layout, group.leaves, rows)
        return _put(self._pipeline, loaded, metadata)

    def _refuse(self, loaded: Loaded, models: Sequence[int]) -> None:
        """Name the inputs that are not finite, or the leaves whose terms are too large.

        Raises:
          UserError: always.
        """
        wrong = [
            (self._cut.paths[piece.leaf], self._names[model])
            for model, array in zip(models, loaded.models, strict=True)
            for piece, part in loaded.block.parts(array)
            if kernels.nonfinite(part)
        ]
        leaves = [self._cut.paths[piece.leaf] for piece in loaded.block.pieces]
        checks.refuse_nonfinite(wrong, leaves, "float32, squared,")


class _Put(NamedTuple):
    """A block on the devices, with what is known of its rows."""

    loaded: Loaded
    metadata: RowMetadata
    models: list[jax.Array]
    offset: Any
    place: Callable[[Any], Any]

    def spread(self, states: Sequence[Any]) -> Any:
        """Return states as columns on the devices."""
        return self.place([self.metadata.spread(state) for state in states])


def _put(pipeline: Pipeline, loaded: Loaded, metadata: RowMetadata) -> _Put:
    """Place a block on the devices."""
    place = functools.partial(pipeline.on_devices, loaded.block)
    models, offset = place((loaded.models, metadata.offset))
    return _Put(loaded, metadata, models, offset, place)


class _Expert(NamedTuple):
    """One expert's part of a block, at a stage.

    Attributes:
      stage: where it is looked at.
      expert: its number.
      put: the block.
      place: of its array among the block's models, from the end.
    """

    stage: Stage
    expert: int
    put: _Put
    place: int

    def keys(self) -> np.ndarray:
        """Return the magnitude keys [rows, columns]."""
        arrays = self._arrays(self.put.models)
        states = self.put.spread(self.stage.states[self.expert])
        return np.asarray(self._keys(arrays, states, self.put.offset))

    def windowed(self, window: tuple[int, int]) -> tuple[np.ndarray | int, int]:
        """Return the keys in a window (or their number), and how many lie above."""
        dtype, metadata = self.stage.group.layout.key_dtype, self.put.metadata
        states = [metadata.spread(s) for s in self.stage.states[self.expert]]
        low, bins = (dtype.type(number) for number in window)
        codes = kernels.windowed(
            self.stage.before[self.expert],
            *self._arrays(self.put.models),
            self.put.place(states),
            self.put.offset,
            low,
            bins,
            strides=self.put.loaded.block.strides,
            dtype=dtype,
        )
        codes = np.asarray(codes).reshape(-1)
        above = np.count_nonzero(codes == kernels.ABOVE)
        if bins == 1:
            return int(np.count_nonzero(codes == kernels.INSIDE)), above
        positions = kernels.marked(codes, kernels.INSIDE)
        if not len(positions):
            return np.zeros(0, dtype), above
        few = Gathered(metadata, positions, self.put.loaded.block.columns)
        arrays = [
            None if array is None else few.elements(array)
            for array in self._arrays(self.put.loaded.models)
        ]
        return few.only(self._keys(arrays, few.rows(states), few.offset)), above

    def _arrays(self, models: Sequence[Any]) -> list[Any]:
        """Return the base's array, or None, and the expert's."""
        needs_base = self.stage.group.method.needs_base
        return [models[0] if needs_base else None, models[self.place]]

    def _keys(self, arrays: Sequence[Any], states: Any, offset: Any) -> jax.Array:
        return kernels.keys(
            self.stage.before[self.expert],
            *arrays,
            states,
            offset,
            strides=(0, 1),
            dtype=self.stage.group.layout.key_dtype,
        )


class _Sample:
    """Keys of every expert: all of a small model, runs of neighbours of a large one."""

    def __init__(self, cut: Partition, pipeline: Pipeline, stage: Stage):
        self._cut, self._pipeline, self._stage = cut, pipeline, stage
        sizes = stage.group.layout.sizes
        self._everything = int(sizes.sum()) <= RUN * RUNS

    def of(self, expert: int) -> Callable[[int, int], np.ndarray]:
        """Return the function that gives every stride-th key of a leaf, or its runs."""

        @functools.cache
        def keys() -> list[np.ndarray]:
            return self._keys(expert)

        return lambda leaf, stride: keys()[leaf][:: stride if self._everything else 1]

    def _keys(self, expert: int) -> list[np.ndarray]:
        group = self._stage.group
        place = {leaf: i for i, leaf in enumerate(group.leaves)}
        found: list[list[np.ndarray]] = [
            [np.zeros(0, group.layout.key_dtype)] for _ in place
        ]
        for loaded in self._loaded:
            rows = loaded.models[0].shape[0]
            metadata = RowMetadata(loaded.block, group.layout, group.leaves, rows)
            put = _put(self._pipeline, loaded, metadata)
            one = _Expert(self._stage, expert, put, expert - len(self._stage.before))
            for piece, part in loaded.block.parts(one.keys()):
                found[place[piece.leaf]].append(part)
        return [np.concatenate(parts) for parts in found]

    @functools.cached_property
    def _loaded(self) -> list[Loaded]:
        """The sampled pieces of all models, in a block for each kind; read once."""
        columns = ROW if self._everything else RUN
        every = self._pieces()
        experts = range(len(self._stage.before))
        models = read_for(self._stage, experts, self._pipeline.has_base)
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


def _plain(query: CountQuery) -> list[Any]:
    """Return a query as plain JSON."""
    cutoff = query.cutoff
    return [query.threshold.tolist(), None if cutoff is None else cutoff.tolist()]
