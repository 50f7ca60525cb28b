"""The world that every miniworld text talks about: its words, and its seeded facts.

The words are fixed; a seed decides what they mean (which words are synonyms, what
each animal eats, in which order the events of a day follow, which topic a word
belongs to), so that nothing learned in one world helps in another.
"""

import dataclasses
import functools
import random

NAMES = tuple("anna ben carl dora emma finn gina hugo iris jack kate liam".split())
# attribute -> (verb, its synonym, six values, their six synonyms)
ATTRIBUTES = {
    "place": (
        "visits enters",
        "kitchen garden market school harbor forest",
        "galley orchard bazaar college port woods",
    ),
    "thing": (
        "has owns",
        "cup lamp book coin rope mask",
        "mug light volume penny cord veil",
    ),
    "job": (
        "serves works",
        "doctor farmer baker pilot tailor guard",
        "medic grower cook flyer sewer watchman",
    ),
    "food": (
        "likes loves",
        "bread soup rice cheese apple honey",
        "loaf broth grain curd fruit nectar",
    ),
}
ANIMALS = tuple(
    """lynx otter heron viper bison gecko moose raven tapir koala hyena llama
    camel zebra panda tiger shark whale eagle goose mouse horse sheep alpaca
    badger beaver bobcat cougar coyote donkey ferret gibbon iguana jackal jaguar
    lizard magpie marten marmot ocelot parrot pigeon possum python rabbit salmon
    spider turtle""".split()
)
# property -> the values that an animal's property can take
PROPERTIES = {
    "eats": "seeds grass fish insects leaves roots".split(),
    "lives": "desert river jungle tundra cave swamp".split(),
    "fears": "fire thunder smoke snow wind dark".split(),
    "color": "red blue green black white brown".split(),
}
TOPICS = ("sports", "money", "science", "music")
TOPIC_WORDS = tuple(
    """goal team match coach race score bank loan trade stock price profit
    atom cell laser probe fossil orbit song drum opera choir violin dance""".split()
)
AMBIGUOUS = tuple("pitch bond note scale club record band key".split())
GOOD = tuple("nice fun great fresh warm bright sweet clever".split())
BAD = tuple("dull sad awful stale cold grim bitter silly".split())
SUBJECTS = tuple("movie app meal hotel game phone".split())
EVENTS = tuple(
    """wakes washes dresses departs walks arrives unlocks sits reads writes rests
    eats pays drives parks shops carries cooks cleans sings prays dreams""".split()
)[:20]
CHAIN = 5
_FUNCTION_WORDS = """. , : ; ? and or not the was is it by then first last
yes no true false positive negative good bad alike unlike means who what which
text question answer options write summary story review topic about kind name s1 s2
same so title facts find animal rate how many one two three takes from with copy
before after feels glad angry say words pick judge claim does has""".split()


def _unique(words):
    return tuple(dict.fromkeys(words))


VOCABULARY = ("<pad>", "<eos>", "<unk>") + _unique(
    [
        *_FUNCTION_WORDS,
        *NAMES,
        *ATTRIBUTES,
        *(w for parts in ATTRIBUTES.values() for part in parts for w in part.split()),
        *ANIMALS,
        *PROPERTIES,
        *(value for values in PROPERTIES.values() for value in values),
        *TOPICS,
        *TOPIC_WORDS,
        *AMBIGUOUS,
        *GOOD,
        *BAD,
        *SUBJECTS,
        *EVENTS,
    ]
)


@dataclasses.dataclass(frozen=True)
class World:
    """One seeded set of facts.

    Attributes:
      seed: what it was drawn from.
      values: attribute -> its values, without synonyms.
      verbs: attribute -> its two verbs.
      synonym: value -> the other word for it (both ways).
      animals: (animal, property) -> value.
      topics: topic -> the words that belong to it alone.
      senses: ambiguous word -> its two topics.
      chains: sequences of events that always follow each other.
    """

    seed: int
    values: dict[str, tuple[str, ...]]
    verbs: dict[str, tuple[str, str]]
    synonym: dict[str, str]
    animals: dict[tuple[str, str], str]
    topics: dict[str, tuple[str, ...]]
    senses: dict[str, tuple[str, str]]
    chains: tuple[tuple[str, ...], ...]

    def say(self, rng: random.Random, word: str, chance: float) -> str:
        """Return `word`, or with probability `chance` its synonym."""
        return self.synonym[word] if rng.random() < chance else word


@functools.cache
def make_world(seed: int) -> World:
    """Draw the facts of the world with this seed."""
    rng = random.Random(f"miniworld-{seed}")
    values, verbs, synonym = {}, {}, {}
    for attribute, (two_verbs, left, right) in ATTRIBUTES.items():
        left, right = left.split(), right.split()
        rng.shuffle(right)
        values[attribute] = tuple(left)
        verbs[attribute] = tuple(two_verbs.split())
        synonym |= dict(zip(left, right, strict=True))
        synonym |= dict(zip(right, left, strict=True))
    animals = {
        (animal, name): rng.choice(options)
        for animal in ANIMALS
        for name, options in PROPERTIES.items()
    }
    words = list(TOPIC_WORDS)
    rng.shuffle(words)
    share = len(words) // len(TOPICS)
    topics = {
        t: tuple(words[i * share : (i + 1) * share]) for i, t in enumerate(TOPICS)
    }
    senses = {word: tuple(rng.sample(TOPICS, 2)) for word in AMBIGUOUS}
    events = list(EVENTS)
    rng.shuffle(events)
    chains = tuple(
        tuple(events[i : i + CHAIN]) for i in range(0, len(events) - CHAIN + 1, CHAIN)
    )
    return World(seed, values, verbs, synonym, animals, topics, senses, chains)
