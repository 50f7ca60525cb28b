"""Ranges of our leaves from foreign tensors, and back: stacked, unstacked, transposed.

A range is whole rows of our leaf, so that a leaf larger than memory goes through in
ranges. Rows of a transposed tensor are columns there, read or written line by line.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from merging.checkpoints import Source, Writer
from merging.models.hf.family import Leaf

# A transposition touches so many lines at a time, to stay within the processor's cache.
_LINES = 128


class _Part(NamedTuple):
    """Rows [first, last) of one tensor's part of our leaf, `offset` into the range."""

    tensor: str
    first: int
    last: int
    offset: int


def row_size(leaf: Leaf) -> int:
    """Return the elements of the smallest range: a row of ours."""
    return leaf.shape[-1]


def gather(source: Source, leaf: Leaf, start: int, out: np.ndarray) -> None:
    """Fill `out` with elements [start, start + len) of our leaf, whole rows.

    Args:
      source: holds the foreign tensors.
      leaf: which of ours.
      start: the first element, at a row's begin.
      out: one-dimensional, of the leaf's dtype.
    """
    row = row_size(leaf)
    for part in _parts(leaf, start, len(out)):
        rows = part.last - part.first
        ours = out[part.offset : part.offset + rows * row]
        if not leaf.transposed:
            source.read_into(part.tensor, part.first * row, ours)
            continue
        lines, length = leaf.tensor_shape
        theirs = np.empty((lines, rows), leaf.dtype)
        if rows == length:
            source.read_into(part.tensor, 0, theirs.reshape(-1))
        else:
            for i, line in enumerate(theirs):
                source.read_into(part.tensor, i * length + part.first, line)
        _transpose(theirs, ours.reshape(rows, lines))


def scatter(writer: Writer, leaf: Leaf, start: int, values: np.ndarray) -> None:
    """Write elements [start, start + len) of our leaf, whole rows, to foreign tensors.

    Args:
      writer: of the foreign tensors.
      leaf: which of ours.
      start: the first element, at a row's begin.
      values: one-dimensional, of the leaf's dtype.
    """
    row = row_size(leaf)
    for part in _parts(leaf, start, len(values)):
        rows = part.last - part.first
        ours = values[part.offset : part.offset + rows * row]
        if not leaf.transposed:
            writer.write(part.tensor, part.first * row, ours)
            continue
        lines, length = leaf.tensor_shape
        theirs = np.empty((lines, rows), leaf.dtype)
        _transpose(ours.reshape(rows, lines), theirs)
        if rows == length:
            writer.write(part.tensor, 0, theirs.reshape(-1))
        else:
            for i, line in enumerate(theirs):
                writer.write(part.tensor, i * length + part.first, line)


def _parts(leaf: Leaf, start: int, size: int) -> Iterator[_Part]:
    """Yield the tensors that a range runs through."""
    row = row_size(leaf)
    each = math.prod(leaf.shape[1:] if leaf.stacked else leaf.shape)
    at, stop = start, start + size
    while at < stop:
        number = at // each
        end = min((number + 1) * each, stop)
        first, last = ((x - number * each) // row for x in (at, end))
        yield _Part(leaf.tensors[number], first, last, at - start)
        at = end


def _transpose(source: np.ndarray, out: np.ndarray) -> None:
    """Write the transposed of `source` [n, m] to `out` [m, n], whatever the dtype."""
    bits = np.dtype(f"u{source.dtype.itemsize}")
    source, out = source.view(bits), out.view(bits)
    for i in range(0, len(source), _LINES):
        for j in range(0, len(out), _LINES):
            out[j : j + _LINES, i : i + _LINES] = source[
                i : i + _LINES, j : j + _LINES
            ].T
