"""Finished datasets: a JSON file each, named after all that its values depend on."""

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation.scores import DatasetScore, TemplateScore
from merging.runtime import storage
from merging.runtime.errors import UserError

FOLDER = "tasks"
VERSION = 2


class Record(NamedTuple):
    """A dataset's score, the seconds that it took, and the code that found it."""

    score: DatasetScore
    seconds: float
    git_revision: str


def packed(record: Record) -> dict[str, Any]:
    """Return a record as JSON values; counts as compressed text, a byte an example."""
    templates = {
        name: one._replace(
            counts={m: _text(t) for m, t in one.counts.items()}
        )._asdict()
        for name, one in record.score.templates.items()
    }
    score = record.score._replace(templates=templates)._asdict()
    return record._asdict() | {"score": score}


def unpacked(values: Mapping[str, Any]) -> Record:
    """Return the record that `packed` made JSON values of.

    Raises:
      ValueError, KeyError, TypeError, AttributeError, zlib.error: it is damaged.
    """
    score = DatasetScore(**values["score"])
    templates = {
        name: TemplateScore(**one)._replace(
            counts={m: _table(t) for m, t in one["counts"].items()}
        )
        for name, one in score.templates.items()
    }
    return Record(**values | {"score": score._replace(templates=templates)})


def save(workdir: Path, key: str, record: Record) -> None:
    """Keep a dataset's record; the file appears whole or not at all.

    Raises:
      UserError: it can't be written.
    """
    values = {"version": VERSION, "key": key, "record": packed(record)}
    _write(_path(workdir, record.score.dataset, key), values)


def load(workdir: Path, dataset: str, key: str) -> Record | None:
    """Return a dataset's record; None where there is none that can be read."""
    try:
        found = json.loads(_path(workdir, dataset, key).read_text())
        if found["version"] == VERSION and found["key"] == key:
            return unpacked(found["record"])
    except FileNotFoundError:
        pass
    # A damaged file is made again, as if it were not there.
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        pass
    return None


def finished(workdir: Path, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return {dataset: packed record} of those of `keys` that are there."""
    loaded = {name: load(workdir, name, key) for name, key in keys.items()}
    return {name: packed(found) for name, found in loaded.items() if found}


def write_index(workdir: Path, keys: Mapping[str, str], described: Mapping) -> None:
    """Say which records are the workdir's present ones.

    Args:
      workdir: the folder.
      keys: {dataset: key}.
      described: what else a reader should know: the model, the suite.
    """
    index = {"version": VERSION, "tasks": dict(keys), **described}
    _write(workdir / FOLDER / "index.json", index)


def present(workdir: Path) -> list[Record]:
    """Return the records that a workdir's index lists.

    Raises:
      UserError: it holds no finished evaluation.
    """
    try:
        index = json.loads((workdir / FOLDER / "index.json").read_text())
        if index["version"] != VERSION:
            raise ValueError("another version's")
        found = [load(workdir, name, key) for name, key in index["tasks"].items()]
        if None in found:
            raise ValueError("a record is missing or damaged")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{workdir} holds no finished evaluation ({error}): run `merging evaluate "
            f"--config … --workdir {workdir}` to its end."
        ) from None
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    # In this order: that of the suite's datasets, and of a dataset's metrics.
    storage.write_bytes(path, json.dumps(values, indent=1).encode())


def _text(table: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(table.astype("<f4").tobytes(), 9)).decode()
    return {"shape": list(table.shape), "data": data}


def _table(text: Mapping[str, Any]) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(text["data"]))
    return np.frombuffer(data, "<f4").reshape(text["shape"])


def _path(workdir: Path, dataset: str, key: str) -> Path:
    return workdir / FOLDER / f"{dataset}-{key}.json"
