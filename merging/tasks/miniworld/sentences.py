"""Statements about people: what documents and datasets are made of.

A statement has one of two word orders, and in both the word it is looked up by stands
right before the word that is looked for: "visits anna kitchen" answers for a name,
"kitchen anna visits" for a value. Small models learn to look up neighbours, and little
else, from a few thousand steps.
"""

import random
from typing import NamedTuple

from merging.tasks.miniworld.world import ATTRIBUTES, NAMES, World


class Fact(NamedTuple):
    """Who, which attribute, which value."""

    name: str
    attribute: str
    value: str


class Said(NamedTuple):
    """A fact in words; `by_value` is the order that answers for a value."""

    name: str
    verb: str
    value: str
    by_value: bool

    @property
    def text(self) -> str:
        """The statement."""
        if self.by_value:
            return f"{self.value} {self.name} {self.verb}"
        return f"{self.verb} {self.name} {self.value}"

    @property
    def key(self) -> str:
        """The word it is looked up by."""
        return self.value if self.by_value else self.name

    @property
    def answer(self) -> str:
        """The word that is looked for."""
        return self.name if self.by_value else self.value


def draw_facts(
    world: World, rng: random.Random, count: int, *, alike: float = 0.5
) -> list[Fact]:
    """Draw `count` facts about different names; with chance `alike` of one attribute.

    Facts of one attribute have different values, so that a value names its person.
    """
    names = rng.sample(NAMES, count)
    if rng.random() < alike:
        chosen = [rng.choice(list(ATTRIBUTES))] * count
    else:
        chosen = [rng.choice(list(ATTRIBUTES)) for _ in names]
    pools = {a: rng.sample(world.values[a], len(world.values[a])) for a in ATTRIBUTES}
    return [Fact(n, a, pools[a].pop()) for n, a in zip(names, chosen, strict=True)]


def say(
    world: World,
    rng: random.Random,
    fact: Fact,
    *,
    by_value: bool = False,
    synonym: float = 0.3,
) -> Said:
    """Put a fact into words, its value with chance `synonym` as its other word."""
    verb = rng.choice(world.verbs[fact.attribute])
    value = world.say(rng, fact.value, synonym)
    return Said(fact.name, verb, value, by_value)


def spoken(said: list[Said]) -> str:
    """Return statements as sentences, each ending in a full stop."""
    return " ".join(f"{s.text} ." for s in said)
