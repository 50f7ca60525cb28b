"""Writing an Orbax checkpoint piece by piece, in any order, from any process.

Orbax saves whole leaves. So it saves a template, the same tree with a number for each
leaf, and the arrays are put in the numbers' places: Zarr 3 in plain folders, each
chunk a file (or object) of its own, so that processes share none. The commit markers
and the list of leaves are Orbax's own.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from merging.checkpoints import errors
from merging.checkpoints.orbax_source import TREE, context
from merging.checkpoints.ranges import boxes
from merging.runtime import processes, tree
from merging.runtime.errors import UserError

PARTIAL = ".partial"
CHUNK_BYTES = 2**23
_LAYOUT = "layout.json"


class OrbaxWriter:
    """An Orbax folder that is being written, as `uri` + ".partial".

    Args:
      uri: the folder that it will be.
      abstract: {path: shape and dtype}.

    Raises:
      UserError: the disk is full, or the folder holds another layout.
    """

    def __init__(self, uri: str, abstract: Mapping[str, jax.ShapeDtypeStruct]):
        self.uri, self.folder = os.path.abspath(uri), os.path.abspath(uri) + PARTIAL
        self._abstract = dict(abstract)
        processes.broadcast(self._make)
        # Opened one by one: processes may only open what is made.
        self._arrays = {
            path: ts.open(_spec(self.folder, path), context=context(), open=True)
            for path in abstract
        }
        self._arrays = {path: array.result() for path, array in self._arrays.items()}

    def granularity(self, path: str) -> int:
        """Return the elements of a chunk, which two writers must not share."""
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

    def finish(self, extra_files: Mapping[str, bytes]) -> None:
        """Add files and give the folder its name; all processes."""
        self._arrays = {}
        processes.barrier(f"{self.uri} is written")
        processes.broadcast(lambda: self._publish(extra_files))

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays = {}

    def _make(self) -> None:
        """Make the template and the empty arrays, or find them made."""
        folder, layout = Path(self.folder), Path(self.folder) / _LAYOUT
        wanted = {
            path: [list(leaf.shape), str(np.dtype(leaf.dtype))]
            for path, leaf in self._abstract.items()
        }
        if layout.exists():
            if json.loads(layout.read_text()) != wanted:
                raise UserError(
                    f"{folder} holds the unfinished output of another merge, laid out "
                    "differently. Delete it to start anew, or choose another output."
                )
            return
        if folder.exists():  # stopped while the template was made
            shutil.rmtree(folder)
        with errors.writing(self.folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _save_template(self.folder, self._abstract)
            for path, leaf in self._abstract.items():
                shutil.rmtree(folder / "state" / path.replace("/", "."))
                spec = _spec(self.folder, path) | {"metadata": _metadata(leaf)}
                ts.open(spec, context=context(), create=True).result()
            layout.write_text(json.dumps(wanted))

    def _publish(self, extra_files: Mapping[str, bytes]) -> None:
        folder = Path(self.folder)
        with errors.writing(self.folder):
            for name, content in extra_files.items():
                if name != os.path.basename(name):
                    raise ValueError(f"{name!r} is no name for a file beside weights")
                (folder / name).write_bytes(content)
            (folder / _LAYOUT).unlink()
            for inside in folder.iterdir():
                if inside.is_dir() and inside.name != "state":
                    shutil.rmtree(inside)
            os.rename(folder, self.uri)


def granularity(leaf: Any) -> int:
    """Return the elements of a chunk of a leaf: a contiguous range of it."""
    return max(math.prod(_chunk(leaf)), 1)


def _chunk(leaf: Any) -> list[int]:
    """Return a chunk's shape: whole trailing axes, a part of one axis, ones before it.

    The part divides its axis, so that chunks are equal ranges of the flat leaf.
    """
    shape, room = tuple(leaf.shape), CHUNK_BYTES // np.dtype(leaf.dtype).itemsize
    for axis, length in enumerate(shape):
        row = math.prod(shape[axis + 1 :])
        if row <= room:
            most = min(max(room // max(row, 1), 1), max(length, 1))
            if axis > 0:
                most = next(n for n in range(most, 0, -1) if length % n == 0)
            return [1] * axis + [most, *(max(n, 1) for n in shape[axis + 1 :])]
    return [1] * len(shape)


def _spec(folder: str, path: str) -> dict[str, Any]:
    name = path.replace("/", ".")
    kvstore = {"driver": "file", "path": f"{folder}/state/{name}/"}
    # An array of zeros must not look like one that was never written.
    return {
        "driver": "zarr3",
        "kvstore": kvstore,
        "store_data_equal_to_fill_value": True,
    }


def _metadata(leaf: Any) -> dict[str, Any]:
    return {
        "shape": list(leaf.shape),
        "data_type": str(np.dtype(leaf.dtype)),
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": _chunk(leaf)},
        },
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }


def _save_template(folder: str, abstract: Mapping[str, Any]) -> None:
    """Save the tree with a zero for each leaf, and forget what is known of zeros."""
    from absl import logging
    from orbax.checkpoint import v1 as ocp

    from merging.checkpoints.orbax import context as settings

    zeros = {path: jnp.zeros((), jnp.int8) for path in abstract}
    options = settings()
    options.array.saving.use_ocdbt = False
    # It warns that it did not find what it was told not to write.
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with options:
            ocp.save(folder, tree.unflatten(zeros))
    finally:
        logging.set_verbosity(level)
    state = Path(folder) / "state"
    shutil.rmtree(state / "array_metadatas", ignore_errors=True)
    listed = json.loads((state / TREE).read_text())
    for entry in listed["tree_metadata"].values():
        entry["value_metadata"].pop("write_shape", None)
    (state / TREE).write_text(json.dumps(listed))
