"""Folders of suite t0's datasets with invented records, in the real schema.

A dataset with a TFDS builder is written with that builder's own features, as the
installed tensorflow_datasets declares them: no folder here drifts from the real ones.
"""

import contextlib
import copy
import io
import json

import numpy as np

from merging.tasks.t0 import tables

TRAIN, OTHER = 20, 4  # examples of a part


def records(name, count):
    """Return the table's example, and marked copies of it."""
    entry = tables.entry(name)
    place = next(f.at[0] for f in entry.fields.values() if f.type == "text")
    if name == "adversarial_qa":
        place = "question"
    made = [copy.deepcopy(dict(entry.example)) for _ in range(count)]
    for number, record in enumerate(made[1:], 1):
        *path, last = place.split(".")
        for key in path:
            record = record[key]
        record[last] += f" (copy {number})"
    return made


def parts(name):
    """Return part of the source → its records; no two parts share one."""
    counts = {p: TRAIN if "train" in p else OTHER for p in _parts(name)}
    every = records(name, sum(counts.values()))
    return {part: [every.pop(0) for _ in range(n)] for part, n in counts.items()}


def write_files(folder, name, rows=None):
    """Write a dataset as JSON lines; return its folder."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for part, some in (rows or parts(name)).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in some]
        (place / f"{part}.jsonl").write_text("".join(lines), "utf-8")
    return place


def write_tfds(folder, name):
    """Write a dataset as its TFDS builders would, in their features."""
    from tensorflow_datasets.core.dataset_builders import adhoc_builder

    for builder in builders(name, folder):
        features = builder.info.features
        config = builder.builder_config
        rows = {
            part: [(i, _whole(features, row)) for i, row in enumerate(some)]
            for part, some in parts(name).items()
        }
        with contextlib.redirect_stdout(io.StringIO()):
            adhoc_builder.store_as_tfds_dataset(
                name=builder.name,
                version=str(builder.version),
                features=features,
                config=config.name if config else None,
                split_datasets=rows,
                data_dir=folder,
                disable_shuffling=True,
            )


def builders(name, folder):
    """Return TFDS's real builders of a dataset."""
    from merging.tasks.backend import load_seqio

    load_seqio()
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    names = tables.entry(name).source.tfds
    return [tfds.builder(n, data_dir=folder, try_gcs=False) for n in names]


def write_all(folder):
    """Write every dataset: in its builder's features, or else as files."""
    for name in tables.names():
        write = write_tfds if tables.entry(name).source.tfds else write_files
        write(folder, name)


def _parts(name):
    return dict.fromkeys(p.split("[")[0] for p in tables.entry(name).parts.values())


def _whole(features, record):
    """Return a record with a blank for every feature that it leaves out."""
    return {
        name: _value(feature, record.get(name)) for name, feature in features.items()
    }


def _value(feature, value):
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return _whole(feature, value or {})
    if isinstance(feature, tfds.features.Sequence):
        if not isinstance(feature.feature, tfds.features.FeaturesDict):
            return value or []
        size = len(next(iter(value.values())))
        inner = feature.feature.items()
        return {name: value.get(name) or [_value(f, None)] * size for name, f in inner}
    if value is None:
        return 0 if np.issubdtype(feature.numpy_dtype, np.integer) else ""
    return value
