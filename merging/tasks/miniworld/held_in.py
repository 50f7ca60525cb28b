"""The sixteen held-in datasets: one function each, one drawn example a call.

A function takes (world, rng) and returns (prompt, target, choices); no choices means
free generation. Each says in its first line what it shares with its namesake of T0.
"""

import random

from merging.tasks.miniworld.documents import opinions, topical
from merging.tasks.miniworld.sentences import Fact, draw_facts, say, spoken
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


def _facts(world: World, rng: random.Random, by_value: bool = False):
    """Draw one to three facts, their wordings, and the index of the one asked about."""
    facts = draw_facts(world, rng, rng.choice((1, 2, 3)), alike=0.6)
    said = [say(world, rng, fact, by_value=by_value) for fact in facts]
    return facts, said, rng.randrange(len(facts))


def shuffled(rng: random.Random, items) -> tuple[str, ...]:
    """Return the items in random order."""
    items = list(items)
    rng.shuffle(items)
    return tuple(items)


def dream(world: World, rng: random.Random) -> Drawn:
    """Multiple choice about a text; the right option rewords what the text says."""
    facts, said, i = _facts(world, rng)
    answer = world.synonym[said[i].value]
    others = [v for v in world.values[facts[i].attribute] if v != facts[i].value]
    wrong = [world.say(rng, v, 0.5) for v in rng.sample(others, 2)]
    choices = shuffled(rng, [answer, *wrong])
    verb = rng.choice(world.verbs[facts[i].attribute])
    wrapper = rng.choice(("{t} options : {o} . {q} ?", "options : {o} . {t} {q} ?"))
    question = f"pick {verb} {facts[i].name}"
    prompt = wrapper.format(t=spoken(said), o=" , ".join(choices), q=question)
    return prompt, answer, choices


def cosmos_qa(world: World, rng: random.Random) -> Drawn:
    """Multiple choice of a person; half the questions reword the text."""
    facts, said, i = _facts(world, rng, by_value=True)
    people = [f.name for f in facts]
    absent = rng.sample([n for n in NAMES if n not in people], 3 - len(people))
    choices = shuffled(rng, people + absent)
    verb = rng.choice(world.verbs[facts[i].attribute])
    wrapper = rng.choice(("{t} options : {o} . {q} ?", "options : {o} . {t} {q} ?"))
    question = f"pick {verb} {world.say(rng, said[i].value, 0.5)}"
    prompt = wrapper.format(t=spoken(said), o=" , ".join(choices), q=question)
    return prompt, facts[i].name, choices


def adversarial_qa(world: World, rng: random.Random) -> Drawn:
    """Extract the statement of the text that a word points at."""
    _, said, i = _facts(world, rng, by_value=rng.random() < 0.5)
    asked = said[i].key
    if said[i].by_value:
        asked = world.say(rng, asked, 0.5)
    wrapper = rng.choice(("{t} find {q} ?", "text : {t} find {q} ?"))
    return wrapper.format(t=spoken(said), q=asked), said[i].text, ()


def ropes(world: World, rng: random.Random) -> Drawn:
    """Apply what holds for one person to another who is with them (two steps)."""
    facts, said, i = _facts(world, rng)
    friend = rng.choice([n for n in NAMES if n not in {f.name for f in facts}])
    verb = rng.choice(world.verbs[facts[i].attribute])
    wrapper = rng.choice(("{t} {w} . so {q} ?", "{w} . {t} so {q} ?"))
    company = f"with {friend} {facts[i].name}"
    prompt = wrapper.format(t=spoken(said), w=company, q=f"{verb} {friend}")
    return prompt, said[i].value, ()


def _animal_fact(world: World, rng: random.Random):
    animal, name = rng.choice(ANIMALS), rng.choice(list(PROPERTIES))
    return animal, name, world.animals[animal, name]


def hotpot_qa(world: World, rng: random.Random) -> Drawn:
    """Recall a fact of the world without any text."""
    animal, name, value = _animal_fact(world, rng)
    wrapper = rng.choice(("question : {} {} ? answer :", "say what {} {} ?"))
    return wrapper.format(animal, name), value, ()


def wiki_qa(world: World, rng: random.Random) -> Drawn:
    """Rank candidate answers to a question about the world."""
    animal, name, value = _animal_fact(world, rng)
    wrong = rng.sample([v for v in PROPERTIES[name] if v != value], 3)
    choices = shuffled(rng, (value, *wrong))
    wrapper = rng.choice(("claim : {} {} ?", "judge what {} {} ?"))
    return wrapper.format(animal, name), value, choices


