"""A closed vocabulary of whole words, in plain Python."""

import functools
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from merging.runtime import storage

PAD, EOS, UNK = 0, 1, 2
CONTROLS = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Words:
    """Whitespace-separated words as their index in a list; nothing else is a token.

    Attributes:
      words: every token, ``<pad>``, ``<eos>`` and ``<unk>`` first.
      bos_id, prefix_id, eos_id, end_ids, unk_id, files: see `Tokenizer`.

    Raises:
      ValueError: the list does not start with the three control tokens, repeats a
        word, or holds a word with whitespace in it.
    """

    words: tuple[str, ...]
    # seqio's decoder converters start a sequence with the padding.
    bos_id = prefix_id = PAD
    eos_id = EOS
    end_ids = (EOS,)
    unk_id = UNK
    files = types.MappingProxyType({})

    def __post_init__(self):
        if tuple(self.words[:3]) != CONTROLS:
            raise ValueError(
                f"a vocabulary starts with {CONTROLS}, not {self.words[:3]}"
            )
        repeated = sorted({w for w in self.words if self.words.count(w) > 1})
        split = [w for w in self.words if w.split() != [w]]
        if repeated or split:
            raise ValueError(
                f"repeated words: {repeated}; words that are not one word: {split}"
            )

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Word → id, without the control tokens: text cannot spell those."""
        return {word: i for i, word in enumerate(self.words) if i >= len(CONTROLS)}

    @functools.cached_property
    def digest(self) -> str:
        """Return a hash of the words."""
        return storage.digest(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's words, ``UNK`` for one that is not in the list."""
        return [self.ids.get(word, UNK) for word in text.split()]

    def encode_pairs(
        self, inputs: Sequence[str], targets: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return prompts' ids, and those of the text that follows each."""
        return [self.encode(t) for t in inputs], [self.encode(t) for t in targets]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words up to the first ``<eos>``, without padding at the end.

        A ``<pad>`` in front of a real word stays visible, because a model that
        generates it has made a mistake.
        """
        ids = [int(i) for i in ids]
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        while ids and ids[-1] == PAD:
            ids.pop()
        last = len(self.words)
        return " ".join(self.words[i if 0 <= i < last else UNK] for i in ids)

    def spelled(self, ids: Iterable[int]) -> str:
        """Return the text of all ids, control tokens as they are spelled."""
        return " ".join(self.words[i] for i in ids)

    def unknown(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """Return (index of the text, word) of every word that has no id."""
        ids = self.ids
        return [(i, w) for i, t in enumerate(texts) for w in t.split() if w not in ids]
