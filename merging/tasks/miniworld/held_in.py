"""The sixteen held-in datasets: one function each, one drawn example a call.

A function takes (world, rng) and returns (prompt, target, choices); no choices means
free generation. Each says in its first line what it shares with its namesake of T0.
"""

import random

from merging.tasks.miniworld.documents import opinions, topical
from merging.tasks.miniworld.sentences import Fact, draw_facts, state, tell
from merging.tasks.miniworld.world import (
    ANIMALS,
    ATTRIBUTES,
    NAMES,
    PROPERTIES,
    SUBJECTS,
    TOPICS,
    World,
)

Drawn = tuple[str, str, tuple[str, ...]]


def _facts(world: World, rng: random.Random) -> tuple[list, list, int]:
    """Draw one to three facts, their wordings, and the index of the one asked about."""
    facts = draw_facts(world, rng, rng.choice((1, 2, 3)), alike=0.6)
    said = [state(world, rng, fact) for fact in facts]
    index = rng.randrange(len(facts))
    return facts, said, index


def spoken(said: list[tuple[str, str, str]]) -> str:
    """Return worded facts as sentences."""
    return " ".join(f"{' '.join(s)} ." for s in said)


def shuffled(rng: random.Random, items) -> tuple[str, ...]:
    """Return the items in random order."""
    items = list(items)
    rng.shuffle(items)
    return tuple(items)


def dream(world: World, rng: random.Random) -> Drawn:
    """Multiple choice about a text; the right option rewords what the text says."""
    facts, said, i = _facts(world, rng)
    answer = world.synonym[said[i][2]]
    others = [v for v in world.values[facts[i].attribute] if v != facts[i].value]
    choices = shuffled(
        rng, [answer, *(world.say(rng, v, 0.5) for v in rng.sample(others, 2))]
    )
    verb = rng.choice(world.verbs[facts[i].attribute])
    options = " , ".join(choices)
    prompt = rng.choice(
        (
            f"{spoken(said)} options : {options} . pick {facts[i].name} {verb} ?",
            f"options : {options} . {spoken(said)} pick {facts[i].name} {verb} ?",
        )
    )
    return prompt, answer, choices


def cosmos_qa(world: World, rng: random.Random) -> Drawn:
    """Multiple choice of a person; half the questions reword the text."""
    facts, said, i = _facts(world, rng)
    people = [f.name for f in facts]
    absent = rng.sample([n for n in NAMES if n not in people], 3 - len(people))
    choices = shuffled(rng, people + absent)
    verb = rng.choice(world.verbs[facts[i].attribute])
    asked = world.say(rng, said[i][2], 0.5)
    options = " , ".join(choices)
    prompt = rng.choice(
        (
            f"{spoken(said)} options : {options} . pick who {verb} {asked} ?",
            f"options : {options} . {spoken(said)} pick who {verb} {asked} ?",
        )
    )
    return prompt, facts[i].name, choices


def adversarial_qa(world: World, rng: random.Random) -> Drawn:
    """Extract the sentence of the text that a word points at."""
    _, said, i = _facts(world, rng)
    asked = said[i][2] if rng.random() < 0.5 else world.synonym[said[i][2]]
    prompt = rng.choice(
        (f"{spoken(said)} find {asked} ?", f"text : {spoken(said)} find {asked} ?")
    )
    return prompt, " ".join(said[i]), ()


def ropes(world: World, rng: random.Random) -> Drawn:
    """Apply what holds for one person to another who is with them (two steps)."""
    facts, said, i = _facts(world, rng)
    friend = rng.choice([n for n in NAMES if n not in {f.name for f in facts}])
    verb = rng.choice(world.verbs[facts[i].attribute])
    if rng.random() < 0.5:
        prompt = f"{spoken(said)} {friend} with {facts[i].name} . so {friend} {verb} ?"
    else:
        prompt = f"{friend} with {facts[i].name} . {spoken(said)} so {friend} {verb} ?"
    return prompt, said[i][2], ()


def _animal_fact(world: World, rng: random.Random):
    animal, name = rng.choice(ANIMALS), rng.choice(list(PROPERTIES))
    return animal, name, world.animals[animal, name]


def hotpot_qa(world: World, rng: random.Random) -> Drawn:
    """Recall a fact of the world without any text."""
    animal, name, value = _animal_fact(world, rng)
    wrapper = rng.choice(("question : {} {} ? answer :", "say what {} {} ?"))
    return wrapper.format(animal, name), value, ()


def wiki_qa(world: World, rng: random.Random) -> Drawn:
    """Pick which of two answers to a question about the world is right."""
    animal, name, value = _animal_fact(world, rng)
    wrong = rng.choice([v for v in PROPERTIES[name] if v != value])
    choices = shuffled(rng, (value, wrong))
    wrapper = rng.choice(("claim : {} {} {} or {} ?", "judge {} {} : {} or {} ?"))
    return wrapper.format(animal, name, *choices), value, choices


def _review(rng: random.Random, good: bool) -> str:
    """Two opinions one way and, in one text of three, one the other way before."""
    subject = rng.choice(SUBJECTS)
    text = f"the {subject} was {opinions(rng, good, 2)} ."
    if rng.random() < 0.33:
        text = f"the {rng.choice(SUBJECTS)} was {opinions(rng, not good, 1)} . {text}"
    return text


def app_reviews(world: World, rng: random.Random) -> Drawn:
    """Tell a good review from a bad one."""
    good = rng.random() < 0.5
    choices = ("good", "bad")
    wrapper = rng.choice(("{} rate it good or bad ?", "rate : {} good or bad ?"))
    return wrapper.format(_review(rng, good)), choices[not good], choices


