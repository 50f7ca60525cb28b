"""The rows of evaluation tasks: read through seqio, kept on disk column by column."""

import contextlib
import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merging.runtime import compilations, revision, storage
from merging.runtime.errors import UserError, nearest
from merging.tasks.suites import Suite, file_digests

# What reading a file that is not ours, or no longer whole, may raise.
_DAMAGE = (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile)
# What rows depend on beside this room's code and what a suite's digest covers.
_READERS = ("seqio", "tensorflow", "tokenizers", "sentencepiece", "jinja2")
# A preprocessed example of a seqio Task: arrays and bytes by the name of the feature.
Row = dict[str, Any]


def of_task(task: Any, split: str, dataset: str, count: int | None = None) -> list[Row]:
    """Return the rows of a seqio Task's split, in order.

    Args:
      task: of seqio's registry.
      split: one of its splits.
      dataset: its name in errors.
      count: rows of this many examples at least are enough; all by default.

    Raises:
      UserError: no such split, or no rows, naming ``dataset``.
    """
    if split not in task.splits:
        raise nearest(f"split of {dataset}", split, task.splits)
    # A batch at a time: an element at a time costs TensorFlow half a millisecond.
    batches = task.get_dataset(split=split, shuffle=False).ragged_batch(4096)
    rows: list[Row] = []
    for batch in batches:
        rows += _unbatched(batch)
        # The last example seen may go on in the next batch.
        if count is not None and examples(rows) > count:
            break
    if not rows:
        raise UserError(f"dataset {dataset} ({split}) is empty")
    return rows


def of_suite(
    suite: Suite,
    split: str,
    names: Sequence[str],
    cache_dir: storage.Folder | str | None = None,
    count: int | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of a suite's evaluation Tasks by their names in seqio.

    Args:
      suite: whose.
      split: "train", "validation" or "test".
      names: of datasets; those under all prompt templates are read.
      cache_dir: a file there holds each Task's rows; TensorFlow is imported only if
        one is missing.
      count: rows of this many examples of each at least are enough; all by default.
    """
    wanted = [t for name in names for t in suite.evaluations(name).values()]
    if cache_dir is None:
        return {task: _read(suite, task, split, count) for task in wanted}
    key = storage.digest(suite.digest, split, count)
    tables = {}
    for task in wanted:
        name = f"{task}-evaluation-{split}-{key}.npz"
        path = storage.place(cache_dir) / name
        if (table := _kept(path)) is None:
            table = _read(suite, task, split, count)
            file = io.BytesIO()
            np.savez(file, allow_pickle=False, **_pack(table))
            storage.write_bytes(path, file.getvalue())
        tables[task] = table
    return tables


def kept_for_user() -> Path | None:
    """Return where rows are kept for all workdirs of a user; None where they can't be.

    What was read by other code is read again: nobody looks after such a folder.
    """
    code = file_digests(sorted(Path(__file__).parent.rglob("*.py")))
    every = compilations.user_cache() / "rows"
    folder = every / storage.digest(code, revision.versions(*_READERS))
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        compilations.prune(every.glob("*/*.npz"))
    return folder if os.access(folder, os.W_OK) else None


def _read(suite: Suite, task: str, split: str, count: int | None) -> list[Row]:
    from merging.tasks.registration import as_written, register, seqio

    register(suite)
    dataset = task.removeprefix(f"{suite.prefix}_").removesuffix("_score_eval")
    read = as_written(of_task)
    return read(seqio.TaskRegistry.get(task), split, dataset, count)


def examples(rows: list[Row]) -> int:
    """Return the number of examples, of which a ranked one has several rows."""
    return int(rows[-1]["idx"][0]) + 1 if "idx" in rows[-1] else len(rows)


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


def _kept(path: storage.Folder) -> list[Row] | None:
    """Return the rows of a file, or None where there is none that can be read.

    One that is cut short or not ours is reported, since it can be made again.
    """
    try:
        file = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with np.load(file, allow_pickle=False) as archive:
            return _unpack(archive)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        warnings.warn(f"{path} is not readable, making it again: {error}", stacklevel=2)
        return None


def _pack(rows: list[Row]) -> dict[str, np.ndarray]:
    """Store rows column by column: sequences end to end beside their lengths."""
    arrays = {}
    for name in rows[0]:
        column = [row[name] for row in rows]
        if isinstance(column[0], bytes):
            column, name = [np.frombuffer(t, np.uint8) for t in column], f"{name}/text"
        if np.ndim(column[0]):
            arrays[f"{name}/size"] = np.array([len(c) for c in column])
            column = np.concatenate(column)
        arrays[name] = np.asarray(column)
    return arrays


def _unpack(arrays: Mapping[str, np.ndarray]) -> list[Row]:
    columns = {}
    for name in (name for name in arrays if not name.endswith("/size")):
        column = arrays[name]
        if f"{name}/size" in arrays:
            column = np.split(column, np.cumsum(arrays[f"{name}/size"])[:-1])
        if name.endswith("/text"):
            column = [part.tobytes() for part in column]
        columns[name.removesuffix("/text")] = column
    values = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
