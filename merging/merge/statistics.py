"""Whole-model statistics of a streaming merge: passes over the blocks, in lockstep.

Every expert's inquiry goes on at the same time, so that one pass answers them all.
Answers are written down: a merge that was stopped finds them again.
"""

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.merge import kernels
from merging.merge.census import Census, Direct
from merging.merge.journal import Journal
from merging.merge.partition import ROW, Block, Piece, Plan
from merging.merge.pipeline import Columns, Few, Loaded, Pipeline, each_piece, marked
from merging.methods import Kept, Layout, Method, Transform
from merging.runtime import processes
from merging.runtime.numerics import Index
from merging.runtime.progress import Progress

# A sample: runs of neighbours, evenly spread over all leaves.
RUN, RUNS = 256, 1024


class Section(NamedTuple):
    """Leaves whose statistics are found together: all that one method merges.

    Attributes:
      name: for the journal.
      method: with numbers in the experts' order.
      layout: of its leaves.
      leaves: their places among the plan's.
      blocks: those that hold them, by their places in the plan.
    """

    name: str
    method: Method
    layout: Layout
    leaves: tuple[int, ...]
    blocks: tuple[int, ...]

    @property
    def key_dtype(self) -> np.dtype:
        """The dtype of magnitude keys."""
        return np.dtype(np.uint64 if self.layout.wide else np.uint32)


