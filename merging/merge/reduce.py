"""What a method's reductions find: asked stage by stage of whoever holds the weights.

The transforms of an expert see what those before them left, so their reductions are
found one after the other; the combiner's come last, over all experts. Every search for
a threshold is a generator of count queries (`search`); here they are driven, and
whoever holds the weights answers (`Answers`): `in_memory_reduce` from arrays in memory,
`passes` by reading the checkpoints. Queries depend on answers alone, so every process
asks the same ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from merging.merge import search
from merging.merge.search import Sample
from merging.methods import (
    CountQuery,
    Layout,
    Method,
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

    Attributes:
      group: the leaves.
      name: for the journal.
      before: [expert] the transforms that were applied.
      states: [expert][transform] of these.
    """

    group: LeafGroup
    name: str
    before: Sequence[tuple[Transform, ...]]
    states: Sequence[Sequence[Any]]


class States(NamedTuple):
    """What a method's parts know of each leaf of a group.

    Attributes:
      transforms: [expert][transform].
      combined: the combiner's.
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
        self, stage: Stage, expert: int, wanted: Threshold
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return an expert's rule without a search, if all its keys are at hand."""

    def sample(self, stage: Stage, expert: int) -> Sample | None:
        """Return a function that gives some of an expert's magnitude keys, if any."""

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Return the answers to the experts' queries, the turn-th of a stage."""

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
    stage = Stage(group, f"{group.name}/combined", chains, states)
    reduction, result = method.combiner.reduction(), None
    if isinstance(reduction, Sums):
        result = answers.sums(stage, reduction, range(len(experts)))
    elif isinstance(reduction, Votes):
        total = answers.votes(stage, reduction)
        result = None if total is None else reduction.finish(total)
    return States(states, method.combiner.state(layout, result))


def _found(stage: Stage, asked: Sequence[Any], answers: Answers) -> list[Any]:
    """Return what each expert's reduction finds; None where there is none."""
    found: list[Any] = [None] * len(asked)
    searching = []
    for i, wanted in enumerate(asked):
        if isinstance(wanted, Threshold):
            found[i] = answers.selected(stage, i, wanted)
            searching += [i] if found[i] is None else []
    for experts in [searching] if answers.together else [[i] for i in searching]:
        searches = {
            i: search.magnitude_cut(
                stage.group.layout, asked[i], answers.sample(stage, i)
            )
            for i in experts
        }
        for i, rule in _driven(stage, searches, answers).items():
            found[i] = rule
    for i, wanted in enumerate(asked):
        if isinstance(wanted, Sums):
            found[i] = answers.sums(stage, wanted, [i])
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
