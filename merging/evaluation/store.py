"""Finished datasets: a JSON file each, named after all that its values depend on."""

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merging.runtime.errors import UserError
from merging.runtime.storage import write_bytes

FOLDER = "tasks"
VERSION = 1


def packed(table: np.ndarray) -> dict[str, Any]:
    """Return counts [N, k] as compressed text: a byte or less for an example."""
    table = np.asarray(table, "<f4")
    data = base64.b64encode(zlib.compress(table.tobytes(), 9)).decode()
    return {"shape": list(table.shape), "data": data}


def unpacked(record: Mapping[str, Any]) -> np.ndarray:
    """Return counts [N, k] from what `packed` made."""
    data = zlib.decompress(base64.b64decode(record["data"]))
    return np.frombuffer(data, "<f4").reshape(record["shape"]).astype(np.float64)


def save(workdir: Path, key: str, record: Mapping[str, Any]) -> None:
    """Keep a dataset's record; the file appears whole or not at all.

    Raises:
      UserError: it can't be written.
    """
    text = json.dumps({"version": VERSION, "key": key} | dict(record), indent=1)
    write_bytes(_path(workdir, record["dataset"], key), text.encode())


def load(workdir: Path, dataset: str, key: str) -> dict[str, Any] | None:
    """Return a dataset's record; None where there is none that can be read."""
    try:
        record = json.loads(_path(workdir, dataset, key).read_text())
        if record["version"] == VERSION and record["key"] == key:
            for prompt in record["prompts"].values():
                for table in prompt["counts"].values():
                    unpacked(table)
            return record
    except FileNotFoundError:
        pass
    # A damaged file is made again, as if it were not there.
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        pass
    return None


def listed(workdir: Path, keys: Mapping[str, str], described: Mapping) -> None:
    """Say which records are the workdir's present ones.

    Args:
      workdir: the folder.
      keys: {dataset: key}.
      described: what else a reader should know: the model, the suite.
    """
    text = json.dumps({"version": VERSION, "tasks": dict(keys), **described}, indent=1)
    write_bytes(workdir / FOLDER / "index.json", text.encode())


def present(workdir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a workdir's index, and the records it lists.

    Raises:
      UserError: it holds no finished evaluation.
    """
    try:
        index = json.loads((workdir / FOLDER / "index.json").read_text())
        records = [load(workdir, name, key) for name, key in index["tasks"].items()]
        if index["version"] != VERSION or None in records:
            raise ValueError("a record is missing or damaged")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{workdir} holds no finished evaluation ({error}): run `merging evaluate "
            f"--config … --workdir {workdir}` to its end."
        ) from None
    return index, records


def _path(workdir: Path, dataset: str, key: str) -> Path:
    return workdir / FOLDER / f"{dataset}-{key}.json"
