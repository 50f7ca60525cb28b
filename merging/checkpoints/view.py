"""A view: leaves of other checkpoints under names, and in a dtype, of its own.

It is a source like any other, so that a merge whose layers come from layers of other
numbers, or of several models, or are cast before the arithmetic, takes no engine of
its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from merging.checkpoints.source import Source, SourceFile
from merging.runtime import tree

# Elements that are cast at a time, so that a view takes next to no memory.
_PART = 2**18


class Origin(NamedTuple):
    """A leaf of a checkpoint."""

    source: Source
    path: str


class View:
    """Leaves of checkpoints as one checkpoint.

    Args:
      uri: what to call it.
      origins: {path: where its leaf comes from}, in the order of the view's leaves;
        several paths may share one origin.
      dtype: of the view's float leaves; None leaves them in their own.
    """

    skeleton = None  # its leaves are in no tree that was saved

    def __init__(
        self, uri: str, origins: Mapping[str, Origin], dtype: np.dtype | None = None
    ):
        self.uri = uri
        self._origins = dict(origins)
        self._sources = list(
            {id(o.source): o.source for o in origins.values()}.values()
        )
        self.format = self._sources[0].format if self._sources else "safetensors"
        leaves = {id(s): tree.flatten(s.abstract) for s in self._sources}
        stored = {p: leaves[id(o.source)][o.path] for p, o in self._origins.items()}
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
            source, name = self._origins[path]
            leaf = source.read([name], {name: shardings[path]})[name]
            found[path] = leaf.astype(self._dtypes[path])
        return found

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major."""
        source, name = self._origins[path]
        stored = self._stored[path]
        if stored == self._dtypes[path]:
            source.read_into(name, start, out)
            return
        buffer = np.empty(min(_PART, out.size), stored)
        for at in range(0, out.size, _PART):
            part = buffer[: min(_PART, out.size - at)]
            source.read_into(name, start + at, part)
            # Beyond the range is infinite, which a merge refuses by name.
            with np.errstate(over="ignore"):
                out[at : at + part.size] = part.astype(self._dtypes[path])

    def files(self) -> list[SourceFile]:
        """Return the files of all its checkpoints."""
        return [
            file._replace(name=f"{number}/{file.name}")
            for number, source in enumerate(self._sources)
            for file in source.files()
        ]

    def paths(self) -> dict[str, epath.Path]:
        """Return where its files are, by the names that `files` has for them."""
        return {
            f"{number}/{name}": path
            for number, source in enumerate(self._sources)
            for name, path in source.paths().items()
        }
