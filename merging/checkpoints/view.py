"""A view: leaves of other checkpoints under names, and in a dtype, of its own.

It is a source like any other, so that a merge whose layers come from layers of other
numbers, or of several models, whose vocabulary is another, or whose inputs are cast
before the arithmetic, takes no engine of its own.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from merging.checkpoints.auxiliary import LARGEST
from merging.checkpoints.files import read_small
from merging.checkpoints.rows import Rows
from merging.checkpoints.source import Source, SourceFile, read_leaves
from merging.runtime import tree

# Elements that are cast at a time, so that a view takes next to no memory.
_PART = 2**18


class Origin(NamedTuple):
    """A leaf of a checkpoint; or rows of leaves, of which it is one, in its place."""

    source: Source
    path: str
    rows: Rows | None = None

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len), row-major."""
        if self.rows is not None:
            self.rows.read_into(start, out)
        else:
            self.source.read_into(self.path, start, out)


class View:
    """Leaves of checkpoints as one checkpoint.

    Args:
      uri: what to call it.
      origins: {path: where its leaf comes from}, in the order of the view's leaves;
        several paths may share one origin.
      dtype: of the view's float leaves; None leaves them in their own.
      beside: further files that its leaves depend on, such as tokenizers, by name.
    """

    skeleton = None  # its leaves are in no tree that was saved

    def __init__(
        self,
        uri: str,
        origins: Mapping[str, Origin],
        dtype: np.dtype | None = None,
        beside: Mapping[str, epath.Path] | None = None,
    ):
        self.uri = uri
        self._origins, self._beside = dict(origins), dict(beside or {})
        read = [o.source for o in origins.values()]
        read += [s for o in origins.values() if o.rows for s in o.rows.sources]
        self._sources = list({id(source): source for source in read}.values())
        self.format = self._sources[0].format if self._sources else "safetensors"
        leaves = {id(s): tree.flatten(s.abstract) for s in self._sources}
        stored = {
            p: leaves[id(o.source)][o.path] if o.rows is None else o.rows.abstract
            for p, o in self._origins.items()
        }
        self._stored = {path: np.dtype(leaf.dtype) for path, leaf in stored.items()}
        self._dtypes = {
            path: np.dtype(dtype)
            if dtype is not None and tree.dtype_class(leaf) == "float"
            else self._stored[path]
            for path, leaf in stored.items()
        }
        self.abstract: dict[str, Any] = tree.unflatten(
            {
                path: jax.ShapeDtypeStruct(leaf.shape, self._dtypes[path])
                for path, leaf in stored.items()
            }
        )

    def read(
        self, paths: Iterable[str], shardings: Mapping[str, jax.sharding.Sharding]
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``, each leaf straight to its sharding."""
        found = {}
        for path in paths:
            source, name, rows = self._origins[path]
            if rows is not None:
                found |= read_leaves(self, [path], shardings)
                continue
            leaf = source.read([name], {name: shardings[path]})[name]
            found[path] = leaf.astype(self._dtypes[path])
        return found

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major."""
        origin, stored = self._origins[path], self._stored[path]
        if stored == self._dtypes[path]:
            origin.read_into(start, out)
            return
        buffer = np.empty(min(_PART, out.size), stored)
        for at in range(0, out.size, _PART):
            part = buffer[: min(_PART, out.size - at)]
            origin.read_into(start + at, part)
            # Beyond the range is infinite, which a merge refuses by name.
            with np.errstate(over="ignore"):
                out[at : at + part.size] = part.astype(self._dtypes[path])

    def files(self) -> list[SourceFile]:
        """Return the files of all its checkpoints, and those beside them."""
        found = [
            file._replace(name=f"{number}/{file.name}")
            for number, source in enumerate(self._sources)
            for file in source.files()
        ]
        for name, path in self._beside.items():
            content = read_small(path, LARGEST)
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            found.append(SourceFile(name, len(content), digest))
        return found

    def paths(self) -> dict[str, epath.Path]:
        """Return where its files are, by the names that `files` has for them."""
        found = {
            f"{number}/{name}": path
            for number, source in enumerate(self._sources)
            for name, path in source.paths().items()
        }
        return found | self._beside
