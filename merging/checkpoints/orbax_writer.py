"""Writing an Orbax checkpoint piece by piece, in any order, from any process.

Orbax saves whole leaves. So its arrays are written by themselves: Zarr 2 in plain
folders, each chunk a file of its own, so that processes share none. The lists and marks
that Orbax lays beside them come last. The layout is that of its `StandardCheckpointer`,
which every version of Orbax reads.

Where they lie until then says `merging.checkpoints.unfinished`. In an object store,
which renames nothing, the chunks are written to OUT itself. There it is no checkpoint
before its marks, which come after all chunks.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from merging.checkpoints import errors, orbax_files, orbax_tree, unfinished
from merging.checkpoints.auxiliary import write_auxiliary_files
from merging.checkpoints.location import COMMITTED, PARTIAL, TREE
from merging.checkpoints.orbax_source import context
from merging.checkpoints.ranges import boxes
from merging.checkpoints.writer import recorded
from merging.runtime import objects, processes, storage, tree
from merging.runtime.errors import UserError, listed
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder

CHUNK_BYTES = 2**23
_LONGEST = 255  # bytes of a file's name
_MOST_FILES = 16  # times the fewest that a leaf can be cut into
_HANDLER = (
    "orbax.checkpoint._src.handlers.standard_checkpoint_handler."
    "StandardCheckpointHandler"
)
_DICT, _SEQUENCE = 2, 1  # types of keys, in Orbax's list of leaves
# A leaf's type, in the list. A `jax.Array` could be restored on the devices only that
# saved it, or would need a target; this one is a `jax.Array` wherever the target's is.
_ARRAY = "np.ndarray"
_ARRAY_FILE = ".zarray"  # TensorStore's description of an array
_LOCK = ".__lock"  # what TensorStore leaves of a write that was killed


class OrbaxWriter:
    """An Orbax folder that is being written, in `uri` + ".partial".

    Args:
      uri: the folder that it will be.
      abstract: {path: shape and dtype}.
      skeleton: the tree to store, with the path of each leaf in its place; nested
        dicts if None (see `Source.skeleton`).
      beside: names of the files that `finish` will be given.

    Raises:
      UserError: the disk is full, the folder holds another layout or is not ours, two
        leaves can't be told apart, or no folder can have a leaf's name.
    """

    def __init__(
        self,
        uri: str,
        abstract: Mapping[str, jax.ShapeDtypeStruct],
        skeleton: Any = None,
        beside: Collection[str] = (),
    ):
        self.uri = os.fspath(storage.absolute(storage.place(uri))).rstrip("/")
        self.folder, self.atomic = self.uri + PARTIAL, storage.is_remote(self.uri)
        self._partial = storage.place(self.folder)
        self._content = self._partial / unfinished.CONTENT
        if self.atomic:
            self._content = storage.place(self.uri)
        self._abstract = dict(abstract)
        if skeleton is None:
            skeleton = tree.unflatten({path: path for path in abstract})
        self._listed = _listed(skeleton)
        _require_names(abstract, beside)
        processes.broadcast(self._make)
        # Opened one by one: processes may only open what is made.
        self._arrays = {
            path: ts.open(_spec(self._content, path), context=context(), open=True)
            for path in abstract
        }
        self._arrays = {path: array.result() for path, array in self._arrays.items()}

    def granularity(self, path: str) -> int:
        """Return the elements of a range whose chunks no other writer shares."""
        return granularity(self._abstract[path])

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write elements of a leaf, from `start` on; safe from several threads."""
        array = self._arrays[path]
        with errors.writing(self.folder):
            writes = []
            for box in boxes(array.shape, start, start + len(values)):
                part = array[box.slices]
                source = values[box.offset : box.offset + box.size]
                writes.append(part.write(source.reshape(part.shape)))
            for write in writes:
                write.result()

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Read back what was written."""
        array = self._arrays[path]
        with errors.reading(f"{self.folder} ({path})"):
            for box in boxes(array.shape, start, start + len(out)):
                part = array[box.slices]
                target = out[box.offset : box.offset + box.size]
                ts.array(target.reshape(part.shape)).write(part).result()

    def own_files(self) -> dict[str, dict[str, Any]]:
        """Return what Orbax's lists and marks are, and TensorStore's of the arrays."""
        names = [f"{path.replace('/', '.')}/{_ARRAY_FILE}" for path in self._abstract]
        paths = [self._content / name for name in names]
        with errors.reading(self.folder):
            contents = [
                *objects.read_all([p for p in paths if isinstance(p, ObjectPath)]),
                *(p.read_bytes() for p in paths if isinstance(p, Path)),
            ]
        found = dict(zip(names, contents, strict=True)) | self._marks()
        return {name: recorded(content) for name, content in found.items()}

    def _marks(self) -> dict[str, bytes]:
        """Return the files that come last, in the order to write them."""
        marks = {"item_handlers": _HANDLER, "custom_metadata": {}}
        marks |= {"metrics": {}, "performance_metrics": {}}
        return {
            TREE: json.dumps(self._listed).encode(),  # in its order
            COMMITTED[0]: storage.as_json(marks),
            COMMITTED[1]: b"committed\n",
        }

    def finish(self, extra_files: Mapping[str, bytes]) -> None:
        """Add files and give the folder its name; all processes."""
        self._arrays = {}
        processes.barrier(f"{self.uri} is written")
        processes.broadcast(lambda: self._publish(extra_files))

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays = {}

    def _make(self) -> None:
        """Make the empty arrays, or find them made."""
        leaves = {
            path: [list(leaf.shape), str(np.dtype(leaf.dtype))]
            for path, leaf in self._abstract.items()
        }
        layout = {"format": "orbax", "leaves": leaves, "tree": self._listed}
        with errors.writing(self.folder):
            unfinished.begin(self._partial, layout)
            self._content.mkdir(exist_ok=True)
            for path, leaf in self._abstract.items():
                spec = _spec(self._content, path) | {"metadata": _metadata(leaf)}
                dtype = ts.dtype(np.dtype(leaf.dtype))
                made = ts.open(
                    spec, dtype=dtype, context=context(), open=True, create=True
                )
                made.result()

    def _stale(self) -> list[Folder]:
        """Return what killed writes, of TensorStore's and of ours, have left."""
        if self.atomic:
            return []
        left = [path for path in self._content.glob(".*.tmp") if path.is_file()]
        return [*left, *self._content.glob(f"*/*{_LOCK}")]

    def _publish(self, extra_files: Mapping[str, bytes]) -> None:
        """Make everything durable, rename, and only then forget how it was made.

        A kill before the rename leaves what can be gone on with, and one after it a
        finished checkpoint beside a remainder.
        """
        names = {path.replace("/", ".") for path in self._abstract}
        # The last of the files only when all the others are there.
        small, last = dict(extra_files), {}
        if self.atomic:
            last = dict([small.popitem()])
        with errors.writing(self.folder):
            for left in self._stale():
                left.unlink()
            _require_names(self._abstract, extra_files)
            if isinstance(self._content, Path):
                orbax = (TREE, *COMMITTED)
                unfinished.require_only(self._content, [*names, *extra_files, *orbax])
            write_auxiliary_files(self._content, small)
            # Chunks and their folders were synchronised by TensorStore, the names of
            # these folders are by the last of these writes.
            for name, content in self._marks().items():
                storage.write_bytes(self._content / name, content)
            if self.atomic:
                write_auxiliary_files(self._content, last)
                unfinished.remove(self._partial)
                return
            os.rename(self._content, self.uri)
            storage.sync_folder(os.path.dirname(self.uri))
            unfinished.remove(self._partial)


