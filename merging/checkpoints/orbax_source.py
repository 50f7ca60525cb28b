"""Reading ranges of an Orbax checkpoint's leaves, through TensorStore.

Orbax loads whole leaves; the arrays below it can be opened by themselves, and hold
what Orbax v1 and v0 wrote: Zarr 2 or 3, compressed or not, in an OCDBT database or in
folders.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from merging.checkpoints import errors
from merging.checkpoints.ranges import boxes
from merging.checkpoints.source import SourceFile, sampled_digest
from merging.runtime import tree
from merging.runtime.errors import nearest

TREE = "_METADATA"
_COMMITTED = ("_CHECKPOINT_METADATA", "commit_success.txt")
_LARGEST_TREE = 100_000_000


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

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: it was not committed, or its list of leaves can't be read.
    """

    format = "orbax"

    def __init__(self, uri: str):
        self.uri = uri
        root = epath.Path(uri if "://" in uri else os.path.abspath(uri))
        if not root.exists():
            raise errors.MissingCheckpoint(uri)
        self._root = root
        self._item = _item(root)
        with errors.reading(uri):
            listed = _read_tree(self._item)
            opened = {
                path: ts.open(spec, context=context(), open=True, read=True)
                for path, spec in _specs(self._item, listed).items()
            }
        self._arrays = {}
        for path, future in opened.items():
            with errors.reading(f"{uri} ({path})"):
                self._arrays[path] = future.result()
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
        with errors.reading(f"{self.uri} ({path})"):
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
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found = {}
        for path in paths:
            array = self._array(path)

            def part(index, array=array):
                return array[index].read().result()

            sharding = (shardings or {}).get(path, here)
            with errors.reading(f"{self.uri} ({path})"):
                found[path] = jax.make_array_from_callback(array.shape, sharding, part)
        return found

    def files(self) -> list[SourceFile]:
        """Return all files with sizes and sampled digests, in order of their names."""
        found = []
        for path in sorted(_files_in(self._root)):
            size = path.stat().length
            name = str(path.relative_to(self._root))
            found.append(SourceFile(name, size, _digest(path, size)))
        return found

    def paths(self) -> dict[str, epath.Path]:
        """Return where all files are, by their names in the folder."""
        paths = sorted(_files_in(self._root))
        return {str(path.relative_to(self._root)): path for path in paths}

    def _array(self, path: str) -> Any:
        if path not in self._arrays:
            raise nearest(f"leaf of {self.uri}", path, self._arrays)
        return self._arrays[path]


def _files_in(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_in(path)
        else:
            yield path


def _digest(path: epath.Path, size: int) -> str:
    def read(at: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(length)

    return sampled_digest(size, b"", read)


def _item(root: epath.Path) -> epath.Path:
    """Return the folder, `root` or one in it, that lists its leaves."""
    if ".orbax-checkpoint-tmp" in root.name:
        raise errors.CorruptCheckpoint(root, "Orbax had not finished writing it")
    inside = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    items = [p for p in (root, *inside) if (p / TREE).exists()]
    if not items:
        raise errors.CorruptCheckpoint(root, f"no {TREE} in it, which lists its leaves")
    if len(items) > 1 and items[0] != root:
        names = ", ".join(p.name for p in items)
        raise errors.CorruptCheckpoint(root, f"several trees in it: name one ({names})")
    if not any((p / name).exists() for p in (root, items[0]) for name in _COMMITTED):
        raise errors.CorruptCheckpoint(
            root, f"no {' or '.join(_COMMITTED)} in it: it was not committed"
        )
    return items[0]


def _read_tree(item: epath.Path) -> dict[str, Any]:
    path = item / TREE
    if path.stat().length > _LARGEST_TREE:
        raise ValueError(f"{TREE} is larger than any")
    listed = json.loads(path.read_text())
    if not isinstance(listed, dict) or not isinstance(
        listed.get("tree_metadata"), dict
    ):
        raise ValueError(f"{TREE} lists no leaves")
    return listed


def _specs(item: epath.Path, listed: Mapping[str, Any]) -> dict[str, dict]:
    """Return the TensorStore spec of each leaf, by path."""
    specs = {}
    zarr = "zarr3" if listed.get("use_zarr3") else "zarr"
    for entry in listed["tree_metadata"].values():
        keys = [str(key["key"]) for key in entry["key_metadata"]]
        if any(not k or "/" in k or k in (".", "..") for k in keys):
            raise ValueError(f"a leaf is called {keys}")
        if entry["value_metadata"]["value_type"] in ("None", "Dict", "List", "string"):
            continue
        name = ".".join(keys) + "/"
        if listed.get("use_ocdbt"):
            kvstore = {"driver": "ocdbt", "base": _uri(item) + "/", "path": name}
        else:
            kvstore = _uri(item / name) + "/"
        specs["/".join(keys)] = {"driver": zarr, "kvstore": kvstore}
    return specs


def _uri(path: epath.Path) -> str:
    text = os.fspath(path)
    return text if "://" in text else f"file://{text}"
