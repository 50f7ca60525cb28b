"""Whole trees to and from Orbax folders (its v1 API), published atomically.

Orbax writes into a temporary sibling and renames it, so a name either holds a whole
checkpoint or nothing. It does not notice damaged bytes: an uncompressed chunk has no
checksum. So every leaf's CRC-32 goes into the checkpoint's own metadata.
"""

import functools
import math
import os
import zlib
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from merging.checkpoints import errors
from merging.runtime import processes, tree
from merging.runtime.errors import UserError

CHECKSUMS = "crc32"
# Most bytes of a chunk. Whatever part of a leaf is read, the chunks that it touches are
# read whole: samples of leaves of one chunk each would read a model a hundred times.
CHUNK = 1 << 22
_OURS = "_CHECKPOINT_METADATA"  # the file Orbax writes last before the rename


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
    return (epath.Path(path) / _OURS).exists()


def save(path: str | os.PathLike, params: tree.Tree) -> None:
    """Write a nested dict of arrays, visible under its name only when it is whole.

    A checkpoint that is already there is replaced, at the end. Called by all processes.

    Args:
      path: the folder to make; its parents are made too.
      params: leaves are JAX (sharded or not) or NumPy arrays.

    Raises:
      UserError: the path holds something else than a checkpoint, or the disk is full.
    """
    path = _path(path)
    if path.exists() and not exists(path):
        raise UserError(f"{path} exists and is no checkpoint; choose another name.")
    leaves = tree.flatten(params)
    sums = {name: _checksum(leaf) for name, leaf in leaves.items()}
    write = functools.partial(
        ocp.save, state=tree.unflatten(leaves), custom_metadata={CHECKSUMS: sums}
    )
    with errors.writing(path), context():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            fresh = path.with_name(path.name + ".new")
            write(fresh, overwrite=True)
            _replace(path, fresh)
        else:
            write(path)


def restore(path: str | os.PathLike, like: tree.Tree | None = None) -> dict[str, Any]:
    """Read a whole checkpoint.

    Args:
      path: the folder.
      like: the tree to expect; its leaves' dtypes and shardings (where they have one)
        are those of the result. Without it, leaves come as stored, on one device.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: it is damaged, half written, or its bytes have changed.
      UserError: it holds other leaves or shapes than expected; all are named.
    """
    stored, sums = describe(path)
    if like is not None:
        if wrong := tree.differences({"expected": like, "the checkpoint": stored}):
            raise UserError(f"{path} is not what is expected:\n" + "\n".join(wrong))
        stored = like
    leaves = load(path, tree.map_named(_target, stored))
    changed = [
        name
        for name, leaf in tree.flatten(leaves).items()
        if (sum_ := sums.get(name)) is not None
        and str(leaf.dtype) == sum_[1]
        and _checksum(leaf) not in (None, sum_)
    ]
    if changed:
        raise errors.CorruptCheckpoint(path, f"changed bytes in {', '.join(changed)}")
    return leaves


def describe(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the abstract tree and the recorded checksums, without reading weights.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: its metadata can't be read.
    """
    path = _path(path)
    if not path.exists():
        raise errors.MissingCheckpoint(path)
    with errors.reading(path), context():
        if not exists(path):
            raise ValueError(f"no {_OURS} in it")
        found = ocp.metadata(path)
        if found.metadata is None:  # Orbax only logs what it could not read
            raise ValueError("its list of leaves can't be read")
        stored = tree.map_named(
            lambda _, leaf: jax.ShapeDtypeStruct(tree.shape(leaf), tree.dtype(leaf)),
            found.metadata,
        )
        return stored, (found.custom_metadata or {}).get(CHECKSUMS, {})


def load(path: str | os.PathLike, targets: tree.Tree) -> dict[str, Any]:
    """Read the leaves that have a target; the others are `ocp.PLACEHOLDER`.

    Raises:
      CorruptCheckpoint: a leaf can't be read.
    """
    path = _path(path)
    with errors.reading(path), context():
        return ocp.load(path, targets)


def _replace(path: epath.Path, fresh: epath.Path) -> None:
    if processes.is_first():
        old = path.with_name(path.name + ".old")
        old.rmtree(missing_ok=True)
        path.rename(old)
        fresh.rename(path)
        old.rmtree()
    processes.barrier(f"replaced {path}")


def _target(_: str, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(tree.shape(leaf), tree.dtype(leaf), sharding=sharding)


def _checksum(leaf: Any) -> list | None:
    """Return [CRC-32, dtype] of a leaf this process holds whole, else None."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    array = np.ascontiguousarray(leaf)
    return [zlib.crc32(array.reshape(-1).view(np.uint8)), str(array.dtype)]


def _path(path: str | os.PathLike) -> epath.Path:
    """Return it as a path Orbax takes: absolute, or an object store's."""
    remote = "://" in os.fspath(path)
    return epath.Path(path if remote else os.path.abspath(path))