class Surveyor:
    """Finds the states of a method's transforms by passes over the blocks.

    Args:
      plan: the merge's.
      pipeline: to read blocks with.
      experts: names, in the order of the pipeline's models, which follow the base.
      seed: of random masks.
      journal: keeps the answers.
      mine: the blocks that this process reads.
      progress: told the bytes that were read.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Pipeline,
        experts: Sequence[str],
        seed: int,
        journal: Journal,
        mine: Sequence[int],
        progress: Progress,
    ):
        self.plan, self._pipeline, self._experts = plan, pipeline, experts
        self._seed, self._journal, self._mine = seed, journal, set(mine)
        self._progress = progress

    def states(self, section: Section) -> list[list[Any]]:
        """Return the states [expert][transform] of a section's leaves."""
        chains = [section.method.of(i) for i in range(len(self._experts))]
        states: list[list[Any]] = [[] for _ in chains]
        for stage in range(len(section.method.transforms)):
            survey = _Survey(section, [chain[:stage] for chain in chains], states)
            sample = _Sample(self, survey)
            inquiries = [
                chain[stage].inquire(
                    section.layout, name, self._seed, sample.of(expert)
                )
                for expert, (chain, name) in enumerate(
                    zip(chains, self._experts, strict=True)
                )
            ]
            name = f"{section.name}/{stage}"
            for expert, found in self._ask(name, survey, inquiries).items():
                states[expert].append(found)
        return states

    def states_in_memory(self, section: Section, loaded: Loaded) -> list[list[Any]]:
        """Return the states of a leaf that is in memory whole."""
        (piece,) = loaded.block.pieces
        size = piece.stop - piece.start
        found = []
        for expert, name in enumerate(self._experts):
            chain, states = section.method.of(expert), []
            for stage, transform in enumerate(chain):
                survey = _Survey(section, [chain[:stage]], [states])
                put = self.put(survey, loaded)
                keys = self.keys(survey, put, 0, model=expert + 1)
                direct = Direct(keys.reshape(-1)[:size])
                inquiry = transform.inquire(
                    section.layout, name, self._seed, direct.sample
                )
                states.append(_drive(inquiry, direct.count))
            found.append(states)
        return found

    def _ask(
        self, name: str, survey: "_Survey", inquiries: Sequence[Generator]
    ) -> dict[int, Any]:
        """Answer all inquiries to their ends; return what each found."""
        found: dict[int, Any] = {}
        censuses: dict[int, Census] = {}
        replies: dict[int, Any] = dict.fromkeys(range(len(inquiries)))
        turn = 0
        while replies:
            questions = {}
            for expert, reply in replies.items():
                try:
                    questions[expert] = inquiries[expert].send(reply)
                except StopIteration as stop:
                    found[expert] = stop.value
            key = f"{name}/{turn}"
            replies = self._journal.answers(key, questions)
            if replies is None:
                replies = self._answer(survey, questions, censuses)
                self._journal.keep_answers(key, replies)
            turn += 1
        return {expert: found[expert] for expert in sorted(found)}

    def _answer(
        self,
        survey: "_Survey",
        questions: Mapping[int, Kept],
        censuses: dict[int, Census],
    ) -> dict[int, np.ndarray]:
        """Answer from the last passes, and make one for what they cannot answer."""
        new = {
            expert: question
            for expert, question in questions.items()
            if expert not in censuses or not censuses[expert].answers(question)
        }
        if new:
            censuses |= self._pass(survey, new)
        return {
            e: censuses[e].answer(question, processes.all_reduce)
            for e, question in questions.items()
        }

    def _pass(
        self, survey: "_Survey", questions: Mapping[int, Kept]
    ) -> dict[int, Census]:
        """Read every block that is asked about, once, and count."""
        section = survey.section
        units = sum(len(question.threshold) for question in questions.values())
        censuses = {
            expert: Census(question, units, section.key_dtype)
            for expert, question in questions.items()
        }
        place = {leaf: i for i, leaf in enumerate(section.leaves)}
        numbers = [
            number
            for number in section.blocks
            if number in self._mine and self._asked(number, place, questions)
        ]
        order = sorted(censuses)
        models = [0, *(expert + 1 for expert in order)]

        def count(loaded: Loaded) -> None:
            put = self.put(survey, loaded)
            for i, expert in enumerate(order):
                census = censuses[expert]
                if window := census.window():
                    found = self._windowed(survey, put, expert, i + 1, window)
                    census.add_windowed(*found)
                    continue
                keys = self.keys(survey, put, expert, model=i + 1)
                for piece, flat in each_piece(loaded.block, keys):
                    census.add(place[piece.leaf], piece.start, flat)

        for block in self._pipeline.each(numbers, lambda _: models, count):
            read = self.plan.groups[block.group].read
            size = sum(read[m].itemsize for m in models) * block.elements
            self._progress.advance(size, "counting magnitudes")
        for census in censuses.values():
            processes.all_reduce(census.totals())
            census.finish()
        return censuses

    def _asked(self, number: int, place, questions: Mapping[int, Kept]) -> bool:
        """Return whether any question is about a leaf of this block."""
        leaves = [place[piece.leaf] for piece in self.plan.blocks[number].pieces]
        return any(
            len(question.threshold) == 1 or (question.threshold[leaves] >= 0).any()
            for question in questions.values()
        )

    def _windowed(
        self, survey: "_Survey", put: "_Put", expert: int, model: int, window: tuple
    ) -> tuple[np.ndarray | int, int]:
        """Return the keys in a window (or their number), and how many lie above."""
        states = [put.columns.spread(state) for state in survey.states[expert]]
        dtype = survey.section.key_dtype
        low, bins = (dtype.type(number) for number in window)
        codes = kernels.windowed(
            survey.before[expert],
            put.models[0],
            put.models[model],
            self._pipeline.on_devices(states),
            put.offset,
            low,
            bins,
            dtype=dtype,
        )
        codes = np.asarray(codes).reshape(-1)
        above = np.count_nonzero(codes == kernels.ABOVE)
        if bins == 1:
            return int(np.count_nonzero(codes == kernels.INSIDE)), above
        positions = marked(codes, kernels.INSIDE)
        if not len(positions):
            return np.zeros(0, dtype), above
        few = Few(put.columns, positions, put.loaded.models[0].shape[1])
        keys = kernels.keys(
            survey.before[expert],
            few.elements(put.loaded.models[0]),
            few.elements(put.loaded.models[model]),
            few.rows(states),
            few.index,
            dtype=dtype,
        )
        return few.only(keys), above

    def put(self, survey: "_Survey", loaded: Loaded) -> "_Put":
        """Return a block on the devices."""
        columns = Columns(survey.section.layout, survey.section.leaves, loaded)
        models, offset = self._pipeline.on_devices((loaded.models, columns.offset))
        return _Put(loaded, columns, models, offset)

    def keys(
        self, survey: "_Survey", put: "_Put", expert: int, *, model: int
    ) -> np.ndarray:
        """Return the magnitude keys [rows, columns] of one expert's block."""
        states = [put.columns.spread(state) for state in survey.states[expert]]
        return np.asarray(
            kernels.keys(
                survey.before[expert],
                put.models[0],
                put.models[model],
                self._pipeline.on_devices(states),
                put.offset,
                dtype=survey.section.key_dtype,
            )
        )

    def load(self, block: Block) -> Loaded:
        """Read a block of all models at once."""
        return self._pipeline.load(block)


