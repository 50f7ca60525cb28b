"""Records of a dataset as a seqio source, and as text examples. Imports TensorFlow."""

import functools
from typing import Any

import numpy as np

from merging.tasks.backend import load_seqio
from merging.tasks.suites import SPLITS
from merging.tasks.t0 import sources
from merging.tasks.t0.entries import Entry, Prompt
from merging.tasks.t0.rendering import render
from merging.tasks.t0.sources import Located

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)

_SPECS = {
    "text": tf.TensorSpec([], tf.string),
    "integer": tf.TensorSpec([], tf.int64),
    "texts": tf.TensorSpec([None], tf.string),
    "pairs": tf.TensorSpec([None], tf.string),
}


def record_source(entry: Entry, located: Located) -> seqio.DataSource:
    """Return a dataset's records as a seqio source that never downloads.

    A TFDS folder is read by seqio itself, which keeps its files apart for sharding.

    Raises:
      UserError: when a file is read: errors in lines, with their numbers.
    """
    if located.kind == "files":
        read = _files(entry, located)
    elif len(located.folders) == 1:
        return _tfds(entry, located.folders[0])
    else:
        read = _joined(entry, located)
    sizes = {split: sources.size(entry, located, split) for split in SPLITS}
    return seqio.FunctionDataSource(read, list(SPLITS), sizes)


def rendered(ds: tf.data.Dataset, *, entry: Entry, prompt: Prompt) -> tf.data.Dataset:
    """Turn records into text examples under a prompt template (see ``tasks.texts``)."""

    def text(*columns: Any) -> tuple[bytes, bytes, np.ndarray, np.int32]:
        values = map(sources.plain, columns)
        made = render(entry, prompt, dict(zip(entry.places, values, strict=True)))
        choices = np.array([choice.encode() for choice in made.choices], object)
        return (
            made.inputs.encode(),
            made.targets.encode(),
            choices,
            np.int32(made.label),
        )

    kinds = (tf.string, tf.string, tf.string, tf.int32)

    def row(number: tf.Tensor, record: dict[str, Any]) -> dict[str, tf.Tensor]:
        columns = [_at(record, place) for place in entry.places]
        inputs, targets, choices, label = tf.numpy_function(
            text, columns, kinds, stateful=False
        )
        made = {
            "inputs": tf.ensure_shape(inputs, []),
            "targets": tf.ensure_shape(targets, []),
            "index": tf.cast(number, tf.int32),
        }
        if entry.ranked:
            made["choices"] = tf.ensure_shape(choices, [None])
            made["label"] = tf.ensure_shape(label, [])
        return made

    return ds.enumerate().map(row, num_parallel_calls=tf.data.AUTOTUNE)


def _tfds(entry: Entry, folder: Any) -> seqio.DataSource:
    return seqio.TfdsDataSource(
        tfds_data_dir=str(folder), splits=dict(entry.parts), read_only=True
    )


def _joined(entry: Entry, located: Located):
    parts = [_tfds(entry, folder) for folder in located.folders]

    def read(split: str, shuffle_files: bool, seed: int | None = None):
        first, *rest = [p.get_dataset(split, shuffle_files, seed) for p in parts]
        for more in rest:
            first = first.concatenate(more)
        return first

    return read


def _files(entry: Entry, located: Located):
    fields = entry.fields.values()
    spec = {place: _SPECS[f.type] for f in fields for place in f.at}

    def read(split: str, shuffle_files: bool, seed: int | None = None):
        del shuffle_files, seed
        # Faults are to be raised here, and not by TensorFlow as errors of its own.
        sources.require_sound(entry, located, split)

        records = functools.partial(sources.records, entry, located, split)
        return tf.data.Dataset.from_generator(records, output_signature=spec)

    return read


def _at(record: dict[str, Any], place: str) -> tf.Tensor:
    # Records of files come with whole places as their keys, those of TFDS nested.
    if place in record:
        return record[place]
    for key in place.split("."):
        record = record[key]
    return record
