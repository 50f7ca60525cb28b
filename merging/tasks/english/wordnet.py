"""WordNet's database files: sets of words with one meaning, and how they relate.

Miller, "WordNet: a lexical database for English", 1995; the format is wndb(5)'s.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from merging.runtime.errors import UserError

_INSTALLED = Path("/usr/share/wordnet")
_FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
_USED = "cntlist.rev"
_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_QUOTED = re.compile(r'"([^"]+)"')


class Pointer(NamedTuple):
    """A relation: its symbol, the other set, and which words of both (0: all)."""

    symbol: str
    other: str
    source: int
    target: int


class Synset(NamedTuple):
    """Words with one meaning.

    Attributes:
      key: part of speech and offset, "n00001740".
      topic: number of the lexicographer's file, such as that of animals.
      words: in order, with spaces.
      gloss: the definition.
      examples: sentences.
      pointers: its relations.
    """

    key: str
    topic: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    pointers: tuple[Pointer, ...]

    @property
    def pos(self) -> str:
        """Part of speech: n, v, a or r."""
        return self.key[0]


class WordNet(NamedTuple):
    """Synsets by key, and how often words were met in texts, {"n dog": 42}."""

    synsets: Mapping[str, Synset]
    used: Mapping[str, int]


def read(data_dir: Path) -> WordNet:
    """Return WordNet, from `data_dir`/wordnet or from where Debian's package is.

    Raises:
      UserError: it is not there, with how to get it; a line that is none of its.
    """
    folder = data_dir / "wordnet"
    if not folder.is_dir():
        folder = _INSTALLED
    missing = [
        name for name in (*_FILES.values(), _USED) if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(
            f"WordNet's {missing[0]} is neither in {data_dir / 'wordnet'} nor in "
            f"{_INSTALLED}; install it (apt install wordnet-base), or unpack its dict "
            "folder to the former."
        )
    synsets = {}
    for pos, name in _FILES.items():
        for number, line in enumerate(_lines(folder / name), 1):
            if line[:1].isdigit():
                try:
                    found = _synset(pos, line)
                except (ValueError, IndexError):
                    raise UserError(
                        f"{folder / name}: line {number} is none of WordNet's."
                    ) from None
                synsets[found.key] = found
    return WordNet(synsets, _used(folder / _USED))


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", "replace").splitlines()


def _synset(pos: str, line: str) -> Synset:
    facts, _, text = line.partition(" | ")
    offset, topic, _, count, *fields = facts.split()
    size = int(count, 16)
    words = tuple(
        _MARKER.sub("", word).replace("_", " ") for word in fields[: 2 * size : 2]
    )
    fields = fields[2 * size :]
    related = fields[1 : 1 + 4 * int(fields[0])]
    pointers = tuple(
        Pointer(
            symbol,
            f"{'a' if kind == 's' else kind}{other}",
            int(ends[:2], 16),
            int(ends[2:], 16),
        )
        for symbol, other, kind, ends in zip(*[iter(related)] * 4, strict=True)
    )
    if len(words) != size:
        raise ValueError(line)
    gloss = text.partition('; "')[0].split('"')[0].strip().rstrip(";").strip()
    return Synset(pos + offset, topic, words, gloss, _sentences(text), pointers)


def _sentences(text: str) -> tuple[str, ...]:
    return tuple(found.strip() for found in _QUOTED.findall(text) if " " in found)


def _used(path: Path) -> dict[str, int]:
    """Return how often each word was met as each part of speech."""
    found: dict[str, int] = {}
    kinds = " nvara"  # by the number in a sense's key; 5, too, is an adjective
    for line in _lines(path):
        sense, _, count = line.split()
        word, _, rest = sense.partition("%")
        key = f"{kinds[int(rest[0])]} {word.replace('_', ' ')}"
        found[key] = found.get(key, 0) + int(count)
    return found
