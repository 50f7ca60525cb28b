"""Suite `english`: real English from what packages ship, as a file of JSON lines.

`prepare` makes it of two packages: the texts that people rated for VADER (Hutto and
Gilbert, ICWSM 2014; MIT licence) and WordNet 3 (Princeton University, its own free
licence). The file is one of a suite `jsonl`: nothing else in the program knows of it.

Eight held-in categories: opinions of films and goods; and of WordNet's words a word
for a definition, what it is a kind of, its opposite, the same sense or another, a gap
in a sentence, which sense, and its definition as a text. Four are held out: opinions in
tweets and editorials, synonyms, and parts of things.

A word is for training, validation or testing by a hash of it, in all datasets alike,
and what shares words of two parts is left out: no definition, sentence or relation that
is tested on is trained on under another word of its meaning. Nor under another meaning:
what has a prompt, a definition or a sentence of a test is left out of the two other
parts, and of training what has one of validation. Opinions go by the review or article
that they are from.
"""

import collections
import json
from collections.abc import Iterator
from pathlib import Path

from merging.runtime import storage
from merging.tasks.contamination import normalised
from merging.tasks.english import opinions, words
from merging.tasks.english.records import MOST, Example, rank
from merging.tasks.english.wordnet import read

__all__ = ["FILE", "prepare"]

FILE = "english.jsonl"


def prepare(data_dir: Path) -> dict[str, dict[str, int]]:
    """Write `english.jsonl` from the two packages; return {dataset: {part: examples}}.

    The same bytes from the same packages.

    Args:
      data_dir: has vaderSentiment's source archive, and WordNet's files in `wordnet`,
        if they are not where Debian's package has them; the file goes there.

    Raises:
      UserError: a package is missing (with how to get it), or is another one.
    """
    archive = opinions.archive(data_dir)
    synsets = read(data_dir)
    examples = [*opinions.examples(archive), *words.examples(synsets)]
    counts = {example.dataset: dict.fromkeys(MOST, 0) for example in examples}
    lines = []
    for example in _chosen(examples):
        counts[example.dataset][example.part] += 1
        lines.append(json.dumps(example.record(), ensure_ascii=False) + "\n")
    storage.write_bytes(data_dir / FILE, "".join(lines).encode())
    return counts


def _chosen(examples: list[Example]) -> Iterator[Example]:
    """Yield at most `MOST` examples of each dataset and part, in an order by hashes.

    None of them tells what an example of an earlier part tells, in the order test,
    validation, training: the largest part loses most.
    """
    piles = collections.defaultdict(list)
    for example in examples:
        piles[example.dataset, example.part].append(example)
    told: set[str] = set()
    for part in ("test", "validation", "train"):
        mine = [key for key in piles if key[1] == part]
        for key in mine:
            new = [x for x in piles[key] if told.isdisjoint(_texts(x))]
            new.sort(key=lambda example: rank(example.inputs))
            piles[key] = new[: MOST[part]]
        told.update(text for key in mine for x in piles[key] for text in _texts(x))
    for pile in piles.values():
        yield from pile


def _texts(example: Example) -> list[str]:
    """Return what an example tells, without case and punctuation."""
    return [normalised(text) for text in (example.inputs, *example.told)]
