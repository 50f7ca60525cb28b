"""A checkpoint as something to read from: its abstract tree, then any of its leaves."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
from orbax.checkpoint import v1 as ocp

from merging import tree
from merging.checkpoints import orbax
from merging.errors import UserError, nearest


class Source(Protocol):
    """A checkpoint opened for reading, whatever its format.

    Attributes:
      uri: where it is.
      abstract: its nested dict of ShapeDtypeStruct; no weight has been read for it.
    """

    uri: str
    abstract: dict[str, Any]

    def read(
        self, paths: Iterable[str], shardings: Mapping[str, jax.sharding.Sharding]
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``, each leaf straight to its sharding."""


def open_checkpoint(uri: str | os.PathLike) -> Source:
    """Open a checkpoint and read its abstract tree.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: its metadata can't be read.
    """
    return OrbaxSource(os.fspath(uri))


class OrbaxSource:
    """An Orbax folder opened for reading."""

    def __init__(self, uri: str):
        self.uri = uri
        self.abstract, _ = orbax.describe(uri)

    def read(
        self,
        paths: Iterable[str],
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``; only those leaves are read.

        Args:
          paths: the leaves, their keys joined by ``/``.
          shardings: by path; a leaf without one goes to the first local device.

        Raises:
          UserError: a path the checkpoint doesn't hold, with the nearest ones.
          CorruptCheckpoint: a leaf can't be read.
        """
        leaves, wanted = tree.flatten(self.abstract), list(paths)
        for path in wanted:
            if path not in leaves:
                raise nearest(f"leaf of {self.uri}", path, leaves)
        if not wanted:
            raise UserError("name at least one leaf to read.")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        targets = dict.fromkeys(leaves, ocp.PLACEHOLDER)
        for path in wanted:
            targets[path] = jax.ShapeDtypeStruct(
                leaves[path].shape,
                leaves[path].dtype,
                sharding=(shardings or {}).get(path, here),
            )
        found = tree.flatten(orbax.load(self.uri, tree.unflatten(targets)))
        return {path: found[path] for path in wanted}
