"""An example of the suite, and the hashes that deal and order them."""

import hashlib
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

# Examples of a dataset and part, at most.
MOST = {"train": 20_000, "validation": 200, "test": 1_000}
# A word is for testing by 4 of 20 values of its hash: of a relation both words must be.
_TEST, _VALIDATION, _OF = 4, 3, 20
_CATEGORIES = {
    "film_reviews": "opinion",
    "product_reviews": "opinion",
    "word_of_definition": "vocabulary",
    "kind_of": "taxonomy",
    "opposites": "antonymy",
    "same_sense": "word_in_context",
    "gaps": "cloze",
    "which_sense": "word_sense",
    "definitions": "definition_writing",
}
_HELD_OUT = {
    "tweets": "tweet_opinion",
    "editorials": "editorial_opinion",
    "same_meaning": "synonymy",
    "parts_of": "meronymy",
}


class Example(NamedTuple):
    """A prompt, and choices or a text.

    Attributes:
      dataset: its name.
      part: "train", "validation" or "test".
      inputs: the prompt.
      target: the right choice, or the text.
      choices: all of them; () for a text.
      told: definitions and sentences that it gives away.
    """

    dataset: str
    part: str
    inputs: str
    target: str
    choices: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the line of a suite `jsonl`."""
        held_out = self.dataset in _HELD_OUT
        found = {
            "dataset": self.dataset,
            "category": (_HELD_OUT if held_out else _CATEGORIES)[self.dataset],
            "split": "held_out" if held_out else "held_in",
            "part": self.part,
            "inputs": self.inputs,
        }
        if self.choices:
            label = self.choices.index(self.target)
            return found | {"choices": list(self.choices), "label": label}
        return found | {"target": self.target, "metric": "rouge_l", "stop": ["\n"]}


def is_held_out(dataset: str) -> bool:
    """Return whether a dataset is tested on only."""
    return dataset in _HELD_OUT


def rank(text: str) -> int:
    """Return a number that is always the same for a text, and otherwise random."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def part_of(key: str) -> str:
    """Return the part that whatever has this key is for."""
    place = rank(key) % _OF
    if place < _TEST:
        return "test"
    return "validation" if place < _TEST + _VALIDATION else "train"


def common_part(keys: Iterable[str]) -> str | None:
    """Return the part that all keys are for, if they are for the same."""
    parts = {part_of(key) for key in keys}
    return parts.pop() if len(parts) == 1 else None


def shuffled(choices: Iterable[str], key: str) -> tuple[str, ...]:
    """Return choices in an order that follows from a text."""
    found = sorted(choices)
    random.Random(rank(key)).shuffle(found)
    return tuple(found)
