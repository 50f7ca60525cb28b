"""What a method's reductions find: asked stage by stage of whoever holds the weights.

The transforms of an expert see what those before them left, so their reductions are
found one after the other; the combiner's come last, over all experts. Every search for
a threshold is a generator of count queries (`search`); here they are driven, and
whoever holds the weights answers (`Answers`): `in_memory_reduce` from arrays in memory,
`passes` by reading the checkpoints. Queries depend on answers alone, so every process
asks the same ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from merging import methods
from merging.merge import search
from merging.merge.search import Ends, Sample
from merging.methods import (
    CountQuery,
    Layout,
    Method,
    Selection,
    Sums,
    Threshold,
    Transform,
    Votes,
)


class LeafGroup(NamedTuple):
    """Leaves whose reductions are found together: all that one method merges.

    Attributes:
      name: for the journal.
      method: with numbers in the experts' order.
      layout: of its leaves.
      leaves: their places among the partition's.
      blocks: those that hold them, by their places in the partition.
    """

    name: str
    method: Method
    layout: Layout
    leaves: tuple[int, ...]
    blocks: tuple[int, ...]


class Stage(NamedTuple):
    """What the weights have become where a reduction looks at them.

    A search has a number: of an expert, whose magnitudes are ranked (and once more
    from K on, if its transform asks for several thresholds); or, where a selection
    ranks a score of all experts, of one of its thresholds.

    Attributes:
      group: the leaves.
      name: for the journal.
      before: [expert] the transforms that were applied.
      states: [expert][transform] of these.
      together: whether all experts are looked at together, after all transforms.
      selected: the states of the selections that were applied then.
      selection: that ranks a score.
    """

    group: LeafGroup
    name: str
    before: Sequence[tuple[Transform, ...]]
    states: Sequence[Sequence[Any]]
    together: bool = False
    selected: tuple[Any, ...] = ()
    selection: Selection | None = None

    @property
    def elementwise(self) -> bool:
        """Whether what is ranked can be computed of any few elements."""
        parts = [transform for of in self.before for transform in of]
        if self.selection is not None:
            parts.append(self.selection)
        return all(part.granularity == "element" for part in parts)

    def experts(self, search: int) -> list[int]:
        """Return whose task vectors a search looks at."""
        count = len(self.before)
        return list(range(count)) if self.together else [search % count]

    def method(self, experts: Sequence[int]) -> Method:
        """Return the method whose task vectors those of one or all experts are."""
        whole = self.group.method
        if self.together:
            return dataclasses.replace(whole, name="")
        if len(experts) == 1:
            return methods.alone(whole, self.before[experts[0]])
        return methods.alone(whole, whole.transforms[: len(self.before[0])])


class States(NamedTuple):
    """What a method's parts know of each leaf of a group.

    Attributes:
      transforms: [expert][transform].
      combined: the combiner's; after those of its selections, if it has any.
    """

    transforms: list[list[Any]]
    combined: Any


class Answers(Protocol):
    """Whoever holds the weights of a group.

    Attributes:
      together: whether all experts' searches go on at a time, since a pass answers all.
    """

    together: bool

    def selected(
        self, stage: Stage, search: int, wanted: Threshold
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a search's rule at once, if all its keys are at hand."""

    def sample(self, stage: Stage, search: int) -> Sample | None:
        """Return a function that gives some of a search's magnitude keys, if any."""

    def ends(self, stage: Stage, search: int) -> Ends | None:
        """Return a function that finds how far a search's ties are kept, if any.

        Then queries about ties ask for none of a leaf's or all.
        """

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Return the answers to the searches' queries, the turn-th of a stage."""

    def sums(self, stage: Stage, reduction: Sums, experts: Sequence[int]) -> np.ndarray:
        """Return float64 [leaves, T] over the transformed task vectors of experts."""

    def votes(self, stage: Stage, reduction: Votes) -> int | None:
        """Return the total; None where it is only known once all blocks are merged."""


