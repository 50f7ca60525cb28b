"""`analysis.json`: what an analysis found, as plain rows, a number each.

A file is {"version", "analysis", "settings", "inputs", "rows", …}; a row is

  quantity  what it is, such as "cosine" (each analysis lists its own)
  group     of a sweep's analysis the experts that it is about, "8x/it/seed0"; else ""
  by        of which part: "model", "layer", "kind" (of matrix), "unit" (one of a
            layer), or "" where it is no part of a model
  layer     the layer's number, or null
  kind      the leaf's path without the layer's number, or ""
  of        names of what it is about: experts, merged models, datasets, in order
  at        where along something: a K, a density, a share of a path; or null
  value     the number; null where it does not exist
  low, high its interval, or null
  unit      "" for a pure number, else what it counts

in this order of keys. The rows of a run come in the same order whenever it is made.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime import storage
from merging.runtime.errors import UserError

FILE = "analysis.json"
VERSION = 1
_LARGEST = 256 * 2**20
_MALFORMED = (ValueError, KeyError, TypeError, RecursionError)


class Row(NamedTuple):
    """A number that was found; see the module."""

    quantity: str
    value: float | None
    by: str = ""
    layer: int | None = None
    kind: str = ""
    of: tuple[str, ...] = ()
    at: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    group: str = ""


_ORDER = ("quantity", "group", "by", "layer", "kind", "of", "at")
_ORDER += ("value", "low", "high", "unit")


def write(
    workdir: Path,
    analysis: str,
    rows: Iterable[Row],
    *,
    settings: Mapping[str, Any],
    inputs: Sequence[Any] = (),
    **more: Any,
) -> Path:
    """Write a workdir's `FILE`; it appears whole or not at all.

    Args:
      workdir: the folder.
      analysis: what was done: "geometry", "saturation", "connectivity", "law", "sweep".
      rows: what was found.
      settings: the config's, as plain JSON.
      inputs: what it was found of (`merge.manifest.describe_inputs`).
      more: further plain JSON.

    Raises:
      ValueError: a number that JSON has no word for.
    """
    record = {
        "version": VERSION,
        "analysis": analysis,
        "settings": settings,
        "inputs": inputs,
        **more,
        "rows": [{key: getattr(row, key) for key in _ORDER} for row in rows],
    }
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    # A row a line: short enough to read, and to compare with another run's.
    text = text.replace('{"quantity"', '\n{"quantity"')
    return storage.write_bytes(workdir / FILE, (text + "\n").encode())


def read(workdir: Path, analysis: str | None = None) -> dict[str, Any]:
    """Return a workdir's record, each of its rows a `Row`.

    Args:
      workdir: the folder, or its file, which may be compressed (.json.gz).
      analysis: what it must be of; anything by default.

    Raises:
      UserError: there is none, or it is of another analysis.
    """
    path = workdir / FILE if workdir.is_dir() else workdir
    try:
        record = json.loads(_text(path))
        rows = [Row(**row | {"of": tuple(row["of"])}) for row in record["rows"]]
        kind = record["analysis"]
    except (OSError, EOFError, zlib.error, *_MALFORMED) as error:
        raise UserError(f"{path} is no finished analysis ({error}).") from None
    if analysis is not None and kind != analysis:
        raise UserError(f"{path} holds the analysis {kind!r}, not {analysis!r}.")
    return record | {"rows": rows}


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return path.read_text()
    with gzip.open(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes, uncompressed")
    return content.decode()


def number(value: float) -> float | None:
    """Return a number as JSON has it; None for NaN and infinity."""
    value = float(value)
    return value if math.isfinite(value) else None
