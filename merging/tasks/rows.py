"""The rows of evaluation tasks: read through seqio, kept on disk column by column."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merging.errors import UserError, nearest
from merging.tasks import cache
from merging.tasks.suites import Suite

# A preprocessed example of a seqio Task: arrays and bytes by the name of the feature.
Row = dict[str, Any]


def of_task(task: Any, split: str, dataset: str) -> list[Row]:
    """Return every row of a seqio Task's split, in order.

    Raises:
      UserError: no such split, or no rows, naming ``dataset``.
    """
    if split not in task.splits:
        raise nearest(f"split of {dataset}", split, task.splits)
    # A batch at a time: an element at a time costs TensorFlow half a millisecond.
    batches = task.get_dataset(split=split, shuffle=False).ragged_batch(4096)
    rows = [row for batch in batches for row in _unbatched(batch)]
    if not rows:
        raise UserError(f"dataset {dataset} ({split}) is empty")
    return rows


def of_suite(
    suite: Suite,
    split: str,
    names: Sequence[str],
    cache_dir: Path | str | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of a suite's datasets by name.

    With a ``cache_dir``, one file there holds all datasets of the split, so that any
    choice among them comes from it, and without importing TensorFlow.
    """
    if cache_dir is None:
        return _read(suite, split, names)
    path = f"{suite.prefix}-evaluation-{split}-{cache.key(suite.digest)}.npz"
    path = Path(cache_dir) / path
    stored = cache.read(path)
    if stored is not None:
        return _unpack(stored, names)
    tables = _read(suite, split, [d.name for d in suite.datasets])
    cache.write(path, _pack(tables))
    return tables


def _read(suite: Suite, split: str, names: Sequence[str]) -> dict[str, list[Row]]:
    from merging.tasks.registration import as_written, register, seqio

    register(suite)
    tasks = {name: seqio.TaskRegistry.get(suite.evaluation(name)) for name in names}
    return {n: as_written(of_task)(task, split, n) for n, task in tasks.items()}


def _unbatched(batch) -> Iterator[Row]:
    columns = {}
    for name, values in batch.items():
        if hasattr(values, "row_lengths"):
            cuts = np.cumsum(values.row_lengths().numpy())[:-1]
            columns[name] = np.split(values.flat_values.numpy(), cuts)
        else:
            columns[name] = values.numpy()
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _pack(tables: dict[str, list[Row]]) -> dict[str, np.ndarray]:
    """Store rows column by column: sequences end to end beside their lengths."""
    arrays, kinds = {}, {}
    for dataset, rows in tables.items():
        kinds[dataset] = {}
        for name in rows[0]:
            column = [np.asarray(row[name]) for row in rows]
            if column[0].dtype.kind in "SO":
                kinds[dataset][name] = "text"
                texts = [bytes(value.item()) for value in column]
                arrays[f"{dataset}/{name}"] = np.frombuffer(b"".join(texts), np.uint8)
                arrays[f"{dataset}/{name}/size"] = np.array([len(t) for t in texts])
            elif column[0].ndim:
                kinds[dataset][name] = "sequence"
                arrays[f"{dataset}/{name}"] = np.concatenate(column)
                arrays[f"{dataset}/{name}/size"] = np.array([len(c) for c in column])
            else:
                kinds[dataset][name] = "number"
                arrays[f"{dataset}/{name}"] = np.array(column)
    return arrays | {"kinds": np.array(json.dumps(kinds))}


def _unpack(arrays: dict[str, np.ndarray], names) -> dict[str, list[Row]]:
    tables = {}
    every = json.loads(str(arrays["kinds"]))
    for dataset in names:
        kinds = every[dataset]
        columns = {}
        for name, kind in kinds.items():
            column = arrays[f"{dataset}/{name}"]
            if kind != "number":
                cuts = np.cumsum(arrays[f"{dataset}/{name}/size"])[:-1]
                column = np.split(column, cuts)
            if kind == "text":
                column = [part.tobytes() for part in column]
            columns[name] = column
        values = zip(*columns.values(), strict=True)
        tables[dataset] = [dict(zip(columns, row, strict=True)) for row in values]
    return tables