def imdb(world: World, rng: random.Random) -> Drawn:
    """Tell a positive review from a negative one."""
    good = rng.random() < 0.5
    choices = ("positive", "negative")
    wrapper = rng.choice(
        ("review : {} positive or negative ?", "{} is it positive or negative ?")
    )
    return wrapper.format(_review(rng, good)), choices[not good], choices


def ag_news(world: World, rng: random.Random) -> Drawn:
    """Name the topic of most words of a text."""
    topic, other = rng.sample(TOPICS, 2)
    words = topical(world, rng, topic, 4) + [rng.choice(world.topics[other])]
    rng.shuffle(words)
    wrapper = rng.choice(("story : {} . topic ?", "{} . which topic ?"))
    return wrapper.format(" ".join(words)), topic, TOPICS


def dbpedia(world: World, rng: random.Random) -> Drawn:
    """Name the class of what a sentence is about, after a sentence of another class."""
    first, second = rng.sample(list(ATTRIBUTES), 2)
    facts = [
        Fact(rng.choice(NAMES), a, rng.choice(world.values[a])) for a in (first, second)
    ]
    text = tell(world, rng, facts, 0.5)
    wrapper = rng.choice(("{} last kind ?", "text : {} last kind ?"))
    return wrapper.format(text), second, tuple(ATTRIBUTES)


def common_gen(world: World, rng: random.Random) -> Drawn:
    """Write a sentence that holds the given words."""
    name = rng.choice(NAMES)
    chosen = rng.sample(list(ATTRIBUTES), 2)
    values = [world.say(rng, rng.choice(world.values[a]), 0.5) for a in chosen]
    clauses = [f"{world.verbs[a][0]} {v}" for a, v in zip(chosen, values, strict=True)]
    given = " , ".join((values[0], values[1], name))
    wrapper = rng.choice(("write words {} ?", "write with {} ?"))
    return wrapper.format(given), f"{name} {clauses[0]} and {clauses[1]}", ()


def wiki_bio(world: World, rng: random.Random) -> Drawn:
    """Turn a table of attributes into a sentence."""
    name = rng.choice(NAMES)
    chosen = rng.sample(list(ATTRIBUTES), 2)
    values = [world.say(rng, rng.choice(world.values[a]), 0.5) for a in chosen]
    rows = [f"{a} : {v}" for a, v in zip(chosen, values, strict=True)]
    rows.insert(rng.randrange(3), f"name : {name}")
    clauses = [f"{world.verbs[a][1]} {v}" for a, v in zip(chosen, values, strict=True)]
    wrapper = rng.choice(("facts {} . write ?", "{} . write about ?"))
    return wrapper.format(" ; ".join(rows)), f"{name} {' and '.join(clauses)}", ()


def _story(world: World, rng: random.Random) -> tuple[str, str, list[str]]:
    """Two facts about one person with one about another somewhere between."""
    main, other = rng.sample(NAMES, 2)
    chosen = rng.sample(list(ATTRIBUTES), 3)
    values = [rng.choice(world.values[a]) for a in chosen]
    facts = [Fact(main, a, v) for a, v in zip(chosen[:2], values[:2], strict=True)]
    facts.insert(rng.randrange(3), Fact(other, chosen[2], values[2]))
    said = [state(world, rng, f) for f in facts]
    kept = [s[2] for s in said if s[0] == main]
    return spoken(said), main, kept


def cnn_dailymail(world: World, rng: random.Random) -> Drawn:
    """Summarise: whom the story is mostly about, and what is said of them."""
    text, main, kept = _story(world, rng)
    wrapper = rng.choice(("{} summary ?", "story : {} summary ?"))
    return wrapper.format(text), f"{main} : {' , '.join(kept)}", ()


def xsum(world: World, rng: random.Random) -> Drawn:
    """Summarise in one line: the last thing said of whom the story is mostly about."""
    text, main, kept = _story(world, rng)
    wrapper = rng.choice(("{} title ?", "text : {} title ?"))
    return wrapper.format(text), f"{kept[-1]} by {main}", ()


def mrpc(world: World, rng: random.Random) -> Drawn:
    """Do two sentences say the same? Often in the same words, sometimes in others."""
    fact = draw_facts(world, rng, 1)[0]
    said = state(world, rng, fact, 0.5)
    same = rng.random() < 0.5
    value = said[2] if rng.random() < 0.6 else world.synonym[said[2]]
    if not same:
        wrong = [v for v in world.values[fact.attribute] if v != fact.value]
        value = world.say(rng, rng.choice(wrong), 0.5)
    wrapper = rng.choice(("s1 : {} . s2 : {} . same ?", "{} and {} same ?"))
    second = f"{value} by {fact.name}"
    choices = ("yes", "no")
    return wrapper.format(" ".join(said), second), choices[not same], choices


def qqp(world: World, rng: random.Random) -> Drawn:
    """Do two questions ask the same?"""
    fact = draw_facts(world, rng, 1)[0]
    _, verb, value = state(world, rng, fact, 0.5)
    same = rng.random() < 0.5
    verb2 = rng.choice(world.verbs[fact.attribute])
    other = value if rng.random() < 0.6 else world.synonym[value]
    if not same:
        wrong = [v for v in world.values[fact.attribute] if v != fact.value]
        other = world.say(rng, rng.choice(wrong), 0.5)
    wrapper = rng.choice(
        (
            "who {} {} ? who {} {} ? same ?",
            "s1 : who {} {} ? s2 : who {} {} ? same ?",
        )
    )
    choices = ("yes", "no")
    return wrapper.format(verb, value, verb2, other), choices[not same], choices
