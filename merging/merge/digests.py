"""The SHA-256 of every leaf's bytes, taken while they are written.

A digest takes a leaf's bytes in their order, and blocks are merged in nearly that
order: so most are taken in as they are written, on cores that would wait, and only what
came too early is read back.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from merging.checkpoints import Writer
from merging.runtime import tree

# Bytes that are read at a time.
PART = 2**23


@dataclass
class _Taken:
    """What a leaf's digest has taken in: its elements up to one.

    Attributes:
      digest: of them.
      upto: how many.
      claimed: how many are in it, or are just being taken in.
      written: {start: elements} of parts that are written, and wait for their turn.
      busy: whether a thread is taking in parts.
    """

    digest: Any = field(default_factory=hashlib.sha256)
    upto: int = 0
    claimed: int = 0
    written: dict[int, int] = field(default_factory=dict)
    busy: bool = False


class Digests:
    """The digests of leaves, row-major and little-endian.

    Args:
      leaves: {path: shape and dtype}.
      read_into: as of a `Source` or a `Writer`.
    """

    def __init__(
        self,
        leaves: Mapping[str, Any],
        read_into: Callable[[str, int, np.ndarray], None],
    ):
        self._leaves, self._read_into = leaves, read_into
        self._taken = {path: _Taken() for path in leaves}
        self._lock = threading.Lock()
        self._held = threading.local()

    def add(self, path: str, start: int, part: np.ndarray) -> None:
        """Take in what was written; from any thread, no element by two at a time.

        Args:
          path: of a leaf; of one that was not asked for, nothing happens.
          start: its first element in the leaf. If it was there before, the leaf's
            digest begins again.
          part: [elements], contiguous, of the leaf's dtype.
        """
        if path not in self._taken:
            return
        with self._lock:
            taken = self._taken[path]
            if start < taken.claimed or start in taken.written:
                taken = self._taken[path] = _Taken()
            taken.written[start] = part.size
            if taken.busy or taken.upto not in taken.written:
                return
            taken.busy = True
        while True:
            with self._lock:
                size = taken.written.pop(taken.upto, None)
                taken.busy = size is not None
                taken.claimed = taken.upto + (size or 0)
            if size is None:
                return
            if taken.upto == start:
                taken.digest.update(part.view(np.uint8))
                taken.upto += size
            else:
                self._read(path, taken, taken.upto + size)

    def finish(
        self, advance: Callable[[int, str], None] = lambda size, note: None
    ) -> dict[str, str]:
        """Read what was not taken in; return {path: digest}, in hexadecimal.

        Args:
          advance: told the bytes that were read.
        """

        def finished(path: str) -> tuple[str, str]:
            taken, size = self._taken[path], math.prod(self._leaves[path].shape)
            self._read(path, taken, size, advance)
            return path, taken.digest.hexdigest()

        with ThreadPoolExecutor(2) as threads:
            return dict(threads.map(finished, self._leaves))

    def _read(
        self,
        path: str,
        taken: _Taken,
        stop: int,
        advance: Callable[[int, str], None] = lambda size, note: None,
    ) -> None:
        dtype = tree.dtype(self._leaves[path])
        # One buffer a thread: new pages cost as much as reading.
        if not hasattr(self._held, "buffer"):
            self._held.buffer = np.empty(PART, np.uint8)
        while taken.upto < stop:
            length = min(PART // dtype.itemsize, stop - taken.upto)
            part = self._held.buffer[: length * dtype.itemsize].view(dtype)
            self._read_into(path, taken.upto, part)
            taken.digest.update(part.view(np.uint8))
            taken.upto += length
            advance(part.nbytes, "checking what was written")


class Digesting:
    """A writer that gives what it writes to digests.

    Args:
      writer: writes, and reads.
      digests: of its leaves.
    """

    def __init__(self, writer: Writer, digests: Digests):
        self.atomic, self.read_into = writer.atomic, writer.read_into
        self._writer, self._digests = writer, digests

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write elements of a leaf, as `Writer.write`."""
        self._writer.write(path, start, values)
        self._digests.add(path, start, values)
