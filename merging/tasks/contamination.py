"""Are examples that are evaluated on among those that are trained on?

Texts are compared after normalisation (case, punctuation and spaces do not count), by
a 64-bit hash: among 10⁶ evaluation and 10⁷ training texts, a chance of one in a million
that any two different ones are taken for equal.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# A text this long does not stand in two datasets by chance.
LONG_TEXT = 16  # words
_NO_WORD = re.compile(r"[\W_]+")


class Overlap(NamedTuple):
    """What a dataset's evaluation shares with one dataset's training.

    Attributes:
      evaluated, trained: the two datasets.
      examples: evaluation examples that are trained on whole.
      texts: evaluation examples of which a text of ``LONG_TEXT`` words or more, such as
        a passage, is trained on.
      shown: numbers of the first of them.
    """

    evaluated: str
    trained: str
    examples: int
    texts: int
    shown: tuple[int, ...]


def check(
    evaluated: Mapping[str, Iterable[Sequence[str]]],
    trained: Mapping[str, Iterable[Sequence[str]]],
) -> list[Overlap]:
    """Return the overlaps between evaluation and training data, if any.

    Holds hashes of the evaluation data in memory, and of the training data nothing.

    Args:
      evaluated: dataset → its examples, each the texts that it consists of.
      trained: the same of training data.
    """
    whole, long = defaultdict(list), defaultdict(list)
    for dataset, examples in evaluated.items():
        for number, texts in enumerate(examples):
            whole[fingerprint(texts)].append((dataset, number))
            for text in texts:
                if is_long(text):
                    long[fingerprint([text])].append((dataset, number))
    found = []
    for dataset, examples in trained.items():
        found += _overlaps(dataset, examples, whole, long)
    return found


def fingerprint(texts: Sequence[str]) -> int:
    """Return 64 bits that depend on the normalised texts only, in any order."""
    parts = sorted(normalised(text) for text in texts)
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def normalised(text: str) -> str:
    """Return the words of a text: compatible characters unified, in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub(" ", text).strip()


def is_long(text: str) -> bool:
    """Return whether a text is long enough to be looked for by itself."""
    return len(text.split(maxsplit=LONG_TEXT)) >= LONG_TEXT


def _overlaps(trained, examples, whole, long) -> list[Overlap]:
    as_whole, by_text = defaultdict(set), defaultdict(set)
    for texts in examples:
        for dataset, number in whole.get(fingerprint(texts), ()):
            as_whole[dataset].add(number)
        for text in texts:
            if is_long(text):
                for dataset, number in long.get(fingerprint([text]), ()):
                    by_text[dataset].add(number)
    return [
        Overlap(
            dataset,
            trained,
            len(as_whole[dataset]),
            len(by_text[dataset]),
            tuple(sorted(as_whole[dataset] | by_text[dataset])[:5]),
        )
        for dataset in sorted(as_whole.keys() | by_text.keys())
    ]