def find_states(
    group: LeafGroup, experts: Sequence[str], seed: int, answers: Answers
) -> States:
    """Return the states of a method's parts for a group of leaves.

    Args:
      group: the leaves, and the method that merges them.
      experts: names, in order; random masks depend on them.
      seed: of random masks.
      answers: whoever holds the weights.
    """
    method, layout = group.method, group.layout
    chains = [method.of(i) for i in range(len(experts))]
    states: list[list[Any]] = [[] for _ in experts]
    for number in range(len(method.transforms)):
        before = [chain[:number] for chain in chains]
        stage = Stage(group, f"{group.name}/{number}", before, states)
        asked = [chain[number].reduction() for chain in chains]
        found = _found(stage, asked, answers)
        for i, name in enumerate(experts):
            state = chains[i][number].state(layout, name, seed, found[i])
            states[i].append(state)
    stage = Stage(group, f"{group.name}/combined", chains, states, True)
    for number, selection in enumerate(method.combiner.selections):
        name = f"{stage.name}/{number}"
        here = stage._replace(name=name, selection=selection)
        asked = dict(enumerate(selection.thresholds))
        cuts = _searched(here, asked, answers)
        state = selection.state(layout, [cuts[i] for i in asked])
        stage = stage._replace(selected=(*stage.selected, state))
    reduction, result = method.combiner.reduction(), None
    if isinstance(reduction, Sums):
        result = answers.sums(stage, reduction, range(len(experts)))
    elif isinstance(reduction, Votes):
        total = answers.votes(stage, reduction)
        result = None if total is None else reduction.finish(total)
    combined = method.combiner.state(layout, result, method.weights)
    if stage.selected:
        combined = stage.selected, combined
    return States(states, combined)


def _found(stage: Stage, asked: Sequence[Any], answers: Answers) -> list[Any]:
    """Return what each expert's reduction finds; None where there is none."""
    count, found = len(asked), [None] * len(asked)
    several = [one if isinstance(one, tuple) else (one,) for one in asked]
    wanted = {
        i + count * j: one
        for i, of in enumerate(several)
        for j, one in enumerate(of)
        if isinstance(one, Threshold)
    }
    cuts = _searched(stage, wanted, answers)
    for i in sorted(i for i in cuts if i < count):
        of = tuple(cuts[i + count * j] for j in range(len(several[i])))
        found[i] = of if isinstance(asked[i], tuple) else of[0]
    if sums := [one for one in asked if isinstance(one, Sums)]:
        # All experts have the same transforms, but for their numbers.
        every = range(len(asked))
        each = answers.sums(stage, sums[0].of_each(), every)
        for i, of_one in enumerate(np.split(each, count, axis=1)):
            found[i] = of_one
    return found


def _searched(
    stage: Stage, wanted: Mapping[int, Threshold], answers: Answers
) -> dict[int, Any]:
    """Return what each search finds."""
    found: dict[int, Any] = {}
    for i, one in wanted.items():
        if (cut := answers.selected(stage, i, one)) is not None:
            found[i] = cut
    left = [i for i in wanted if i not in found]
    for numbers in [left] if answers.together else [[i] for i in left]:
        searches = {
            i: search.magnitude_cut(
                stage.group.layout,
                wanted[i],
                answers.sample(stage, i),
                answers.ends(stage, i),
            )
            for i in numbers
        }
        found |= _driven(stage, searches, answers)
    return found


def _driven(stage: Stage, searches: dict[int, Any], answers: Answers) -> dict[int, Any]:
    """Answer all searches to their ends, in lockstep; return what each found."""
    found: dict[int, Any] = {}
    replies: dict[int, Any] = dict.fromkeys(searches)
    turn = 0
    while replies:
        queries = {}
        for expert, reply in replies.items():
            try:
                queries[expert] = searches[expert].send(reply)
            except StopIteration as stop:
                found[expert] = stop.value
        replies = answers.count(stage, turn, queries) if queries else {}
        turn += 1
    return found
