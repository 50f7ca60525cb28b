"""Whole trees to and from Orbax folders (its v1 API), published atomically.

Orbax writes into a temporary sibling and renames it, so a name either holds a whole
checkpoint or nothing; in an object store it writes a mark at the end, without which
nothing is read. One that is replaced takes two renames. What a kill between them leaves
is read where it lies, and gets its name from the next `save`.

Orbax does not notice damaged bytes: an uncompressed chunk has no checksum. So every
leaf's CRC-32 goes into the checkpoint's own metadata.
"""

import functools
import math
import os
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from merging.checkpoints import errors, orbax_source, orbax_tree
from merging.checkpoints.location import (
    COMMITTED,
    Location,
    beside,
    is_whole,
    path_of,
    place_of,
)
from merging.checkpoints.orbax_source import OrbaxSource
from merging.runtime import processes, storage, tree
from merging.runtime.errors import UserError

__all__ = ["exists", "open_saved", "restore", "save"]

# Most bytes of a chunk. Whatever part of a leaf is read, the chunks that it touches are
# read whole: samples of leaves of one chunk each would read a model a hundred times.
CHUNK = 1 << 22


def context() -> ocp.Context:
    """Return Orbax's settings for weights: small chunks, and no vain compression."""
    settings = ocp.Context()
    settings.array.saving.use_compression = False
    settings.array.saving.scoped_storage_options_creator = _chunking
    return settings


def _chunking(_: Any, leaf: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions:
    """Return how a leaf is cut: a stack between its layers, so that they stay whole."""
    options = ocp.options.ArrayOptions.Saving.StorageOptions
    shape = tree.shape(leaf)
    if math.prod(shape) * tree.dtype(leaf).itemsize <= CHUNK:
        return options()
    return options(chunk_byte_size=CHUNK, shard_axes=(0,) if len(shape) > 2 else ())


def exists(path: str | os.PathLike) -> bool:
    """Return whether a checkpoint has been published under this name."""
    return is_whole(place_of(path_of(os.fspath(path))))


def save(path: str | os.PathLike, params: tree.Tree) -> None:
    """Write a nested dict of arrays, visible under its name only when it is whole.

    A checkpoint that is already there is replaced, at the end; in an object store it is
    removed before. Called by all processes.

    Args:
      path: the folder to make; its parents are made too.
      params: leaves are JAX (sharded or not) or NumPy arrays.

    Raises:
      UserError: the path holds something else than a checkpoint, no leaf can have one
        of the names, or the disk is full.

    >>> import jax.numpy as jnp, merging
    >>> merging.checkpoints.save("model", {"layer": {"w": jnp.zeros((2, 3))}})
    >>> merging.checkpoints.restore("model")["layer"]["w"].shape
    (2, 3)
    """
    path = path_of(os.fspath(path))
    leaves = tree.flatten(params)
    orbax_tree.require_names(leaves)
    there = processes.broadcast(lambda: _settle(path))
    sums = {name: orbax_source.checksum(leaf) for name, leaf in leaves.items()}
    write = functools.partial(
        ocp.save,
        state=tree.unflatten(leaves),
        custom_metadata={orbax_source.CHECKSUMS: sums},
    )
    with errors.writing(path), context():
        path.parent.mkdir(parents=True, exist_ok=True)
        if storage.is_remote(path):
            # Nothing is renamed there: Orbax's last object says that all are whole.
            processes.broadcast(lambda: storage.remove(path))
            write(os.fspath(path))
        elif there:
            write(beside(path)[0])
            processes.broadcast(lambda: _replace(path))
        else:
            write(path)


def open_saved(path: str | os.PathLike) -> OrbaxSource:
    """Open what `save` has written: the very folder, and the whole of its tree.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: as `OrbaxSource`.
    """
    folder = place_of(path_of(os.fspath(path)))
    if not folder.exists():
        raise errors.MissingCheckpoint(path)
    return OrbaxSource(Location(os.fspath(path), folder, "", "orbax"), whole=True)


def restore(path: str | os.PathLike, like: tree.Tree | None = None) -> dict[str, Any]:
    """Read the whole of a tree that was saved; see `OrbaxSource.restore`.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: it is damaged, half written, or its bytes have changed.
      UserError: it holds other leaves or shapes than expected; all are named.

    >>> import jax.numpy as jnp, merging
    >>> merging.checkpoints.save("model", {"w": jnp.array([1.0, 2])})
    >>> print(merging.checkpoints.restore("model")["w"])
    [1. 2.]
    """
    return open_saved(path).restore(like)


def _is_half(path: epath.Path) -> bool:
    """Return whether Orbax began this in an object store, and did not finish it."""
    known = {"state", "orbax.checkpoint", *COMMITTED}
    return (
        storage.is_remote(path) and {inside.name for inside in path.iterdir()} <= known
    )


def _settle(path: epath.Path) -> bool:
    """Return whether a checkpoint is there, and clear away what a kill left beside it.

    Raises:
      UserError: something else is there.
    """
    with errors.writing(path):
        if not storage.is_remote(path):
            if (found := place_of(path)) != path:
                found.rename(path)
            for left in beside(path):
                _discard(left)
        if not path.exists():
            return False
        if not (is_whole(path) or _is_half(path)):
            raise UserError(f"{path} exists and is no checkpoint; choose another name.")
        return True


def _replace(path: epath.Path) -> None:
    fresh, old = beside(path)
    with errors.writing(path):
        path.rename(old)
        fresh.rename(path)
        _discard(old)


def _discard(folder: epath.Path) -> None:
    """Remove a checkpoint, its mark first: the rest of it is none."""
    if folder.exists():
        (folder / COMMITTED[0]).unlink(missing_ok=True)
        storage.remove(folder)
