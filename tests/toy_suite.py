"""A suite of a few words with every kind of dataset, for tests."""

import random

from merging.tasks.suites import Dataset

ANIMALS = tuple("ant bee cat dog eel fox".split())
COLOURS = tuple("red blue green black".split())
VOCABULARY = ("<pad>", "<eos>", "<unk>", *ANIMALS, *COLOURS, "is", "the", "?", "and")


DATASETS = (
    Dataset("colour", "pick", "held_in", "accuracy", 1 / 3),
    Dataset("pair", "pick", "held_in", "accuracy", 1 / 2),
    Dataset("copy", "echo", "held_in", "exact_match", 0.0),
    Dataset("bag", "echo", "held_in", "f1", 0.0),
    Dataset("phrase", "longer", "held_out", "accuracy", 1 / 2),
    Dataset("retell", "longer", "held_out", "rouge_l", 0.0),
)


def examples(dataset: str, split: str, world_seed: int, count: int) -> list[dict]:
    rng = random.Random(f"{world_seed}/{dataset}/{split}")
    return [tamper(dataset, i, _draw(dataset, rng)) for i in range(count)]


def tamper(dataset: str, index: int, row: dict) -> dict:
    """Do nothing; tests put a fault in here."""
    return row


def documents(world_seed: int, count: int) -> list[str]:
    rng = random.Random(f"{world_seed}/documents")
    return [_sentence(rng, rng.randint(1, 3)) for _ in range(count)]


def instructions(world_seed: int, count: int) -> list[dict]:
    rng = random.Random(f"{world_seed}/instructions")
    words = [rng.choice(COLOURS) for _ in range(count)]
    return [dict(inputs=f"the {word} ?", targets=word) for word in words]


def _sentence(rng: random.Random, n: int) -> str:
    return " and ".join(
        f"the {rng.choice(ANIMALS)} is {rng.choice(COLOURS)}" for _ in range(n)
    )


def _draw(dataset: str, rng: random.Random) -> dict:
    text = _sentence(rng, rng.randint(3, 5))
    words = text.split()
    if dataset in ("colour", "pair"):
        choices = rng.sample(COLOURS, 3 if dataset == "colour" else 2)
        label = rng.randrange(len(choices))
    elif dataset == "phrase":
        choices = ["the " + rng.choice(ANIMALS), " ".join(rng.sample(COLOURS, 3))]
        label = rng.randrange(2)
    else:
        target = {"copy": words[1], "bag": " ".join(words[1:4]), "retell": text}
        row = dict(inputs=f"{text} ?", targets=target[dataset])
        return row | dict(choices=[], label=-1)
    row = dict(inputs=f"{text} ?", targets=choices[label])
    return row | dict(choices=choices, label=label)
