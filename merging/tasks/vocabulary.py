"""The closed word vocabulary as seqio wants it. Imports TensorFlow."""

from merging.tasks.backend import load_seqio
from merging.tasks.words import EOS, PAD, UNK, Words

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)


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