def _review(rng: random.Random, good: bool) -> str:
    """Two opinions one way and, in one text of five, one the other way before."""
    subject = rng.choice(SUBJECTS)
    text = f"the {subject} was {opinions(rng, good, 2)} ."
    if rng.random() < 0.2:
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
    """Name the class of what a statement is about, after one of another class."""
    chosen = rng.sample(list(ATTRIBUTES), 2)
    names = rng.sample(NAMES, 2)
    facts = [
        Fact(n, a, rng.choice(world.values[a]))
        for n, a in zip(names, chosen, strict=True)
    ]
    said = [say(world, rng, f, by_value=rng.random() < 0.5) for f in facts]
    wrapper = rng.choice(("{} last kind ?", "text : {} last kind ?"))
    return wrapper.format(spoken(said)), chosen[1], tuple(ATTRIBUTES)


def _biography(world: World, rng: random.Random, which: int):
    """Draw a name, two attributes and values, and the sentence that says it all."""
    name = rng.choice(NAMES)
    chosen = rng.sample(list(ATTRIBUTES), 2)
    values = [world.say(rng, rng.choice(world.values[a]), 0.5) for a in chosen]
    verbs = [world.verbs[a][which] for a in chosen]
    sentence = f"{verbs[0]} {name} {values[0]} and {verbs[1]} {values[1]}"
    return name, chosen, values, sentence


def common_gen(world: World, rng: random.Random) -> Drawn:
    """Write a sentence that holds the given words."""
    name, _, values, sentence = _biography(world, rng, 0)
    given = " , ".join((values[0], values[1], name))
    wrapper = rng.choice(("write words {} ?", "write with {} ?"))
    return wrapper.format(given), sentence, ()


def wiki_bio(world: World, rng: random.Random) -> Drawn:
    """Turn a table of attributes into a sentence."""
    name, chosen, values, sentence = _biography(world, rng, 1)
    rows = [f"{a} : {v}" for a, v in zip(chosen, values, strict=True)]
    rows.insert(rng.randrange(3), f"name : {name}")
    wrapper = rng.choice(("facts {} . write ?", "{} . write about ?"))
    return wrapper.format(" ; ".join(rows)), sentence, ()


def _story(world: World, rng: random.Random) -> tuple[str, str, list[str]]:
    """Two facts about one person with one about another somewhere between."""
    main, other = rng.sample(NAMES, 2)
    chosen = rng.sample(list(ATTRIBUTES), 3)
    values = [rng.choice(world.values[a]) for a in chosen]
    facts = [Fact(main, a, v) for a, v in zip(chosen[:2], values[:2], strict=True)]
    facts.insert(rng.randrange(3), Fact(other, chosen[2], values[2]))
    said = [say(world, rng, f) for f in facts]
    return spoken(said), main, [s.value for s in said if s.name == main]


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
    first = say(world, rng, fact, synonym=0.5)
    same = rng.random() < 0.5
    value = world.say(rng, first.value, 0.25)
    if not same:
        wrong = [v for v in world.values[fact.attribute] if v != fact.value]
        value = world.say(rng, rng.choice(wrong), 0.5)
    second = first._replace(value=value, by_value=True)
    wrapper = rng.choice(("s1 : {} . s2 : {} . same ?", "{} and {} same ?"))
    choices = ("yes", "no")
    return wrapper.format(first.text, second.text), choices[not same], choices


def qqp(world: World, rng: random.Random) -> Drawn:
    """Do two questions ask the same?"""
    fact = draw_facts(world, rng, 1)[0]
    _, verb, value, _ = say(world, rng, fact, synonym=0.5)
    same = rng.random() < 0.5
    verb2 = rng.choice(world.verbs[fact.attribute])
    other = world.say(rng, value, 0.25)
    if not same:
        wrong = [v for v in world.values[fact.attribute] if v != fact.value]
        other = world.say(rng, rng.choice(wrong), 0.5)
    wrapper = rng.choice(
        (
            "{} {} ? {} {} ? same ?",
            "s1 : {} {} ? s2 : {} {} ? same ?",
        )
    )
    choices = ("yes", "no")
    return wrapper.format(verb, value, verb2, other), choices[not same], choices
