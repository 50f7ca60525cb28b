"""Result rows: one evaluated model on one dataset, as one JSON line.

Everything the report knows it reads from here, so reading is strict: a file that
was cut, edited by hand or made by something else is refused with file, line and
reason, and never half-believed.
"""

import dataclasses
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple, get_type_hints

from merging.runtime.errors import UserError
from merging.runtime.storage import Folder, place, write_bytes

FILE = "results.jsonl"
BASES = ("pt", "it")
SPLITS = ("held_in", "held_out")
BASELINES = ("base", "expert", "multitask", "multitask_early")

MAX_LINE = 64 * 1024
MAX_ROWS = 2_000_000
MAX_PROBLEMS = 10

# Starts with a letter or digit and holds no markup: such a name is safe in a
# spreadsheet cell, a figure's label and a web page alike.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+/ -]{0,119}")


class Kind(NamedTuple):
    """What a field must be: in words, and as a test of a value read from a file."""

    wanted: str
    valid: Callable[[object], bool]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # The magnitude is bounded so that sums of squares stay finite.
    return abs(value) <= 1e12


def _is_subset(value: object) -> bool:
    named = isinstance(value, list | tuple) and all(map(_is_name, value))
    return named and len(set(value)) == len(value)


def _is_settings(value: object) -> bool:
    def setting(item: object) -> bool:
        items = item if isinstance(item, list | tuple) else [item]
        return all(
            item is None or isinstance(item, bool) or _is_number(item) or _is_name(item)
            for item in items
        )

    return isinstance(value, Mapping) and all(
        _is_name(key) and setting(item) for key, item in value.items()
    )


def _whole(low: int, high: int = 10**15) -> Kind:
    return Kind(
        f"a whole number from {low}",
        lambda v: type(v) is int and low <= v <= high,
    )


def _one_of(names: tuple[str, ...]) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda v: v in names)


_NUMBER = Kind("a finite number", _is_number)
_OPTIONAL = Kind("a finite number or null", lambda v: v is None or _is_number(v))
Name = Annotated[
    str, Kind("a plain name (letters, digits, _.:@+/- and spaces)", _is_name)
]
Number = Annotated[float, _NUMBER]
NumberOrNull = Annotated[float | None, _OPTIONAL]
Names = Annotated[tuple[str, ...], Kind("a list of distinct plain names", _is_subset)]
Settings = Annotated[
    Mapping[str, object], Kind("an object of plain settings", _is_settings)
]
CountOrNull = Annotated[
    int | None,
    Kind(
        "a whole number from 1, or null",
        lambda v: v is None or (type(v) is int and 1 <= v <= 10**15),
    ),
]
Flag = Annotated[bool, Kind("true or false", lambda v: isinstance(v, bool))]


@dataclasses.dataclass(frozen=True)
class Row:
    """One evaluated model on one dataset.

    Attributes:
      params: parameter count of the model.
      base: "pt" or "it".
      method: a merge method, or one of `BASELINES`.
      parameters: the method's settings: scalars or flat lists of them; the report
        reads "scale", "density", "scale_at_edge", and "tried_scales" with
        "tried_scores", the mean validation ratio at each λ.
      K: 0 base, 1 expert, otherwise the number of experts merged or trained on.
      subset: names of the categories whose experts went in.
      merged: a held-in dataset whose category is in `subset`.
      value: the raw metric; so are `value_of_expert` (the dataset's own expert,
        None for held-out) and `value_of_base`.
      normalised: see `normalise`; None where it does not exist.
      target_log_p: sum of the log-likelihoods, in nats, of the right answers of all
        examples under all prompt templates; None where they were not scored (texts are
        generated, and rows from before there was this field).
      target_tokens: the tokens of these answers.
    """

    suite: Name
    family: Name
    size: Name
    params: Annotated[int, _whole(1)]
    base: Annotated[str, _one_of(BASES)]
    method: Name
    parameters: Settings
    K: Annotated[int, _whole(0, 10_000)]
    subset: Names
    seed: Annotated[int, _whole(0)]
    dataset: Name
    category: Name
    split: Annotated[str, _one_of(SPLITS)]
    metric: Name
    chance: Number
    merged: Flag
    value: Number
    value_of_expert: NumberOrNull
    value_of_base: NumberOrNull
    normalised: NumberOrNull
    examples: Annotated[int, _whole(1)]
    wall_seconds: Number
    git_revision: Name
    config_hash: Name
    target_log_p: NumberOrNull = None
    target_tokens: CountOrNull = None

    @property
    def cross_entropy(self) -> float | None:
        """Nats per token of the right answers; None where they were not scored."""
        if self.target_log_p is None or self.target_tokens is None:
            return None
        return -self.target_log_p / self.target_tokens


# Field -> what it must be, in the fields' order.
_SCHEMA: dict[str, Kind] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Row, include_extras=True).items()
}

# Rows from before there were these have none.
_OPTIONAL_KEYS = ("target_log_p", "target_tokens")


def normalise(value: float, denominator: float | None) -> float | None:
    """Return value / denominator, or None where the denominator is 0 or None."""
    return value / denominator if denominator else None


def order(row: Row) -> tuple:
    """The one sort key of rows: by what was evaluated, never by when or where."""
    model = (row.suite, row.family, row.params, row.size, BASES.index(row.base))
    return (*model, row.K, row.method, row.seed, tuple(sorted(row.subset))) + (
        row.split,
        row.category,
        row.dataset,
    )


