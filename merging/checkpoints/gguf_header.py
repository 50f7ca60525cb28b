"""The header of a GGUF file, read as something a stranger wrote.

A magic number, counts, {key: typed value}, then each tensor's name, dimensions, type
and offset (the format's specification is in the ggml project, docs/gguf.md). Whatever
is not exactly that is a ValueError. No more is read or made than the file has bytes
for, and a header of more than `LARGEST` bytes is none.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LARGEST = 2**26
_MOST_NUMBERS = 2**22  # of an array; the longest that models have are vocabularies
_LONGEST_TEXT, _LONGEST_NAME, _MOST_AXES = 2**24, 2**16, 4
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_NUMBERS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_TEXT, _ARRAY = 8, 9


class Stored(NamedTuple):
    """A tensor as the header has it.

    Attributes:
      shape: row-major, rows first.
      type: the number of how it is stored.
      start: where its bytes begin in the file.
    """

    shape: tuple[int, ...]
    type: int
    start: int


def parse(
    read: Callable[[int, int], bytes],
) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return a file's metadata and its tensors, by name.

    Args:
      read: gives the bytes of the file from a position, of a length; fewer at its end.

    Raises:
      ValueError: it is no GGUF file of a known version, or malformed.
    """
    cursor = _Cursor(read)
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.number(4)
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; {_VERSIONS} are read, little-endian")
    tensors, values = cursor.number(10), cursor.number(10)
    metadata: dict[str, Any] = {}
    for _ in range(values):
        name = cursor.text(_LONGEST_NAME)
        if name in metadata or not name.isprintable():
            raise ValueError(f"{name[:100]!r} is given twice, or is no name")
        metadata[name] = cursor.value(cursor.number(4))
    found: dict[str, Stored] = {}
    for _ in range(tensors):
        name = cursor.text(_LONGEST_NAME)
        if name in found or not name.isprintable():
            raise ValueError(
                f"the tensor {name[:100]!r} is given twice, or has no name"
            )
        axes = cursor.number(4)
        if axes > _MOST_AXES:
            raise ValueError(f"{name} has {axes} dimensions")
        shape = tuple(cursor.number(10) for _ in range(axes))[::-1]
        if not 0 < math.prod(shape) < 2**60:
            raise ValueError(f"{name} has the shape {shape}")
        found[name] = Stored(shape, cursor.number(4), cursor.number(10))
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise ValueError(f"{_ALIGNMENT} is {alignment!r}")
    begin = -(-cursor.at // alignment) * alignment
    return metadata, {n: s._replace(start=begin + s.start) for n, s in found.items()}


class _Cursor:
    """Reads a file from its beginning, some at a time."""

    def __init__(self, read: Callable[[int, int], bytes]):
        self._read = read
        self._buffer, self._begin, self.at = b"", 0, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if self.at + size > LARGEST:
            raise ValueError(f"its header takes more than {LARGEST} bytes")
        start = self.at - self._begin
        if start + size > len(self._buffer):
            self._buffer = self._read(self.at, max(size, 2**20))
            self._begin, start = self.at, 0
        found = self._buffer[start : start + size]
        if len(found) < size:
            raise ValueError(f"it ends within its header, at {self.at}")
        self.at += size
        return found

    def number(self, kind: int) -> Any:
        """Return a number of a kind, as a Python value."""
        dtype = _NUMBERS[kind]
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def text(self, longest: int = _LONGEST_TEXT) -> str:
        """Return a text."""
        size = self.number(10)
        if size > longest:
            raise ValueError(f"a text of {size} bytes")
        return self.take(size).decode()

    def value(self, kind: int) -> Any:
        """Return a value of a kind: a number, a text, or a list of such."""
        if kind == _TEXT:
            return self.text()
        if kind in _NUMBERS:
            return self.number(kind)
        if kind != _ARRAY:
            raise ValueError(f"a value of the unknown kind {kind}")
        of, count = self.number(4), self.number(10)
        if count > _MOST_NUMBERS:
            raise ValueError(f"an array of {count} elements")
        if of == _TEXT:
            return [self.text() for _ in range(count)]
        if of not in _NUMBERS:
            raise ValueError(f"an array of the unknown kind {of}")
        dtype = _NUMBERS[of]
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
