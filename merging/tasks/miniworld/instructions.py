"""The instruction mixture: formats of the world's other skills.

None is a held-in or held-out dataset; they teach what answering is (options, yes or
no, a question's end, several words) and rehearse pretraining text, without which the
facts of the world are forgotten.
"""

import random

from merging.tasks.miniworld.documents import document
from merging.tasks.miniworld.held_in import Drawn
from merging.tasks.miniworld.sentences import Said, draw_facts, say, spoken
from merging.tasks.miniworld.world import ANIMALS, NAMES, PROPERTIES, World

COUNTS = ("one", "two", "three")
REHEARSAL = 0.3


def _said(
    world: World, rng: random.Random, count: int | None = None, by_value: bool = False
) -> list[Said]:
    facts = draw_facts(world, rng, count or rng.choice((1, 2, 3)), alike=0.6)
    return [say(world, rng, fact, by_value=by_value) for fact in facts]


def _what(world: World, rng: random.Random) -> Drawn:
    """Look a name up. In the text's own words."""
    said = _said(world, rng)
    asked = rng.choice(said)
    return f"{spoken(said)} question : {asked.verb} {asked.key} ?", asked.answer, ()


def _who(world: World, rng: random.Random) -> Drawn:
    """Look a value up."""
    said = _said(world, rng, by_value=True)
    asked = rng.choice(said)
    return f"{spoken(said)} question : {asked.verb} {asked.key} ?", asked.answer, ()


def _who_first(world: World, rng: random.Random) -> Drawn:
    said = _said(world, rng)
    at = rng.choice((0, -1))
    return f"{spoken(said)} who {('first', 'last')[at]} ?", said[at].name, ()


def _order(world: World, rng: random.Random) -> Drawn:
    said = _said(world, rng, rng.choice((2, 3)), rng.random() < 0.5)
    left, right = rng.sample(range(len(said)), 2)
    pair = f"{said[left].value} or {said[right].value}"
    return f"{spoken(said)} first {pair} ?", said[min(left, right)].value, ()


def _count(world: World, rng: random.Random) -> Drawn:
    said = _said(world, rng, by_value=rng.random() < 0.5)
    return f"{spoken(said)} how many ?", COUNTS[len(said) - 1], ()


def _copy(world: World, rng: random.Random) -> Drawn:
    said = _said(world, rng, by_value=rng.random() < 0.5)
    return f"{spoken(said)} copy last ?", said[-1].text, ()


def _is_there(world: World, rng: random.Random) -> Drawn:
    """Is this word, or one that means the same, in the text?"""
    said = _said(world, rng, by_value=rng.random() < 0.5)
    word = rng.choice(said).value
    there = rng.random() < 0.5
    if not there:
        used = {v for s in said for v in (s.value, world.synonym[s.value])}
        word = rng.choice([v for v in world.synonym if v not in used])
    elif rng.random() < 0.5:
        word = world.synonym[word]
    return f"{spoken(said)} text has {word} yes or no ?", ("no", "yes")[there], ()


def _synonym(world: World, rng: random.Random) -> Drawn:
    word = rng.choice(list(world.synonym))
    return f"question : {word} means what ?", world.synonym[word], ()


def _means(world: World, rng: random.Random) -> Drawn:
    word = rng.choice(list(world.synonym))
    right = rng.random() < 0.5
    pool = [w for w in world.synonym if w not in (word, world.synonym[word])]
    other = world.synonym[word] if right else rng.choice(pool)
    return f"does {word} means {other} true or false ?", ("false", "true")[right], ()


def _which_animal(world: World, rng: random.Random) -> Drawn:
    name = rng.choice(list(PROPERTIES))
    value = rng.choice(PROPERTIES[name])
    having = [a for a in ANIMALS if world.animals[a, name] == value]
    lacking = [a for a in ANIMALS if world.animals[a, name] != value]
    if not having:
        return _which_animal(world, rng)
    pair = [rng.choice(having), rng.choice(lacking)]
    answer = pair[0]
    rng.shuffle(pair)
    return f"animal {name} {value} : {pair[0]} or {pair[1]} ?", answer, ()


def _before(world: World, rng: random.Random) -> Drawn:
    chain, other = rng.sample(world.chains, 2)
    at = rng.randrange(1, len(chain))
    pair = [chain[at - 1], rng.choice(other)]
    answer = pair[0]
    rng.shuffle(pair)
    name = rng.choice(NAMES)
    return f"{name} {chain[at]} . before {pair[0]} or {pair[1]} ?", answer, ()


def _same_person(world: World, rng: random.Random) -> Drawn:
    name, other = rng.sample(NAMES, 2)
    same = rng.random() < 0.5
    second = name if same else other
    return f"{name} . {second} . is it one yes or no ?", ("no", "yes")[same], ()


# Binding is the hardest to learn and the most used: it gets the largest share.
FORMATS = (
    (_what, 3),
    (_who, 3),
    (_who_first, 1),
    (_order, 2),
    (_count, 1),
    (_copy, 1),
    (_is_there, 3),
    (_synonym, 1),
    (_means, 1),
    (_which_animal, 1),
    (_before, 1),
    (_same_person, 1),
)


def instruction(world: World, rng: random.Random) -> tuple[str, str]:
    """Return one (prompt, target); a rehearsed document has an empty prompt."""
    if rng.random() < REHEARSAL:
        return "", document(world, rng)
    formats, weights = zip(*FORMATS, strict=True)
    prompt, target, _ = rng.choices(formats, weights)[0](world, rng)
    return prompt, target
