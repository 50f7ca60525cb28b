"""A checkpoint as something to read from: its abstract tree, then any part of it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath

# A digest reads so many places of a file, and so much at each.
_PLACES, _SAMPLE = 16, 2**16
_SMALL = 2**21


class SourceFile(NamedTuple):
    """A file of a checkpoint: its name in the folder, its bytes, and its digest."""

    name: str
    size: int
    digest: str


class Source(Protocol):
    """A checkpoint opened for reading, whatever its format.

    Attributes:
      uri: where it is.
      format: `safetensors` or `orbax`.
      abstract: its nested dict of ShapeDtypeStruct; no weight has been read for it.
      skeleton: the tree as it was saved, with lists, Nones and empty dicts, and the
        path of each leaf in its place; None if the format knows no tree.
    """

    uri: str
    format: str
    abstract: dict[str, Any]
    skeleton: Any

    def read(
        self, paths: Iterable[str], shardings: Mapping[str, jax.sharding.Sharding]
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``, each leaf straight to its sharding."""

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major.

        Args:
          path: of the leaf.
          start: the first element.
          out: one-dimensional, of the leaf's dtype.
        """

    def files(self) -> list[SourceFile]:
        """Return its files, with digests that tell one checkpoint from another."""

    def paths(self) -> dict[str, epath.Path]:
        """Return where its files are, by the names that `files` has for them."""


def sampled_digest(size: int, header: bytes, read: Callable[[int, int], bytes]) -> str:
    """Return the SHA-256 of a file's size, header, and 16 places spread over it.

    Of the whole file if it is small. It tells checkpoints apart without reading them;
    it does not prove that no byte has changed.

    Args:
      size: of the file.
      header: its first bytes, known already.
      read: gives (position, length) of it.
    """
    found = hashlib.sha256(size.to_bytes(8, "little") + header)
    if size <= _SMALL:
        found.update(read(0, size))
    else:
        for place in range(_PLACES):
            found.update(read((size - _SAMPLE) * place // (_PLACES - 1), _SAMPLE))
    return f"sampled-sha256:{found.hexdigest()}"