class _Put(NamedTuple):
    """A block on the devices, with what holds of its rows."""

    loaded: Loaded
    columns: Columns
    models: list[jax.Array]
    offset: Index


class _Survey(NamedTuple):
    """Whose keys are counted: [expert] transforms before the one that asks."""

    section: Section
    before: Sequence[tuple[Transform, ...]]
    states: Sequence[Sequence[Any]]


class _Sample:
    """A sample of each expert's keys, read when the first is asked for."""

    def __init__(self, surveyor: Surveyor, survey: _Survey):
        self._surveyor, self._survey = surveyor, survey

    def of(self, expert: int) -> Callable[[int, int], np.ndarray]:
        """Return the function that gives keys of a leaf, for `inquire`."""

        @functools.cache
        def keys() -> list[np.ndarray]:
            return self._keys(expert)

        def sample(leaf: int, stride: int) -> np.ndarray:
            return keys()[leaf][:: stride if self._everything else 1]

        return sample

    @functools.cached_property
    def _everything(self) -> bool:
        return int(self._survey.section.layout.sizes.sum()) <= RUN * RUNS

    @functools.cached_property
    def _loaded(self) -> list[Loaded]:
        """The sampled pieces of all models, in a block for each group of dtypes."""
        plan, columns = self._surveyor.plan, ROW if self._everything else RUN
        loaded = []
        for number, group in enumerate(plan.groups):
            pieces = tuple(p for p in self._pieces if p.leaf in group.leaves)
            if pieces:
                block = Block(number, pieces, columns, False)
                loaded.append(self._surveyor.load(block))
        return loaded

    @functools.cached_property
    def _pieces(self) -> list[Piece]:
        section = self._survey.section
        sizes = section.layout.sizes
        if self._everything:
            return [
                Piece(leaf, 0, int(size))
                for leaf, size in zip(section.leaves, sizes, strict=True)
                if size
            ]
        ends = np.cumsum(sizes)
        pieces = []
        for run in range(RUNS):
            position = (2 * run + 1) * int(ends[-1]) // (2 * RUNS)
            i = int(np.searchsorted(ends, position, side="right"))
            size = int(sizes[i])
            start = min(position - int(ends[i]) + size, max(size - RUN, 0))
            pieces.append(Piece(section.leaves[i], start, min(start + RUN, size)))
        return pieces

    def _keys(self, expert: int) -> list[np.ndarray]:
        """Return the sampled keys of each leaf."""
        place = {leaf: i for i, leaf in enumerate(self._survey.section.leaves)}
        none = np.zeros(0, self._survey.section.key_dtype)
        found: list[list[np.ndarray]] = [[none] for _ in place]
        for loaded in self._loaded:
            put = self._surveyor.put(self._survey, loaded)
            keys = self._surveyor.keys(self._survey, put, expert, model=expert + 1)
            for piece, flat in each_piece(loaded.block, keys):
                found[place[piece.leaf]].append(flat)
        return [np.concatenate(parts) for parts in found]


def _drive(inquiry: Generator, answer: Callable[[Any], Any]) -> Any:
    reply = None
    while True:
        try:
            reply = answer(inquiry.send(reply))
        except StopIteration as stop:
            return stop.value