def granularity(leaf: Any) -> int:
    """Return the elements of a contiguous range that has its chunks for itself.

    A chunk's; or a whole axis's, where its chunks don't divide it.
    """
    held = _chunk(leaf)
    for axis, length in enumerate(leaf.shape):
        if axis > 0 and length % held[axis]:
            held[axis] = length
    return math.prod(held)


def _require_names(paths: Collection[str], beside: Iterable[str]) -> None:
    """Refuse leaves whose folders would have one name, that of a file, or none."""
    orbax_tree.require_names(paths)
    long = [path for path in paths if len(path.encode()) > _LONGEST]
    if long:
        raise UserError(
            f"in an Orbax folder a leaf's name has at most {_LONGEST} bytes; rename "
            "these where they are saved:\n  " + listed(long, most=50, mark="\n  ")
        )
    names: dict[str, str] = dict.fromkeys((TREE, *COMMITTED), "a file of Orbax's")
    names |= {name.split("/")[0]: "a file beside the weights" for name in beside}
    clashes = []
    for path in paths:
        name = path.replace("/", ".")
        if name in names:
            clashes.append(f"{path} and {names[name]} would both be {name}")
        names[name] = path
    if clashes:
        raise UserError(
            "these leaves can't be told apart in an Orbax folder:\n  "
            + "\n  ".join(clashes)
        )


def _chunk(leaf: Any) -> list[int]:
    """Return the shape of its chunks: whole rows of the first axes, or a part of one.

    The part divides its axis, so that chunks are equal ranges of the flat leaf; unless
    that took far more files than there need be.
    """
    shape, room = tuple(leaf.shape), CHUNK_BYTES // np.dtype(leaf.dtype).itemsize
    for axis, length in enumerate(shape):
        row = math.prod(shape[axis + 1 :])
        if row <= room:
            most = min(max(room // max(row, 1), 1), max(length, 1))
            if axis > 0:
                even = -(-length // -(-length // most))  # all of about one size
                tried = range(most, (most - 1) // _MOST_FILES, -1)
                most = next((n for n in tried if length % n == 0), even)
            return [1] * axis + [most, *(max(n, 1) for n in shape[axis + 1 :])]
    return [1] * len(shape)


def _spec(folder: Folder, path: str) -> dict[str, Any]:
    kvstore = orbax_files.kvstore(folder)
    kvstore["path"] += path.replace("/", ".") + "/"
    # An array of zeros must not look like one that was never written.
    return {
        "driver": "zarr",
        "kvstore": kvstore,
        "store_data_equal_to_fill_value": True,
    }


def _metadata(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "chunks": _chunk(leaf), "compressor": None}


def _listed(skeleton: Any) -> dict[str, Any]:
    """Return Orbax's list of a tree's leaves."""
    found: dict[str, Any] = {}

    def visit(node: Any, keys: tuple[tuple[str, int], ...]) -> None:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                visit(value, (*keys, (key, _DICT)))
        elif isinstance(node, list) and node:
            for place, value in enumerate(node):
                visit(value, (*keys, (str(place), _SEQUENCE)))
        else:
            kinds = {dict: "Dict", list: "List", type(None): "None"}
            kind = kinds.get(type(node), _ARRAY)
            found[str(tuple(key for key, _ in keys))] = {
                "key_metadata": [{"key": k, "key_type": of} for k, of in keys],
                "value_metadata": {
                    "value_type": kind,
                    "skip_deserialize": kind != _ARRAY,
                },
            }

    visit(skeleton, ())
    return {
        "tree_metadata": found,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
