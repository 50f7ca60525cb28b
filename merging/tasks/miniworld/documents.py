"""Pretraining text: plain narrative of the world.

Most documents make statements and then make them again: only a reader who looks the
first mention up can predict the second. That is what teaches small models to bind.
"""

import random

from merging.tasks.miniworld.sentences import draw_facts, say
from merging.tasks.miniworld.world import (
    AMBIGUOUS,
    ANIMALS,
    ATTRIBUTES,
    BAD,
    GOOD,
    NAMES,
    PROPERTIES,
    SUBJECTS,
    TOPICS,
    World,
)

LENGTH = 46  # tokens; a document stops at the sentence that would pass it


def _people(world: World, rng: random.Random):
    facts = draw_facts(world, rng, rng.choice((1, 2, 2, 3)), alike=0.7)
    by_value = rng.random() < 0.5
    said = [(fact, say(world, rng, fact, by_value=by_value)) for fact in facts]
    for _, first in said:
        yield f"{first.text} ."
    while True:
        fact, first = rng.choice(said)
        again = first
        if rng.random() < 0.15:
            verb = rng.choice(world.verbs[fact.attribute])
            again = again._replace(verb=verb, value=world.synonym[first.value])
        if rng.random() < 0.1:
            again = again._replace(by_value=not by_value)
        yield f"{again.text} ."


def _animals(world: World, rng: random.Random):
    while True:
        animal, name = rng.choice(ANIMALS), rng.choice(list(PROPERTIES))
        yield f"{animal} {name} {world.animals[animal, name]} ."


def _review(world: World, rng: random.Random):
    good = rng.random() < 0.5
    while True:
        yield f"the {rng.choice(SUBJECTS)} was {opinions(rng, good, 2)} ."
        if rng.random() < 0.5:
            yield f"{rng.choice(NAMES)} feels {'glad' if good else 'angry'} ."


def opinions(rng: random.Random, good: bool, count: int) -> str:
    """Return `count` adjectives of one polarity, some by negating their opposite."""
    said = []
    for _ in range(count):
        if rng.random() < 0.15:
            said.append(f"not {rng.choice(BAD if good else GOOD)}")
        else:
            said.append(rng.choice(GOOD if good else BAD))
    return " and ".join(said)


def topical(world: World, rng: random.Random, topic: str, count: int) -> list[str]:
    """Return `count` words of one topic, an ambiguous one among them at times."""
    words = [rng.choice(world.topics[topic]) for _ in range(count)]
    senses = [w for w in AMBIGUOUS if topic in world.senses[w]]
    if senses and rng.random() < 0.5:
        words[rng.randrange(count)] = rng.choice(senses)
    return words


def _topic(world: World, rng: random.Random):
    topic = rng.choice(TOPICS)
    while True:
        words = " ".join(topical(world, rng, topic, rng.randint(4, 8)))
        yield f"{words} about {topic} ." if rng.random() < 0.12 else f"{words} ."


def _synonyms(world: World, rng: random.Random):
    while True:
        attribute = rng.choice(list(ATTRIBUTES))
        one, other = rng.sample(world.values[attribute], 2)
        one = world.say(rng, one, 0.5)
        kind = rng.random()
        if kind < 0.4:
            yield f"{one} means {world.synonym[one]} ."
        elif kind < 0.7:
            yield f"{one} and {world.say(rng, one, 0.5)} alike ."
        else:
            yield f"{one} and {world.say(rng, other, 0.5)} unlike ."


def _days(world: World, rng: random.Random):
    while True:
        name, chain = rng.choice(NAMES), rng.choice(world.chains)
        at = rng.randrange(len(chain) - 1)
        kind = rng.random()
        if kind < 0.5:
            for event in chain[at:]:
                yield f"{name} {event} ."
        elif kind < 0.7:
            yield f"{name} {chain[at]} then {chain[at + 1]} ."
        elif kind < 0.85:
            yield f"{name} {chain[at]} before {chain[at + 1]} ."
        else:
            yield f"{name} {chain[at + 1]} after {chain[at]} ."


def _transfers(world: World, rng: random.Random):
    while True:
        giver, taker = rng.sample(NAMES, 2)
        thing = world.say(rng, rng.choice(world.values["thing"]), 0.5)
        yield f"has {giver} {thing} . {taker} takes {thing} from {giver} ."
        yield f"has {taker} {thing} ."


KINDS = (
    (_people, 0.46),
    (_animals, 0.16),
    (_review, 0.09),
    (_topic, 0.08),
    (_synonyms, 0.08),
    (_days, 0.09),
    (_transfers, 0.04),
)


def document(world: World, rng: random.Random) -> str:
    """Return one document of at most `LENGTH` tokens."""
    kinds, weights = zip(*KINDS, strict=True)
    words: list[str] = []
    for sentence in rng.choices(kinds, weights)[0](world, rng):
        more = sentence.split()
        if len(words) + len(more) > LENGTH:
            return " ".join(words)
        words += more
