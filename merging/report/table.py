"""What a table is, and how it reads as CSV and as plain text."""

import csv
import io
from typing import NamedTuple

from merging.report.summaries import MULTITASK, Grid

SPREAD = ("mean", "sd", "min", "max", "models", "excluded")
CELL = ("size", "params", "base", "method", "K")


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


def every_cell(grid: Grid):
    """Each cell with models, baselines after the merges, in the figures' order."""
    for size in grid.sizes:
        for base in grid.bases:
            for method in grid.methods:
                for K in grid.counts:
                    if found := grid.models(size, base, method, K):
                        yield size, base, method, K, found
            for method in MULTITASK:
                if found := grid.models(size, base, method):
                    yield size, base, method, found[0].cell.K, found
