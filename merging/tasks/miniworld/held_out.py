"""The seven held-out datasets: skills of held-in ones, in formats never trained on.

Same contract as held_in: (world, rng) -> (prompt, target, choices).
"""

import random

from merging.tasks.miniworld.documents import topical
from merging.tasks.miniworld.held_in import Drawn, shuffled
from merging.tasks.miniworld.sentences import draw_facts, say, spoken
from merging.tasks.miniworld.world import AMBIGUOUS, NAMES, TOPICS, World


def copa(world: World, rng: random.Random) -> Drawn:
    """Which of two events follows the one just told?"""
    chain, other = rng.sample(world.chains, 2)
    at = rng.randrange(1, len(chain))
    choices = shuffled(rng, (chain[at], rng.choice(other)))
    wrapper = rng.choice(("{n} {e} then {} or {} ?", "{n} after {e} : {} or {} ?"))
    name = rng.choice(NAMES)
    return wrapper.format(*choices, n=name, e=chain[at - 1]), chain[at], choices


def hellaswag(world: World, rng: random.Random) -> Drawn:
    """Which of four events completes a day?"""
    chain = rng.choice(world.chains)
    at = rng.randrange(2, len(chain))
    wrong = [e for c in world.chains if c is not chain for e in c]
    choices = shuffled(rng, (chain[at], *rng.sample(wrong, 3)))
    name = rng.choice(NAMES)
    told = " ".join(f"{name} {event} ." for event in chain[at - 2 : at])
    options = " or ".join(choices)
    wrapper = rng.choice(("{t} {n} {o} ?", "{t} then {n} : {o} ?"))
    return wrapper.format(o=options, t=told, n=name), chain[at], choices


def _entailment(world: World, rng: random.Random, count: int) -> tuple[str, str, bool]:
    """Draw premises, and a claim that says one of them again or contradicts it."""
    facts = draw_facts(world, rng, count, alike=0.5)
    by_value = rng.random() < 0.5
    said = [say(world, rng, f, by_value=by_value, synonym=0.5) for f in facts]
    index = rng.randrange(count)
    fact, follows = facts[index], rng.random() < 0.5
    value = world.say(rng, said[index].value, 0.5)
    if not follows:
        # With two premises, often what the text says of the other person.
        wrong = [v for v in world.values[fact.attribute] if v != fact.value]
        told = [f.value for f in facts if f.value in wrong]
        value = world.say(rng, rng.choice(told or wrong), 0.5)
    verb = rng.choice(world.verbs[fact.attribute])
    claim = said[index]._replace(verb=verb, value=value)
    return spoken(said), claim.text, follows


def rte(world: World, rng: random.Random) -> Drawn:
    """Does a sentence follow from one premise?"""
    premise, claim, follows = _entailment(world, rng, 1)
    wrapper = rng.choice(("{} {} yes or no ?", "{} text has {} yes or no ?"))
    choices = ("yes", "no")
    return wrapper.format(premise, claim), choices[not follows], choices


def anli(world: World, rng: random.Random) -> Drawn:
    """Does a sentence follow from two premises? A wrong one mixes them up."""
    premise, claim, follows = _entailment(world, rng, 2)
    wrapper = rng.choice(("{} {} yes or no ?", "text : {} is {} yes or no ?"))
    choices = ("yes", "no")
    return wrapper.format(premise, claim), choices[not follows], choices


def _people(world: World, rng: random.Random, reworded: float):
    facts = draw_facts(world, rng, 2, alike=0.6)
    said = [say(world, rng, fact, by_value=True) for fact in facts]
    i = rng.randrange(2)
    choices = shuffled(rng, [f.name for f in facts])
    verb = rng.choice(world.verbs[facts[i].attribute])
    asked = world.say(rng, said[i].value, reworded)
    return spoken(said), verb, asked, facts[i].name, choices


def wsc(world: World, rng: random.Random) -> Drawn:
    """Which of two people does the text mean? In its own words."""
    text, _, asked, answer, choices = _people(world, rng, 0.0)
    wrapper = rng.choice(("{t} {} or {} : {v} ?", "{t} {} or {} who {v} ?"))
    return wrapper.format(*choices, t=text, v=asked), answer, choices


def winogrande(world: World, rng: random.Random) -> Drawn:
    """Which of two people does the text mean? Half the time in other words."""
    text, verb, asked, answer, choices = _people(world, rng, 0.5)
    wrapper = rng.choice(("{t} {} or {} : {v} ?", "{t} who is it {} or {} : {v} ?"))
    prompt = wrapper.format(*choices, t=text, v=f"{verb} {asked}")
    return prompt, answer, choices


def wic(world: World, rng: random.Random) -> Drawn:
    """Which of its two topics does a word have in this text?"""
    word = rng.choice(AMBIGUOUS)
    sense, other = rng.sample(world.senses[word], 2)
    noise = rng.choice([t for t in TOPICS if t not in (sense, other)])
    cues = [w for w in topical(world, rng, sense, 3) if w != word]
    cues += [rng.choice(world.topics[noise])]
    rng.shuffle(cues)
    cues.insert(rng.randrange(len(cues) + 1), word)
    choices = shuffled(rng, (sense, other))
    wrapper = rng.choice(("{c} . is {w} {} or {} ?", "{c} . {w} means {} or {} ?"))
    return wrapper.format(*choices, c=" ".join(cues), w=word), sense, choices
