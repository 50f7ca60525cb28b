"""Sentences about people: the pieces that documents and datasets are made of."""

import random
from typing import NamedTuple

from merging.tasks.miniworld.world import ATTRIBUTES, NAMES, World


class Fact(NamedTuple):
    """One statement: who, which attribute, which value."""

    name: str
    attribute: str
    value: str


def draw_facts(
    world: World, rng: random.Random, count: int, *, alike: float = 0.5
) -> list[Fact]:
    """Draw `count` facts about different names; with chance `alike` of one attribute.

    Facts of one attribute have different values, so that a value names its person.
    """
    names = rng.sample(NAMES, count)
    if rng.random() < alike:
        attribute = rng.choice(list(ATTRIBUTES))
        chosen = [attribute] * count
    else:
        chosen = [rng.choice(list(ATTRIBUTES)) for _ in names]
    pools = {a: rng.sample(world.values[a], len(world.values[a])) for a in ATTRIBUTES}
    return [Fact(n, a, pools[a].pop()) for n, a in zip(names, chosen, strict=True)]


def state(
    world: World, rng: random.Random, fact: Fact, synonym: float = 0.3
) -> tuple[str, str, str]:
    """Return the fact as name, verb, value, each with chance `synonym` reworded."""
    verb = rng.choice(world.verbs[fact.attribute])
    return fact.name, verb, world.say(rng, fact.value, synonym)


def tell(
    world: World, rng: random.Random, facts: list[Fact], synonym: float = 0.3
) -> str:
    """Return the facts as sentences, each ending in a full stop."""
    return " ".join(f"{' '.join(state(world, rng, f, synonym))} ." for f in facts)
