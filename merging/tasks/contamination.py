"""Are examples that are evaluated on among those that are trained on?

Texts are compared after normalisation (case, punctuation and spaces do not count), by
a 64-bit hash: among 10⁶ evaluation and 10⁷ training texts, a chance of one in a million
that any two different ones are taken for equal.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    marked = defaultdict(list)
    for dataset, examples in evaluated.items():
        for number, texts in enumerate(examples):
            for mark in _marks(texts):
                marked[mark].append((dataset, number))
    found = []
    for name, examples in trained.items():
        shared = defaultdict(lambda: {"examples": set(), "texts": set()})
        for texts in examples:
            for mark in _marks(texts):
                for dataset, number in marked.get(mark, ()):
                    shared[dataset][mark[0]].add(number)
        for dataset, numbers in sorted(shared.items()):
            examples, texts = numbers["examples"], numbers["texts"]
            shown = tuple(sorted(examples | texts)[:5])
            found.append(Overlap(dataset, name, len(examples), len(texts), shown))
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


def _marks(texts: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield what an example is found by: itself, and each of its long texts."""
    yield "examples", fingerprint(texts)
    yield from (("texts", fingerprint([text])) for text in texts if is_long(text))
