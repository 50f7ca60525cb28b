"""A tokenizer as seqio wants it. Imports TensorFlow."""

from collections.abc import Callable

import numpy as np

from merging.tasks.backend import load_seqio
from merging.tasks.tokenizers import Tokenizer

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)

_TOGETHER = 256  # rows tokenised in a call


class Vocabulary(seqio.Vocabulary):
    """A tokenizer behind seqio's interface; equal when the ids are."""

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
        """The id of text that has no other; None where there is no such text."""
        return self.tokenizer.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return len(self.tokenizer)

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            # Bytes in a graph, and eagerly an array of them.
            text = text if isinstance(text, bytes) else text.item()
            return np.array(self._encode(text.decode()), np.int32)

        s = tf.convert_to_tensor(s, tf.string)
        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda row: self._decode(row), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        mine = self.tokenizer.digest
        return isinstance(other, Vocabulary) and mine == other.tokenizer.digest

    def __hash__(self) -> int:
        return hash(self.tokenizer.digest)


def tokenize(tokenizer: Tokenizer) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Return the preprocessor that makes ids of ``inputs`` and ``targets`` together.

    Together, since a prompt's answer may have other ids by itself, which seqio's own
    preprocessor of that name can't know. Their texts stay as ``inputs_pretokenized``
    and ``targets_pretokenized``.
    """

    def encode(*texts: np.ndarray) -> list[np.ndarray]:
        decoded = [[text.decode() for text in column] for column in texts]
        flat = []
        for column in tokenizer.encode_pairs(*decoded):
            flat.append(np.array([i for ids in column for i in ids], np.int32))
            flat.append(np.array([len(ids) for ids in column], np.int64))
        return flat

    def rows(batch):
        texts = batch["inputs"], batch["targets"]
        kinds = (tf.int32, tf.int64) * 2
        found = tf.numpy_function(encode, texts, kinds, stateful=False)
        found = [tf.ensure_shape(part, [None]) for part in found]
        ragged = tf.RaggedTensor.from_row_lengths
        return batch | {
            "inputs": ragged(*found[:2], validate=False),
            "targets": ragged(*found[2:], validate=False),
            "inputs_pretokenized": texts[0],
            "targets_pretokenized": texts[1],
        }

    # Many at a time: a row at a time costs more than its tokens.
    return lambda ds: ds.batch(_TOGETHER).map(rows).unbatch()
