"""Reading an Orbax checkpoint's leaves, whole or in ranges, through TensorStore.

Orbax loads whole leaves; the arrays below it can be opened by themselves, and hold
what Orbax v1 and v0 wrote: Zarr 2 or 3, compressed or not, in an OCDBT database or in
folders.
"""

import functools
import itertools
import math
import warnings
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from merging.checkpoints import errors, orbax_files, orbax_tree
from merging.checkpoints.location import (
    COMMITTED,
    TREE,
    Location,
    is_committed,
    items,
)
from merging.checkpoints.orbax_tree import Entry, Listed
from merging.checkpoints.ranges import boxes
from merging.checkpoints.source import SourceFile
from merging.runtime import foreign_json, memory, tree
from merging.runtime.errors import UserError, nearest

CHECKSUMS = "crc32"
PIECE = 2**26  # bytes of a leaf's chunks that are in memory at a time


def context() -> ts.Context:
    """Return TensorStore's settings: nothing cached, a few operations at a time."""
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
        }
    )


class OrbaxSource:
    """An Orbax folder opened for reading.

    Attributes:
      skeleton: the tree as it was saved, with its lists, Nones and empty dicts, and
        the path of each leaf in its place.

    Args:
      location: the folder, and the part of its tree.
      whole: take the tree as it is, and nothing for a training's state.

    Raises:
      CorruptCheckpoint: it was not committed, its list of leaves can't be read, or
        chunks are larger than their leaf.
      UserError: no such subtree, several trees, a link that leads out of it, or chunks
        larger than the machine's memory.
    """

    format = "orbax"

    def __init__(self, location: Location, *, whole: bool = False):
        self.uri, self._root = location.uri, location.folder
        trees = _committed_trees(location)
        orbax_files.require_inside(self._root)
        item, listed, taken = _choose(trees, location, whole)
        # Opened under its name again, it is the same part without a question.
        self.uri += f"#{taken}" if taken else ""
        with errors.reading(self.uri):
            arrays = [entry for entry in listed.entries if entry.is_array]
            opened = {
                entry.path: ts.open(
                    _spec(item, listed, entry), context=context(), open=True, read=True
                )
                for entry in arrays
            }
            self.skeleton = orbax_tree.containers(listed.entries)
        if not arrays:
            raise UserError(f"{self.uri} holds no arrays.")
        self._stored = {entry.path: "/".join(entry.stored) for entry in arrays}
        self._arrays = {}
        for path, future in opened.items():
            with errors.reading(self.uri, path):
                self._arrays[path] = future.result()
            _require_chunks_that_fit(self.uri, path, self._arrays[path])
        self.abstract = tree.unflatten(
            {
                path: jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
                for path, array in self._arrays.items()
            }
        )

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major.

        Raises:
          UserError: no such leaf.
          CorruptCheckpoint: it could not be read.
        """
        array = self._array(path)
        with errors.reading(self.uri, path):
            reads = []
            for box in boxes(array.shape, start, start + len(out)):
                part = array[box.slices]
                target = out[box.offset : box.offset + box.size].reshape(part.shape)
                reads.append(ts.array(target).write(part))
            for read in reads:
                read.result()

    def read(
        self,
        paths: Iterable[str],
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``; each device's part is read for it alone.

        Args:
          paths: the leaves, their keys joined by ``/``.
          shardings: by path; a leaf without one goes to the first local device.

        Raises:
          UserError: a path the checkpoint doesn't hold, with the nearest ones.
          CorruptCheckpoint: a leaf can't be read.
        """
        return {
            path: self._read(path, (shardings or {}).get(path), None) for path in paths
        }

    def restore(self, like: tree.Tree | None = None) -> dict[str, Any]:
        """Return the whole tree, held against its checksums where there are some.

        Args:
          like: the tree to expect; its leaves' dtypes and shardings (where they have
            one) are those of the result. Without it, leaves come as stored, on one
            device.

        Raises:
          CorruptCheckpoint: a leaf can't be read, or its bytes have changed.
          UserError: it holds other leaves or shapes than expected; all are named.
        """
        if like is not None:
            if wrong := tree.differences(
                {"expected": like, "the checkpoint": self.abstract}
            ):
                raise UserError(
                    f"{self.uri} is not what is expected:\n" + "\n".join(wrong)
                )
        changed: list[str] = []

        def read(path: str, leaf: Any) -> jax.Array:
            return self._checked(path, leaf, changed)

        leaves = tree.map_named(read, self.abstract if like is None else like)
        self._refuse_changed(changed)
        return leaves

    def restore_leaf(self, path: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        """Return a leaf, held against its checksum if it has one; as `restore`."""
        changed: list[str] = []
        leaf = self._checked(path, like, changed)
        self._refuse_changed(changed)
        return leaf

    def files(self) -> list[SourceFile]:
        """Return all files with sizes and sampled digests, in order of their names."""
        return orbax_files.described(self._root)

    def paths(self) -> dict[str, epath.Path]:
        """Return where all files are, by their names in the folder."""
        return {
            str(path.relative_to(self._root)): path
            for path in sorted(orbax_files.files_in(self._root))
        }

    def _checked(self, path: str, like: Any, changed: list[str]) -> jax.Array:
        """Return a leaf; its path goes to `changed` if its bytes have changed."""
        found = self._read(path, getattr(like, "sharding", None), tree.dtype(like))
        sum_ = self._sums.get(self._stored[path])
        if sum_ and str(found.dtype) == sum_[1]:
            if checksum(found) not in (None, sum_):
                changed.append(path)
        return found

    def _refuse_changed(self, changed: list[str]) -> None:
        if changed:
            names = ", ".join(changed)
            raise errors.CorruptCheckpoint(self.uri, f"changed bytes in {names}")

    @functools.cached_property
    def _sums(self) -> dict[str, list]:
        return _checksums(self._root)

    def _read(
        self, path: str, sharding: jax.sharding.Sharding | None, dtype: Any
    ) -> jax.Array:
        array = self._array(path)
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with errors.reading(self.uri, path):
            if dtype is None:
                dtype = array.dtype.numpy_dtype
            found: dict[str, np.ndarray] = {}  # what devices share is read only once

            def part(index: Any) -> np.ndarray:
                key = str(index)
                if key not in found:
                    found[key] = _part(array, index, np.dtype(dtype))
                return found[key]

            return jax.make_array_from_callback(array.shape, sharding, part)

    def _array(self, path: str) -> Any:
        if path not in self._arrays:
            raise nearest(f"leaf of {self.uri}", path, self._arrays)
        return self._arrays[path]


def _require_chunks_that_fit(uri: str, path: str, array: ts.TensorStore) -> None:
    """Refuse chunks that TensorStore would ask the system for in vain, and end us."""
    given = array.chunk_layout.write_chunk.shape or array.shape
    both = list(zip(given, array.shape, strict=True))
    chunk = [size or whole for size, whole in both]
    if any((size or 0) > max(whole, 1) for size, whole in both):
        raise errors.CorruptCheckpoint(
            uri, f"{path}: its chunks of {chunk} are larger than its {[*array.shape]}"
        )
    size = math.prod(chunk) * array.dtype.numpy_dtype.itemsize
    if size > memory.of_machine():
        raise UserError(
            f"{uri}: {path} is stored in chunks of {size:,} bytes, each more than this "
            "machine's memory; read it on a larger one, or save it in smaller chunks."
        )


def _part(array: ts.TensorStore, index: Any, dtype: np.dtype) -> np.ndarray:
    """Return a part of an array, read some whole chunks along the first axis at a time.

    TensorStore may have all chunks of a read in memory before it copies out of them: of
    a part that takes some columns of every chunk, that is the whole leaf.
    """
    part = array[index]
    rows, first = 0, 0
    if part.rank:
        part = part[ts.d[:].translate_to[0]]
        chunk = array.chunk_layout.read_chunk.shape[0] or part.shape[0]
        row = math.prod(array.shape[1:]) * array.dtype.numpy_dtype.itemsize
        rows = max(1, PIECE // max(row * chunk, 1)) * chunk
        first = rows - (index[0].start or 0) % chunk  # up to where a chunk begins
    if not part.rank or first >= part.shape[0]:
        return np.asarray(part.read().result()).astype(dtype, copy=False)
    # Aligned: a CPU's arrays are these bytes, and no copy.
    found = memory.aligned(math.prod(part.shape) * dtype.itemsize)
    found = found.view(dtype).reshape(part.shape)
    ends = [0, *range(first, part.shape[0], rows), part.shape[0]]
    for start, stop in itertools.pairwise(ends):
        found[start:stop] = part[start:stop].read().result()
    return found


def checksum(leaf: Any) -> list | None:
    """Return [CRC-32, dtype] of a leaf this process holds whole, else None."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    array = np.ascontiguousarray(leaf)
    return [zlib.crc32(array.reshape(-1).view(np.uint8)), str(array.dtype)]


def _checksums(folder: epath.Path) -> dict[str, list]:
    """Return {path: checksum} that `save` has put into Orbax's own file."""
    try:
        described = foreign_json.loads(orbax_files.read_small(folder / COMMITTED[0]))
        found = described["custom_metadata"][CHECKSUMS]
        return {str(name): list(sum_) for name, sum_ in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _committed_trees(location: Location) -> list[epath.Path]:
    root = location.folder
    if ".orbax-checkpoint-tmp" in root.name:
        raise errors.CorruptCheckpoint(root, "Orbax had not finished writing it")
    trees = items(root) if root.is_dir() else []
    if not trees:
        raise errors.CorruptCheckpoint(root, f"no {TREE} in it, which lists its leaves")
    if not is_committed(root, trees):
        marks = " or ".join(COMMITTED)
        raise errors.CorruptCheckpoint(root, f"no {marks} in it: it was not committed")
    return trees


def _choose(
    trees: list[epath.Path], location: Location, whole: bool
) -> tuple[epath.Path, Listed, str]:
    """Return the folder of the tree, its list cut to what is read, and what was taken.

    The latter are the keys of the weights' subtree, where none was asked for.
    """
    named = {place.name: place for place in trees}
    uri, asked = location.uri, location.subtree
    place, beside, taken = trees[0], list[str](), list[str]()
    if len(trees) > 1:
        first, _, rest = asked.partition("/")
        if asked and first not in named:
            raise nearest(f"tree in {uri}", first, named)
        if not asked and orbax_tree.PARAMS not in named:
            raise UserError(
                f"{uri} holds several trees: name one, as in {uri}#{trees[0].name} "
                f"({', '.join(named)})."
            )
        place, asked = named[first or orbax_tree.PARAMS], rest
        if not first:
            taken, beside = [place.name], sorted(named.keys() - {place.name})
    with errors.reading(uri):
        listed = orbax_tree.read(place)
    entries = listed.entries
    first, _, rest = asked.partition("/")
    if first == place.name and not any(e.keys[:1] == (first,) for e in entries):
        asked = rest  # the one tree there is, by its name
    if asked:
        entries = orbax_tree.subtree(entries, asked, uri)
    elif not whole and not location.subtree:
        keys, left = orbax_tree.weights(entries, uri)
        entries, beside = orbax_tree.below(entries, keys), beside + left
        taken += keys
    if beside:
        warnings.warn(
            f"{uri} is a training's state: its params are taken, and "
            f"{', '.join(beside)} left out. Name {uri}#KEYS for another part.",
            stacklevel=4,
        )
    return place, listed._replace(entries=entries), "/".join(taken)


def _spec(item: epath.Path, listed: Listed, entry: Entry) -> dict[str, Any]:
    """Return the TensorStore spec of a leaf's array."""
    name = ".".join(entry.stored) + "/"
    if listed.ocdbt:
        kvstore = {"driver": "ocdbt", "base": orbax_files.kvstore(item), "path": name}
    else:
        kvstore = orbax_files.kvstore(item)
        kvstore["path"] += name
    return {
        "driver": "zarr3" if listed.zarr3 else "zarr",
        "kvstore": kvstore,
        # TensorStore would give zeros for chunks that are gone.
        "fill_missing_data_reads": not listed.whole,
    }
