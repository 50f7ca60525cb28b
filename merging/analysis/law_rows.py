"""What a law is fitted to: rows of runs, or a CSV of one's own.

Of rows (`runtime.results`), one observation is a merged model: its value is the mean
over the datasets of a split. Models that lack a dataset, or its value, are left out. A
CSV has a header with the columns N, k, loss, and as one likes seed, subset, group.
"""

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from merging.analysis.laws import Observation
from merging.runtime import results
from merging.runtime.errors import UserError, listed
from merging.runtime.joining import join
from merging.runtime.results import Row

# {quantity: a row's value of it; None where it has none}.
QUANTITIES: dict[str, Callable[[Row], float | None]] = {
    "cross_entropy": lambda row: row.cross_entropy,
    "value": lambda row: row.value,
    "error": lambda row: 1 - row.value,
    "normalised": lambda row: row.normalised,
}
SPLITS = ("held_in", "held_out", "all")
_COLUMNS = ("n", "k", "loss")
LARGEST, MOST = 64 * 2**20, 10**6  # bytes and lines of a CSV
Groups = dict[str, list[Observation]]


def read(
    paths: Sequence[str], *, quantity: str, split: str, gain: bool, by_size: bool
) -> tuple[Groups, list[str]]:
    """Return observations by group, and notes on rows that were given twice.

    A group is a family, base and method (and size).

    Args:
      paths: workdirs and files of rows, joined; or one CSV, whose groups are its own.
      quantity: of `QUANTITIES`. split: of `SPLITS`, whose datasets are averaged.
      gain: whether the value is the gain over the base: its loss (or the value) minus
        the base's, turned so that more is better.
      by_size: whether each size is a group of its own.

    Raises:
      UserError: a file that can't be read; runs of different configurations that
        evaluated the same models differently; no observation.
    """
    if not paths:
        raise UserError("name the rows to fit (rows): workdirs, or a CSV.")
    tables = [path for path in paths if path.endswith(".csv")]
    if tables:
        if len(paths) > 1:
            raise UserError("rows: a CSV stands alone, beside no other rows.")
        return of_csv(Path(tables[0])), []
    joined, notes = join(results.read(paths))
    found = of_rows(joined, quantity, split, gain, by_size)
    if not found:
        raise UserError(
            f"none of the rows of {listed(paths)} is of a merge with {quantity} on all "
            f"datasets of the split {split}."
        )
    return found, notes


def of_rows(
    rows: Iterable[Row], quantity: str, split: str, gain: bool, by_size: bool
) -> Groups:
    """Return observations by group, of rows that are joined; arguments as `read`."""
    models: dict[tuple, dict[str, float | None]] = {}
    datasets: dict[tuple, set[str]] = {}
    for row in rows:
        if split not in ("all", row.split):
            continue
        whose = (row.suite, row.family, row.base)
        size = (row.params, row.size)
        merge = (row.method, row.K, row.seed, ",".join(sorted(row.subset)))
        values = models.setdefault((whose, size, merge), {})
        values[row.dataset] = QUANTITIES[quantity](row)
        datasets.setdefault(whose, set()).add(row.dataset)
    means = {
        key: statistics.fmean(values.values())
        for key, values in models.items()
        if set(values) == datasets[key[0]] and None not in values.values()
    }
    bases = {
        (whose, size): mean
        for (whose, size, merge), mean in means.items()
        if merge[0] == "base"
    }
    sign = -1 if quantity in ("cross_entropy", "error") else 1
    found: Groups = {}
    methods = {m[0] for _, _, m in means} - set(results.BASELINES)
    for (whose, (params, size), merge), mean in sorted(means.items()):
        method, K, seed, subset = merge
        # An expert that was evaluated on everything is every method's merge of one.
        chosen = methods if method == "expert" and K == 1 else {method} & methods
        for name in sorted(chosen):
            label = "/".join([*whose[1:], name, *([size] if by_size else [])])
            value = mean
            if gain:
                if (whose, (params, size)) not in bases:
                    continue
                value = sign * (mean - bases[whose, (params, size)])
            one = Observation(float(params), float(K), value, str(seed), subset)
            found.setdefault(label, []).append(one)
    return {
        label: of
        for label, of in found.items()
        if any(one.k > 1 for one in of)  # not experts alone
    }


def of_csv(path: Path) -> Groups:
    """Return the observations of a CSV by its column `group`.

    Raises:
      UserError: a column is missing, a cell is no finite positive number; by line.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST} bytes.")
        with open(path, newline="", encoding="utf-8") as file:
            return _parsed(path, csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}.") from None


def _parsed(path: Path, reader: csv.DictReader) -> Groups:
    names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    if missing := [column for column in _COLUMNS if column not in names]:
        raise UserError(
            f"{path} has no column {', '.join(missing)}: its first line must name N, k "
            "and loss (and, as you like, seed, subset, group)."
        )
    found: Groups = {}
    for number, line in enumerate(reader, 2):
        if number > MOST:
            raise UserError(f"{path} has more than {MOST} lines.")
        cells = {key: line.get(name) or "" for key, name in names.items()}
        try:
            N, k, value = (float(cells[column]) for column in _COLUMNS)
        except ValueError:
            N = math.nan
        if not (0 < N < math.inf and 0 < k < math.inf and math.isfinite(value)):
            raise UserError(
                f"{path}:{number}: N, k and loss must be numbers, N, k > 0."
            )
        group = cells.get("group", "")[:100] or path.stem
        one = Observation(N, k, value, cells.get("seed", ""), cells.get("subset", ""))
        found.setdefault(group, []).append(one)
    if not found:
        raise UserError(f"{path} has a header and no line.")
    return found
