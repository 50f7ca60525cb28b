"""Flat ranges of an array as boxes, for stores that know boxes only."""

import math
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """A part of an array, and where its elements stand in the flat range.

    Attributes:
      slices: one for each axis; an integer takes one element and the axis away.
      offset: of its first element, from the range's start.
      size: elements.
    """

    slices: tuple[int | slice, ...]
    offset: int
    size: int


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Yield the boxes that make up elements [start, stop) in row-major order.

    At most 2·dimensions − 1, each one contiguous in the flat array.
    """
    yield from _boxes(shape, start, stop, (), 0)


def _boxes(shape, start, stop, outer, offset) -> Iterator[Box]:
    if start >= stop:
        return
    if not shape:
        yield Box(outer, offset, 1)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside one row
        yield from _boxes(
            shape[1:],
            start - last * row,
            stop - last * row,
            (*outer, last),
            offset,
        )
        return
    if head := first * row - start:
        yield from _boxes(shape[1:], row - head, row, (*outer, first - 1), offset)
    if first < last:
        inner = (slice(None),) * (len(shape) - 1)
        size = (last - first) * row
        yield Box((*outer, slice(first, last), *inner), offset + head, size)
    done = offset + last * row - start
    yield from _boxes(shape[1:], 0, stop - last * row, (*outer, last), done)
