"""Text examples as seqio sources and rows. Imports TensorFlow.

A text example has ``inputs`` and ``targets``; one to rank also ``choices`` [n], the
place of the right one as ``label``, and its own number as ``index``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from merging.tasks.backend import load_seqio

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)


def text_source(
    read: Callable[[str], list[dict[str, Any]]], counts: Mapping[str, int]
) -> seqio.FunctionDataSource:
    """Return text examples that fit into memory as a seqio source.

    Args:
      read: ``split -> examples``.
      counts: the splits, and how many examples each has.
    """

    def source(split: str, shuffle_files: bool, seed: int | None = None):
        del shuffle_files, seed
        return _dataset(read(split))

    return seqio.FunctionDataSource(source, list(counts), dict(counts))


def pairs(ds: tf.data.Dataset) -> tf.data.Dataset:
    """Keep ``inputs`` and ``targets``: what is trained on, or generated."""
    return ds.map(lambda ex: {name: ex[name] for name in ("inputs", "targets")})


def rank_classification(ds: tf.data.Dataset) -> tf.data.Dataset:
    """Turn an example with n choices into n rows, as t5's preprocessor of that name.

    Reads ``inputs``, ``choices`` [n], ``label`` and ``index``; gives ``inputs``,
    ``targets``, ``idx`` (example, choice) and ``is_correct``.
    """

    def expand(example):
        choices = example["choices"]
        n = tf.shape(choices)[0]
        order = tf.range(n)
        rows = {
            "inputs": tf.repeat(example["inputs"], n),
            "targets": choices,
            "idx": tf.stack([tf.repeat(example["index"], n), order], axis=1),
            "is_correct": order == example["label"],
        }
        return tf.data.Dataset.from_tensor_slices(rows)

    return ds.flat_map(expand)


def _dataset(rows: list[dict]) -> tf.data.Dataset:
    columns = {k: [row[k] for row in rows] for k in ("inputs", "targets")}
    columns = {k: tf.constant(v, tf.string) for k, v in columns.items()}
    columns["index"] = tf.range(len(rows))
    if rows and "choices" in rows[0]:
        choices = [row["choices"] for row in rows]
        columns["choices"] = tf.ragged.constant(choices, tf.string, 1)
        columns["label"] = tf.constant([row["label"] for row in rows], tf.int32)
    return tf.data.Dataset.from_tensor_slices(columns)
