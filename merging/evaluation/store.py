"""Finished datasets: a JSON file each, named after all that its values depend on."""

import base64
import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from merging.evaluation.scores import DatasetScore, Record, TemplateScore
from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder

FOLDER, INDEX = "tasks", "index.json"
# Of the files' layout, and of the code that finds values: raise it when one changes.
VERSION = 5


def key(*parts: Any) -> str:
    """Return the hash of JSON values that a dataset's score depends on."""
    return storage.digest(VERSION, *parts)


def save(workdir: Folder, key: str, record: Record) -> None:
    """Keep a dataset's record; the file appears whole or not at all.

    Raises:
      UserError: it can't be written.
    """
    text = json.dumps(dataclasses.asdict(record), indent=1, default=_packed)
    storage.write_bytes(_path(workdir, record.score.dataset, key), text.encode())


def finished(workdir: Folder, keys: Mapping[str, str]) -> dict[str, str]:
    """Return {dataset: text to `parse`} of those that are there, in that order.

    A damaged file counts as none, so that it is made again.
    """
    found = {}
    for dataset, name in keys.items():
        try:
            text = _path(workdir, dataset, name).read_text()
            parse(text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error):
            continue
        found[dataset] = text
    return found


def parse(text: str) -> Record:
    """Return the record of a file's text.

    Raises:
      ValueError, KeyError, TypeError, AttributeError, zlib.error: it is damaged.
    """
    values = json.loads(text, object_hook=_unpacked)
    score = values["score"]
    each = score["templates"].items()
    templates = {name: TemplateScore(**template) for name, template in each}
    score = DatasetScore(**score | {"templates": templates})
    return Record(**values | {"score": score})


def write_index(workdir: Folder, keys: Mapping[str, str], described: Mapping) -> None:
    """Say which records are the workdir's present ones.

    Args:
      workdir: the folder.
      keys: {dataset: key}.
      described: what else a reader should know: the model, the suite.
    """
    text = json.dumps({"tasks": dict(keys), **described}, indent=1)
    storage.write_bytes(workdir / FOLDER / INDEX, text.encode())


def note(workdir: Folder, **more: Any) -> None:
    """Say more in the index of a finished evaluation: its config, its command."""
    found = json.loads((workdir / FOLDER / INDEX).read_text())
    write_index(workdir, found.pop("tasks"), found | more)


def described(workdir: Folder) -> dict[str, Any]:
    """Return what the workdir's index says of its evaluation.

    Returns:
      `model` and `suite`; `versions` of what it ran with, empty if unknown; `config`
      and `command`, None if unknown (of a call from Python).

    Raises:
      UserError: it holds no finished evaluation.
    """
    present(workdir)
    found = json.loads((workdir / FOLDER / INDEX).read_text())
    said = {key: str(found.get(key, "unknown")) for key in ("model", "suite")}
    made_by = found.get("versions")
    said["versions"] = made_by if isinstance(made_by, dict) else {}
    return said | {key: found.get(key) for key in ("config", "command")}


def present(workdir: Folder) -> list[Record]:
    """Return the records that a workdir's index lists.

    Raises:
      UserError: it holds no finished evaluation.
    """
    try:
        keys = json.loads((workdir / FOLDER / INDEX).read_text())["tasks"]
        found = finished(workdir, keys)
        if list(found) != list(keys):
            raise ValueError("a record is missing or damaged")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{workdir} holds no finished evaluation ({error}): run `merging evaluate "
            f"--config … --workdir {workdir}` to its end."
        ) from None
    return [parse(text) for text in found.values()]


def scores(workdir: Folder) -> dict[str, DatasetScore]:
    """Return {dataset: score} of a finished evaluation; none where only rows are.

    Raises:
      UserError: a record is missing or damaged.
    """
    if not (workdir / FOLDER / INDEX).exists():
        return {}
    return {of.score.dataset: of.score for of in present(workdir)}


def _packed(counts: np.ndarray) -> dict[str, Any]:
    """Return numbers as compressed text: of counts a byte or less for an example."""
    data = zlib.compress(counts.astype("<f4").tobytes(), 9)
    return {"shape": counts.shape, "float32": base64.b64encode(data).decode()}


def _unpacked(values: dict[str, Any]) -> Any:
    if set(values) != {"shape", "float32"}:
        return values
    data = zlib.decompress(base64.b64decode(values["float32"]))
    return np.frombuffer(data, "<f4").reshape(values["shape"])


def _path(workdir: Folder, dataset: str, key: str) -> Folder:
    return workdir / FOLDER / f"{dataset}-{key}.json"
