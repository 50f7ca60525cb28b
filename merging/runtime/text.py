"""Numbers and tables for people: sizes, counts, durations, aligned columns."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


def size(count: float) -> str:
    """Return bytes with three digits and a decimal unit: `512 B`, `1.25 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def parameters(count: float) -> str:
    """Return a number of parameters as models are named: `37.8K`, `135M`, `8.03B`."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count / 1e3:.3g}K"


def shortest(value: float) -> float:
    """Return a float32 as the shortest number that is read as the same."""
    return float(str(np.float32(value)))


def duration(seconds: float) -> str:
    """Return `8s`, `4m10s` or `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


def table(rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> str:
    """Return rows as aligned columns, two spaces apart.

    Args:
      rows: the first is the head, if there is one; a cell is shown by `str`.
      right: columns that are aligned to the right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    to_right = set(right)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in to_right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


class Table(NamedTuple):
    """A named table; a cell is a str, int, float, bool or None (not there)."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def csv(self) -> bytes:
        """The table as CSV: six significant digits, empty where nothing is known."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[shown(v, "") for v in row] for row in self.rows])
        return text.getvalue().encode("utf-8")

    def text(self) -> str:
        """The table in aligned plain text."""
        rows = [self.columns, *([shown(v, "-", 3) for v in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        lines = (
            "  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def shown(value: object, missing: str, decimals: int | None = None) -> str:
    """One cell as text; floats to six significant digits, or to fixed decimals."""
    if value is None:
        return missing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.6g}" if decimals is None else f"{value:.{decimals}f}"
        # No minus sign in front of nothing.
        return text.lstrip("-") if float(text) == 0 else text
    return str(value)
