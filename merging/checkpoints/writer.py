"""A checkpoint as something to write to, piece by piece."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Writer(Protocol):
    """A checkpoint that is being written beside the name it will have.

    Attributes:
      uri: what it will be called.
      folder: where it is until then; what lies in it is kept when it is opened again.
    """

    uri: str
    folder: str

    def granularity(self, path: str) -> int:
        """Return of how many elements the starts of pieces should be multiples."""

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write elements [start, start + len) of a leaf; again replaces them.

        Several threads may write, and several processes other pieces of a leaf.
        """

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Read back what was written."""

    def finish(self, extra_files: Mapping[str, bytes]) -> None:
        """Add small files, and publish it under its name; called by all processes."""
