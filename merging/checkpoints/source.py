"""A checkpoint as something to read from: its abstract tree, then any part of it."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath

from merging.runtime import tree
from merging.runtime.errors import nearest

# A digest reads so many places of a file, and so much at each.
_PLACES, _SAMPLE = 16, 2**16
SMALL = 2**21  # the most of a file whose digest is of all of it
# Bytes of whole rows that are read at a time for a part of a leaf.
_PART = 2**23


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


def read_leaves(
    source: Source,
    paths: Iterable[str],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, jax.Array]:
    """Return ``{path: array}`` by a source's `read_into`.

    Each device's part is read for it alone; all of a leaf, for the first device, where
    no sharding is given.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves = tree.flatten(source.abstract)
    found = {}
    for path in paths:
        if path not in leaves:
            raise nearest(f"leaf of {source.uri}", path, leaves)
        leaf = leaves[path]

        def part(index, path=path, leaf=leaf):
            return _box(source, path, leaf.shape, np.dtype(leaf.dtype), index)

        sharding = (shardings or {}).get(path, here)
        found[path] = jax.make_array_from_callback(leaf.shape, sharding, part)
    return found


def _box(
    source: Source,
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    index: tuple[slice, ...],
) -> np.ndarray:
    """Return a box of a leaf, of which some rows are read at a time."""
    if not shape:
        shape, index = (1,), (slice(None),)
        return _box(source, path, shape, dtype, index).reshape(())
    (first, last, _), *others = (
        place.indices(size) for place, size in zip(index, shape, strict=True)
    )
    found = np.empty((last - first, *(b - a for a, b, _ in others)), dtype)
    row = math.prod(shape[1:])
    step = max(_PART // max(row * dtype.itemsize, 1), 1)
    buffer = np.empty(min(step, last - first) * row, dtype)
    for at in range(first, last, step):
        stop = min(at + step, last)
        rows = buffer[: (stop - at) * row]
        source.read_into(path, at * row, rows)
        rows = rows.reshape(stop - at, *shape[1:])
        found[at - first : stop - first] = rows[(slice(None), *index[1:])]
    return found


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
    if size <= SMALL:
        found.update(read(0, size))
    else:
        for place in range(_PLACES):
            found.update(read((size - _SAMPLE) * place // (_PLACES - 1), _SAMPLE))
    return f"sampled-sha256:{found.hexdigest()}"