def write(path: str | os.PathLike, rows: Iterable[Row]) -> Folder:
    """Write rows, sorted, to a JSON-lines file (gzip when it ends in .gz).

    The file appears whole or not at all. The same rows give the same bytes.

    Raises:
      ValueError: a row that `read` would refuse.
      UserError: the file cannot be written (disk full, no permission).
    """
    path, data = place(path), lines(rows)
    # A gzip header holds a clock reading unless told otherwise.
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def lines(rows: Iterable[Row]) -> bytes:
    """Return rows, sorted, as JSON lines.

    Raises:
      ValueError: a row that `read` would refuse.
    """
    rows = sorted(rows, key=order)
    for row in rows:
        if found := _problems(dataclasses.asdict(row)):
            raise ValueError(f"not a valid result row: {'; '.join(found)}: {row}")
    each = (
        json.dumps(dataclasses.asdict(row), ensure_ascii=True, allow_nan=False)
        for row in rows
    )
    return "".join(f"{line}\n" for line in each).encode("ascii")


def read(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Row]:
    """Read and sort the rows of one or several files.

    Args:
      paths: JSON-lines files, plain or gzip, or directories that hold `FILE` (or
        `FILE`.gz). Rows that occur in several files are all returned.

    Raises:
      UserError: a missing file, or bad lines: each named by file:line and reason.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    rows, bad = [], []
    for path in map(_locate, paths):
        for number, line in _lines(path):
            try:
                rows.append(_parse(line))
            except ValueError as error:
                bad.append(f"{path}:{number}: {error}")
            if len(bad) >= MAX_PROBLEMS:
                break
            if len(rows) > MAX_ROWS:
                raise UserError(f"{path}:{number}: more than {MAX_ROWS} rows in all")
    if bad:
        more = ", stopped there" if len(bad) >= MAX_PROBLEMS else ""
        raise UserError(
            f"{len(bad)} unreadable result row{'s' * (len(bad) > 1)}{more}; write the "
            "file anew by running its sweep again:\n" + "\n".join(bad)
        )
    return sorted(rows, key=order)


def _locate(path: str | os.PathLike) -> Folder:
    path = place(path)
    if path.is_dir():
        candidates = [path / FILE, path / f"{FILE}.gz"]
    else:
        candidates = [path]
    for candidate in candidates:
        # A pipe or a device would never end.
        if candidate.is_file():
            return candidate
    wanted = f"{FILE} in it" if path.is_dir() else "such file"
    raise UserError(f"cannot read result rows of {path}: no {wanted}")


def _lines(path: Folder) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with _opened(path) as opened:
            zipped = opened.read(2) == b"\x1f\x8b"
            opened.seek(0)
            file = gzip.open(opened) if zipped else opened
            while line := file.readline(MAX_LINE + 1):
                number += 1
                yield number, line
                if len(line) > MAX_LINE:
                    return
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"cannot read {path} after line {number}: {error}; the file is cut or "
            "damaged, write it anew by running its sweep again"
        ) from error


def _opened(path: Folder) -> BinaryIO:
    if isinstance(path, Path):
        return path.open("rb")
    return io.BytesIO(path.read_bytes())


def _parse(line: bytes) -> Row:
    """Return the row, or raise ValueError saying what is wrong with the line."""
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    try:
        record = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if found := _problems(record):
        raise ValueError("; ".join(found))
    for key, kind in _SCHEMA.items():
        if kind in (_NUMBER, _OPTIONAL) and record.get(key) is not None:
            record[key] = float(record[key])
    return Row(**record | {"subset": tuple(record["subset"])})


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key occurs twice")
    return record


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _problems(record: Mapping[str, object]) -> list[str]:
    """Everything wrong with a row, in words; empty for a valid one."""
    missing = [
        key for key in _SCHEMA if key not in record and key not in _OPTIONAL_KEYS
    ]
    extra = sorted(repr(key)[:40] for key in record if key not in _SCHEMA)
    found = [f"missing {', '.join(missing)}"] if missing else []
    found += [f"unknown key {', '.join(extra[:5])}"] if extra else []
    found += [
        f"{key} must be {wanted}, not {_shown(record[key])}"
        for key, (wanted, valid) in _SCHEMA.items()
        if key in record and not valid(record[key])
    ]
    return found or _contradictions(record)


def _contradictions(record: Mapping[str, object]) -> list[str]:
    """Fields that are valid one by one and cannot be true together."""
    found = []
    held_in = record["split"] == "held_in"
    if record["method"] not in BASELINES:
        if record["K"] != len(record["subset"]):
            found.append(f"K is {record['K']} but subset has {len(record['subset'])}")
        if record["merged"] != (held_in and record["category"] in record["subset"]):
            found.append("merged contradicts split, category and subset")
    denominator = record["value_of_expert"] if held_in else record["value_of_base"]
    expected, given = normalise(record["value"], denominator), record["normalised"]
    # A null is always allowed: the ratio can be left out, but not be another one.
    if given is not None and (
        expected is None or not math.isclose(given, expected, rel_tol=1e-4)
    ):
        found.append(f"normalised is {given}, value / denominator is {expected}")
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
