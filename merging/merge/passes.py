"""Answers to reductions by passes over the blocks of checkpoints.

A pass reads every block that is asked about once and answers all experts. What it finds
is written down with what was asked: a merge that was stopped makes no pass twice.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from merging.merge import checks, kernels, on_host
from merging.merge.blocks import BlockMerger
from merging.merge.histogram import Histogram
from merging.merge.in_memory_reduce import InMemoryAnswers
from merging.merge.journal import Guessed, Journal
from merging.merge.magnitudes import Ranked, Sample, put_block, read_for
from merging.merge.partition import Block, Partition
from merging.merge.pipeline import Loaded, Pipeline
from merging.merge.ranking import WholeLeaf
from merging.merge.reduce import LeafGroup, Stage
from merging.merge.search import Ends
from merging.merge.speculation import Guess
from merging.methods import CountQuery, Sums, Threshold, Votes
from merging.runtime import processes
from merging.runtime.progress import Progress

Speculate = Callable[[Stage, Mapping[int, CountQuery]], Guess | None]


class Passes:
    """The blocks of checkpoints, as `reduce.Answers`.

    Args:
      cut: the merge's partition.
      pipeline: to read blocks with.
      names: of the models that it reads, the base first.
      journal: keeps the answers.
      mine: the blocks that this process reads.
      progress: told the bytes that were read.
      after: gives the bytes that merging all that is left will tell it.
      speculate: gives what a stage's queries leave no doubt about, if anything; then
        the pass that answers them merges as well.
      merger: merges those blocks.
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
        after: Callable[[], int] = lambda: 0,
        speculate: Speculate = lambda stage, queries: None,
        merger: BlockMerger | None = None,
    ):
        self._cut, self._pipeline, self._names = cut, pipeline, names
        self._journal, self._mine, self._progress = journal, set(mine), progress
        self._after, self._speculate, self._merger = after, speculate, merger
        self._histograms: dict[tuple[str, int], Histogram] = {}
        self._sample: tuple[str, Sample] | None = None
        self._lock = threading.Lock()

    def selected(self, stage: Stage, search: int, wanted: Threshold) -> None:
        """Return nothing: no process holds all keys."""

    def sample(
        self, stage: Stage, search: int
    ) -> Callable[[int, int], np.ndarray] | None:
        """Return the function that gives sampled keys of a leaf.

        None where a score, or a transform before, needs whole rows.
        """
        if not stage.elementwise:
            return None
        if self._sample is None or self._sample[0] != stage.name:
            self._sample = stage.name, Sample(self._cut, self._pipeline, stage)
        return self._sample[1].of(search)

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Answer from the journal or the last passes, or make one for the rest."""
        name = f"{stage.name}/{turn}"
        asked = {i: _plain(query) for i, query in queries.items()}
        if (kept := self._journal.answers(name, asked)) is not None:
            return {i: np.array(kept[i], np.int64) for i in queries}
        here = {(stage.name, i): query for i, query in queries.items()}
        # What answers none of these is not asked again, and goes before a pass.
        known = self._histograms = {
            key: one
            for key, one in self._histograms.items()
            if key in here and one.answers(here[key])
        }
        missing = {i: query for (at, i), query in here.items() if (at, i) not in known}
        if missing:
            guess = self._guess(stage, missing) if turn == 0 else None
            made = self._counted(stage, missing, guess)
            known |= {(stage.name, i): one for i, one in made.items()}
        replies = {
            i: known[stage.name, i].answer(query) for i, query in queries.items()
        }
        plain = {i: reply.tolist() for i, reply in replies.items()}
        self._journal.keep_answers(name, asked, plain)
        return replies

    def ends(self, stage: Stage, search: int) -> Ends:
        """Return what finds how far ties are kept, by reading one piece of the leaf."""

        def end(leaf: int, key: int, place: int) -> int:
            name = f"{stage.name}/ties of {leaf}, {search}"
            asked = {search: [key, place]}
            if (kept := self._journal.answers(name, asked)) is not None:
                return int(kept[search])
            start, place = self._tied(stage, search, leaf, key).piece(leaf, place)
            positions = self._positions(stage, search, leaf, start, key)
            found = start + int(positions[place - 1]) + 1
            self._journal.keep_answers(name, asked, {search: found})
            return found

        return end

    def _tied(self, stage: Stage, search: int, leaf: int, key: int) -> Histogram:
        """Return a histogram that has counted a leaf's elements on a key."""
        sizes = stage.group.layout.sizes
        here = np.where(np.arange(len(sizes)) == leaf, key, -1)
        ends = np.stack([np.zeros_like(sizes), sizes], axis=1)
        query = CountQuery(np.stack([here, here], axis=1), ends)
        held = self._histograms.get((stage.name, search))
        if held is not None and held.answers(query):
            return held
        # The count is in the journal, and not what it was of.
        return self._counted(stage, {search: query})[search]

    def _positions(
        self, stage: Stage, search: int, leaf: int, start: int, key: int
    ) -> np.ndarray:
        """Return where the elements on a key lie in the piece that begins there."""
        group, experts = stage.group, stage.experts(search)
        block, piece = next(
            (block, piece)
            for block in map(self._cut.blocks.__getitem__, group.blocks)
            for piece in block.pieces
            if (piece.leaf, piece.start) == (group.leaves[leaf], start)
        )
        alone, models = block._replace(pieces=(piece,)), self._models(stage, experts)
        put = put_block(self._pipeline, self._pipeline.load(alone, models), group)
        keys = Ranked(stage, search, put, experts).keys().reshape(-1)
        return np.flatnonzero(keys[: piece.stop - start] == key)

    def sums(self, stage: Stage, reduction: Sums, experts: Sequence[int]) -> np.ndarray:
        """Return the sums over each leaf, by one pass: float64 [leaves, T]."""
        layout = stage.group.layout
        name = f"{stage.name}/sums"
        first = experts[0]
        asked = {first: f"{reduction.name} of {list(experts)}"}
        if (kept := self._journal.answers(name, asked)) is not None:
            return np.array(kept[first], np.float64).reshape(len(layout.paths), -1)
        place = {leaf: i for i, leaf in enumerate(stage.group.leaves)}
        method = stage.method(experts)
        models = self._models(stage, experts)
        totals = reduction.init(layout, len(experts), method.weights)

        def add(loaded: Loaded) -> None:
            put = put_block(self._pipeline, loaded, stage.group)
            arrays = put.models if method.needs_base else [None, *put.models]
            inputs = (
                *(method, arrays[0], arrays[1:]),
                [put.spread(stage.states[i]) for i in experts],
                *(put.spread(stage.selected), put.offset),
            )

            def reduced(*inputs):
                strides = loaded.block.strides
                return kernels.reduced(reduction, method, *inputs, strides=strides)

            partial = np.asarray(on_host.summed(reduced, loaded.block, *inputs))
            row = 0
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
        self._journal.keep_answers(name, asked, {first: found.tolist()})
        return found

    def votes(self, stage: Stage, reduction: Votes) -> int | None:
        """Leave it open: blocks are merged under either majority (`blocks`)."""
        return None

    def forget(self) -> None:
        """Drop what further queries would be answered from: none will be asked."""
        self._histograms, self._sample = {}, None

    def in_memory(self, group: LeafGroup, loaded: Loaded) -> InMemoryAnswers:
        """Return the answers from a block that holds its leaf whole."""
        return WholeLeaf(put_block(self._pipeline, loaded, group), group)

    def _models(self, stage: Stage, experts: Sequence[int]) -> list[int]:
        """Return which models a stage of some experts reads, the base first."""
        return read_for(stage, experts, self._pipeline.has_base)

    def _guess(self, stage: Stage, queries: Mapping[int, CountQuery]) -> Guess | None:
        """Return what to merge under while these are counted, if anything."""
        return self._speculate(stage, queries) if stage.elementwise else None

    def _counted(
        self,
        stage: Stage,
        queries: Mapping[int, CountQuery],
        guess: Guess | None = None,
    ) -> dict[int, Histogram]:
        """Read every block that is asked about, once, and count.

        With a guess, merge it under that. Then each window is of one key, and what a
        block adds to the counts is written down with it: one that an earlier run has
        merged is not read again.
        """
        group = stage.group
        units = sum(len(query.threshold) for query in queries.values())
        edges = self._edges(group)
        made = {
            i: Histogram(query, units, group.layout.key_dtype, edges)
            for i, query in queries.items()
        }
        place = {leaf: i for i, leaf in enumerate(group.leaves)}
        everyone = sorted({e for i in made for e in stage.experts(i)})

        def asked(number: int) -> bool:
            leaves = [place[piece.leaf] for piece in self._cut.blocks[number].pieces]
            return any(
                len(query.threshold) == 1 or (query.threshold[leaves] >= 0).any()
                for query in queries.values()
            )

        def count(loaded: Loaded) -> None:
            put = put_block(self._pipeline, loaded, group)
            seen: dict[tuple[int, ...], np.ndarray] = {}
            counted = []
            leaves = [place[piece.leaf] for piece in loaded.block.pieces]
            first = self._first(group, loaded.number)
            # Searches of one expert are neighbours, and its keys are computed once.
            for i in sorted(made, key=lambda i: (stage.experts(i), i)):
                histogram = made[i]
                one = Ranked(stage, i, put, everyone)
                window = histogram.window(leaves)
                if window and stage.elementwise:
                    inside, above = one.windowed(window)
                    histogram.add_windowed(*first, inside, above)
                    counted.append((i, inside, above))
                    continue
                ranked = tuple(stage.experts(i))
                if ranked not in seen:
                    seen = {ranked: one.keys()}
                for piece, part in loaded.block.parts(seen[ranked]):
                    histogram.add(place[piece.leaf], piece.start, part)
            if guess is not None:  # each window is of one key
                told = Guessed(guess.digest, counted)
                self._merger.merge(put, group, guess.states, told)

        models = self._models(stage, everyone)
        numbers = [number for number in group.blocks if asked(number)]
        note = "counting magnitudes"
        if guess is not None:
            note = "counting and merging"
            numbers = self._uncounted(group, numbers, guess, made)
        self._read(numbers, models, count, note, guess is not None)
        for histogram in made.values():
            processes.all_reduce(histogram.totals())
            histogram.finish()
        return made

    def _first(self, group: LeafGroup, number: int) -> tuple[int, int]:
        """Return the leaf of a block's first piece, and where that begins."""
        piece = self._cut.blocks[number].pieces[0]
        return group.leaves.index(piece.leaf), piece.start

    def _edges(self, group: LeafGroup) -> list[np.ndarray]:
        """Return where each leaf's pieces begin, and its size."""
        found: dict[int, list[int]] = {leaf: [] for leaf in group.leaves}
        for piece in (p for i in group.blocks for p in self._cut.blocks[i].pieces):
            found[piece.leaf].append(piece.start)
        sizes = zip(found.values(), group.layout.sizes.tolist(), strict=True)
        return [np.array([*sorted(starts), size]) for starts, size in sizes]

    def _uncounted(
        self,
        group: LeafGroup,
        numbers: Sequence[int],
        guess: Guess,
        made: Mapping[int, Histogram],
    ) -> list[int]:
        """Add what is known of blocks that are merged; return the others."""
        left = []
        for number in numbers:
            known = self._merger.counted(number, guess.digest)
            if known is None:
                left.append(number)
            for i, inside, above in known or ():
                made[i].add_windowed(*self._first(group, number), inside, above)
        return left

    def _read(
        self,
        numbers: Sequence[int],
        models: Sequence[int],
        work: Callable[[Loaded], None],
        note: str,
        merges: bool = False,
    ) -> None:
        """Work on this process's blocks among these."""
        mine = [number for number in numbers if number in self._mine]

        def size(block: Block) -> int:
            if merges:
                return self._cut.bytes_of(block)
            read = self._cut.kinds[block.kind].read
            return sum(read[model].itemsize for model in models) * block.elements

        needed = self._after()
        if not merges:
            needed += sum(size(self._cut.blocks[number]) for number in mine)
        # One pass more than usual, or one less.
        if merges or self._progress.total - self._progress.done < needed:
            self._progress.remains(needed)
        for block in self._pipeline.each(mine, lambda _: models, work):
            self._progress.advance(size(block), note)

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


def _plain(query: CountQuery) -> list[Any]:
    """Return a query as plain JSON."""
    cutoff = query.cutoff
    return [query.threshold.tolist(), None if cutoff is None else cutoff.tolist()]
