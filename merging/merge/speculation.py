"""Merging while it is counted: a threshold that a sample leaves no doubt about.

A task vector of 16-bit checkpoints has few magnitudes, and its threshold is one that
very many elements have. Where a sample says that only one of those can be it, the pass
that counts them, to make sure, merges as well, and the inputs are read once instead of
twice. If it was another after all, these blocks are merged again: a bet that is lost
costs time, and no exactness.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.merge.reduce import Stage, States, find_states
from merging.methods import CountQuery, Threshold

Cut = tuple[np.ndarray, np.ndarray]


class Guess(NamedTuple):
    """What a group's states will turn out to be, if the sample is right.

    Attributes:
      states: of its leaves.
      digest: of the states.
    """

    states: States
    digest: str


def guess(
    stage: Stage,
    queries: Mapping[int, CountQuery],
    experts: Sequence[str],
    seed: int,
) -> Guess | None:
    """Return what is found if each threshold is the one magnitude that is asked about.

    None if a query asks about several, or more must be found before a merge.

    Args:
      stage: whose searches ask.
      queries: of all of them.
      experts: names, in order.
      seed: of random masks.
    """
    cuts = {i: _cut(stage, query) for i, query in queries.items()}
    group = stage.group
    # A pass reads those that it asks about, and a merge needs all.
    read = {expert for i in queries for expert in stage.experts(i)}
    if len(read) < len(experts) or group.method.statistics is not None:
        return None
    if not all(cuts.values()):
        return None
    try:
        states = find_states(group, experts, seed, _Guessed(stage.name, cuts))
    except _Unknown:
        return None
    return Guess(states, digest(states))


def digest(states: States) -> str:
    """Return the SHA-256 of everything in a group's states."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tuple(states)):
        array = np.asarray(leaf)
        found.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def _cut(stage: Stage, query: CountQuery) -> Cut | None:
    """Return the rule that a query's trials are about: one for all leaves."""
    sizes = stage.group.layout.sizes
    if query.cutoff is not None or len(query.threshold) > 1:
        return None
    low, *between, high = sorted(query.threshold[0].tolist())
    if low < 0 or high != low + 1 or not {low, high}.issuperset(between):
        return None
    return np.full(len(sizes), low, np.int64), sizes.copy()


class _Unknown(Exception):
    """More must be known than was guessed."""


@dataclasses.dataclass(frozen=True)
class _Guessed:
    """The guessed rules of one stage, as `reduce.Answers`."""

    stage: str
    cuts: Mapping[int, Cut]
    together: bool = True

    def selected(self, stage: Stage, search: int, wanted: Threshold) -> Cut:
        """Return a guessed rule."""
        known = stage.name == self.stage and search in self.cuts
        if not known or wanted.ties == "exact":
            raise _Unknown
        return self.cuts[search]

    def sample(self, stage: Stage, search: int) -> None:
        """Give no sample: every search has its rule."""

    def ends(self, stage: Stage, search: int) -> None:
        """Return nothing: exact ties are not guessed."""

    def count(self, stage: Stage, turn: int, queries: Any) -> dict[int, np.ndarray]:
        """Count nothing."""
        raise _Unknown

    def sums(self, stage: Stage, reduction: Any, experts: Any) -> np.ndarray:
        """Add nothing up."""
        raise _Unknown

    def votes(self, stage: Stage, reduction: Any) -> None:
        """Leave it open, as passes do."""
