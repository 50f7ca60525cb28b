"""A leaf whose rows are rows of other leaves: an embedding for another vocabulary.

Rows come block by block, wherever they lie; nothing larger than a block is held, but
one row: the mean of all, which padding repeats.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from merging.checkpoints.source import Source
from merging.runtime import numerics, tree

# Elements that are read at a time for the mean.
_PART = 2**18
# What a run of rows comes from, if not from one leaf.
_NOTHING, _SEVERAL, _PADDING = -1, -2, -3


class _Part(NamedTuple):
    """Elements of a block that come from one run of rows.

    Attributes:
      out: to be filled.
      at: the place of its first element in the leaf.
      first: the run's first row.
      which: the leaf it comes from, or one of the kinds above.
      start: the first element there.
    """

    out: np.ndarray
    at: int
    first: int
    which: int
    start: int


class Rows:
    """A leaf [rows + padding, …] made of the rows of n others.

    Attributes:
      abstract: its shape and dtype, the widest of the leaves'.
      sources: of the leaves.

    Args:
      leaves: (checkpoint, path) of leaves that differ in the number of rows only.
      places: int64 [rows, n], which row of each leaf a row takes.
      chosen: bool [rows, n], which leaves a row takes from: of several the mean, of
        none zeros.
      padding: so many rows more, each the mean of all others.
    """

    def __init__(
        self,
        leaves: Sequence[tuple[Source, str]],
        places: np.ndarray,
        chosen: np.ndarray,
        padding: int = 0,
    ):
        self._leaves, self._places, self._chosen = leaves, places, chosen
        self.sources = [source for source, _ in leaves]
        stored = [tree.flatten(source.abstract)[path] for source, path in leaves]
        self._dtypes = [np.dtype(leaf.dtype) for leaf in stored]
        self._rows, self._width = len(places), int(np.prod(stored[0].shape[1:]))
        self.abstract = jax.ShapeDtypeStruct(
            (self._rows + padding, *stored[0].shape[1:]),
            _widest(self._dtypes),
        )
        self._working = numerics.working_dtype(self.abstract.dtype)
        count = chosen.sum(1)
        which = np.where(count == 1, chosen.argmax(1), _SEVERAL)
        which[count == 0] = _NOTHING
        row = np.take_along_axis(places, np.maximum(which, 0)[:, None], 1)[:, 0]
        if padding:
            which, row = np.append(which, _PADDING), np.append(row, 0)
        # A run is rows that follow each other where they come from.
        ends = (which[1:] != which[:-1]) | (row[1:] != row[:-1] + 1) | (which[1:] < 0)
        self._starts = np.append(0, np.flatnonzero(ends) + 1)
        self._which, self._row = which[self._starts], row[self._starts]
        self._mean: np.ndarray | None = None
        self._lock = threading.Lock()

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len), row-major."""
        for part in self._parts(start, out):
            self._fill(part)

    def _parts(self, start: int, out: np.ndarray) -> Iterator[_Part]:
        """Yield a block's parts, each from one run."""
        width, stop = self._width, start + out.size
        run = int(np.searchsorted(self._starts, start // width, "right")) - 1
        at = start
        while at < stop:
            first = int(self._starts[run])
            last = run + 1 == len(self._starts)
            end = stop if last else min(int(self._starts[run + 1]) * width, stop)
            row = int(self._row[run]) * width + at - first * width
            part = out[at - start : end - start]
            yield _Part(part, at, first, int(self._which[run]), row)
            at, run = end, run + 1

    def _fill(self, part: _Part) -> None:
        if part.which >= 0:
            self._read(part.which, part.start, part.out)
        elif part.which == _NOTHING:
            part.out[:] = 0
        elif part.which == _PADDING:
            columns = (part.at + np.arange(part.out.size)) % self._width
            part.out[:] = self._mean_row()[columns]
        else:
            column = part.at - part.first * self._width
            total = np.zeros(part.out.size, self._working)
            buffer = np.empty_like(part.out)
            chosen = np.flatnonzero(self._chosen[part.first])
            for which in chosen:
                place = int(self._places[part.first, which])
                self._read(which, place * self._width + column, buffer)
                total += buffer
            part.out[:] = total / self._working.type(len(chosen))

    def _read(self, which: int, start: int, out: np.ndarray) -> None:
        """Read elements of one of the leaves, in the dtype of this one."""
        source, path = self._leaves[which]
        if self._dtypes[which] == out.dtype:
            source.read_into(path, start, out)
            return
        stored = np.empty(out.size, self._dtypes[which])
        source.read_into(path, start, stored)
        out[:] = stored

    def _mean_row(self) -> np.ndarray:
        with self._lock:
            if self._mean is None:
                total = np.zeros(self._width)
                step = max(_PART // self._width, 1)
                for first in range(0, self._rows, step):
                    rows = min(step, self._rows - first)
                    found = np.empty(rows * self._width, self.abstract.dtype)
                    self.read_into(first * self._width, found)
                    total += found.reshape(rows, -1).sum(0, dtype=np.float64)
                self._mean = total / self._rows
        return self._mean


def _widest(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Return a dtype that holds all of them; of two kinds of 16 bits, float32."""
    size = max(dtype.itemsize for dtype in dtypes)
    widest = {dtype for dtype in dtypes if dtype.itemsize == size}
    return widest.pop() if len(widest) == 1 else np.dtype(np.float32)
