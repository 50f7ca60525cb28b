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
is tested on is trained on under another word of its meaning. Opinions go by the review
or article that they are from.
"""

import collections
import json
from collections.abc import Iterator
from pathlib import Path

from merging.runtime import storage
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
    counts: dict[str, dict[str, int]] = {}
    lines = []
    for example in _capped([*opinions.examples(archive), *words.examples(synsets)]):
        of = counts.setdefault(example.dataset, dict.fromkeys(MOST, 0))
        of[example.part] += 1
        lines.append(json.dumps(example.record(), ensure_ascii=False) + "\n")
    storage.write_bytes(data_dir / FILE, "".join(lines).encode())
    return counts


def _capped(examples: list[Example]) -> Iterator[Example]:
    """Yield at most `MOST` examples of each dataset and part, in an order by hashes."""
    piles = collections.defaultdict(list)
    for example in examples:
        piles[example.dataset, example.part].append(example)
    for (_, part), pile in piles.items():
        pile.sort(key=lambda example: rank(example.inputs))
        yield from pile[: MOST[part]]
