"""A tokenizer as seqio wants it. Imports TensorFlow."""

from collections.abc import Callable

import numpy as np

from merging.tasks.backend import load_seqio
from merging.tasks.tokenizers import FileTokenizer, Tokenizer
from merging.tasks.words import EOS, PAD, UNK, Words

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)

_TOGETHER = 256  # rows tokenised in a call


def vocabulary(tokenizer: Tokenizer) -> seqio.Vocabulary:
    """Return a tokenizer behind seqio's interface."""
    if isinstance(tokenizer, Words):
        return WordVocabulary(tokenizer)
    return FileVocabulary(tokenizer)


def tokenize(
    tokenizer: FileTokenizer | Words,
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Return the preprocessor that makes ids of ``inputs`` and ``targets`` together.

    Their texts stay as ``inputs_pretokenized`` and ``targets_pretokenized``.
    """
    words = isinstance(tokenizer, Words)
    encode = vocabulary(tokenizer).encode_tf if words else None

    def rows(batch):
        texts = batch["inputs"], batch["targets"]
        ids = [encode(t) for t in texts] if words else _pairs(tokenizer, *texts)
        return batch | {
            "inputs": ids[0],
            "targets": ids[1],
            "inputs_pretokenized": texts[0],
            "targets_pretokenized": texts[1],
        }

    # Many at a time: a row at a time costs more than its tokens.
    return lambda ds: ds.batch(_TOGETHER).map(rows).unbatch()


def _pairs(tokenizer: FileTokenizer, *texts: tf.Tensor) -> list[tf.RaggedTensor]:
    """Return the ids of prompts [n] and targets [n], ragged."""

    def encode(*texts: np.ndarray) -> list[np.ndarray]:
        decoded = [[text.decode() for text in column] for column in texts]
        flat = []
        for column in tokenizer.encode_pairs(*decoded):
            flat.append(np.array([i for ids in column for i in ids], np.int32))
            flat.append(np.array([len(ids) for ids in column], np.int64))
        return flat

    kinds = (tf.int32, tf.int64) * 2
    found = tf.numpy_function(encode, texts, kinds, stateful=False)
    found = [tf.ensure_shape(part, [None]) for part in found]
    ragged = tf.RaggedTensor.from_row_lengths
    return [ragged(*found[:2], validate=False), ragged(*found[2:], validate=False)]


class FileVocabulary(seqio.Vocabulary):
    """A model's own tokenizer behind seqio's interface; equal when the ids are.

    ``tokenize`` encodes a prompt and its answer together, which seqio's own
    preprocessor of that name can't.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(extra_ids=0)
        self.tokenizer = tokenizer

    @property
    def bos_id(self) -> int | None:
        """The id that opens a text, or None."""
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        """The id that ends a sequence."""
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int | None:
        """None: no text is without ids."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return len(self.tokenizer)

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        encode = lambda text: np.array(self._encode(text.decode()), np.int32)  # noqa: E731
        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda row: self._decode(row), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        mine = self.tokenizer.digest
        return isinstance(other, FileVocabulary) and mine == other.tokenizer.digest

    def __hash__(self) -> int:
        return hash(self.tokenizer.digest)


class WordVocabulary(seqio.Vocabulary):
    """``Words`` behind seqio's interface; equal when the word lists are equal."""

    def __init__(self, words: Words):
        super().__init__(extra_ids=0)
        self.words = words
        ids = words.ids
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(ids), tf.string),
                tf.constant(list(ids.values()), tf.int32),
            ),
            default_value=UNK,
        )
        self._words_tf = tf.constant(words.words, tf.string)

    @property
    def bos_id(self) -> int:
        """The pad token: seqio's decoder converters start a sequence with it."""
        return PAD

    @property
    def eos_id(self) -> int:
        """The id that ends a sequence."""
        return EOS

    @property
    def unk_id(self) -> int:
        """The id of a word that is not in the list."""
        return UNK

    @property
    def _base_vocab_size(self) -> int:
        return len(self.words)

    def _encode(self, s: str) -> list[int]:
        return self.words.encode(s)

    def _decode(self, ids) -> str:
        return self.words.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self._table.lookup(tf.strings.split(s))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        # seqio has replaced everything after the first <eos> with <pad>.
        shown = tf.gather(self._words_tf, ids)
        kept = (ids != PAD) & (ids != EOS)
        spaced = tf.where(kept, shown + " ", "")
        return tf.strings.strip(tf.strings.reduce_join(spaced, axis=-1))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)
