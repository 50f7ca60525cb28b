"""Hugging Face safetensors folders: one file, or shards with an index.

Nothing is mapped into memory: ranges are read straight into the caller's buffers, so
that what is in memory is what was asked for, on any file system.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from merging.checkpoints import safetensors_header as headers
from merging.checkpoints.errors import CorruptCheckpoint, MissingCheckpoint
from merging.checkpoints.source import SourceFile, sampled_digest
from merging.runtime.errors import UserError, nearest

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 100_000_000
# Small files that belong to the weights: names, or how they end. Nothing that could be
# executed or unpickled.
_AUXILIARY = ("config.json", "generation_config.json", "merges.txt")
_AUXILIARY_STEMS = (
    "tokenizer",
    "vocab",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
    "preprocessor_config",
)
_AUXILIARY_ENDS = (".json", ".txt", ".model", ".jinja")
_LARGEST_AUXILIARY = 100_000_000


class _Where(NamedTuple):
    """A tensor, and the place of its file among the folder's."""

    tensor: headers.Tensor
    file: int


class SafetensorsSource:
    """A safetensors folder (or file) opened for reading.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: a file or the index is damaged; says which.
      UserError: the index names a file outside the folder, or dtypes are unknown.
    """

    format = "safetensors"
    skeleton = None

    def __init__(self, uri: str):
        self.uri = uri
        path = epath.Path(uri)
        if not path.exists():
            raise MissingCheckpoint(uri)
        listed = _listed(path)
        self._files = [_File(file) for file in listed]
        self._leaves = self._collect(listed)
        self.abstract = {
            name: jax.ShapeDtypeStruct(where.tensor.shape, where.tensor.dtype)
            for name, where in self._leaves.items()
        }

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major.

        Raises:
          UserError: no such leaf.
          CorruptCheckpoint: the file ended or could not be read.
        """
        if path not in self._leaves:
            raise nearest(f"leaf of {self.uri}", path, self._leaves)
        tensor, file = self._leaves[path]
        at = tensor.start + start * tensor.dtype.itemsize
        self._files[file].read_into(at, out.view(np.uint8), path)

    def read(
        self,
        paths: Iterable[str],
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``; each device's part is read for it alone."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found = {}
        for path in paths:
            if path not in self._leaves:
                raise nearest(f"leaf of {self.uri}", path, self._leaves)
            tensor = self._leaves[path].tensor

            def part(index, path=path, tensor=tensor):
                whole = np.empty(math.prod(tensor.shape), tensor.dtype)
                self.read_into(path, 0, whole)
                return whole.reshape(tensor.shape)[index]

            sharding = (shardings or {}).get(path, here)
            found[path] = jax.make_array_from_callback(tensor.shape, sharding, part)
        return found

    def files(self) -> list[SourceFile]:
        """Return the weight files with sizes and sampled digests."""
        return [
            SourceFile(
                file.name,
                file.size,
                sampled_digest(file.size, file.header_bytes, file.read),
            )
            for file in self._files
        ]

    def _collect(self, listed: Mapping[epath.Path, set[str] | None]):
        """Return {name: place} of all files, as the index has them."""
        found: dict[str, _Where] = {}
        twice, missing, extra = [], [], []
        for number, (file, expected) in enumerate(
            zip(self._files, listed.values(), strict=True)
        ):
            for name, tensor in file.tensors.items():
                if name in found:
                    other = self._files[found[name].file].name
                    twice.append(f"{name}: in {other} and in {file.name}")
                found[name] = _Where(tensor, number)
            if expected is not None:
                have = set(file.tensors)
                missing += [f"{n}: not in {file.name}" for n in sorted(expected - have)]
                extra += [f"{n}: in {file.name}" for n in sorted(have - expected)]
        for lines, what in (
            (twice, "tensors are in two shards"),
            (missing, "tensors of the index are not in their shard"),
            (extra, "tensors are in a shard, but not so in the index"),
        ):
            if lines:
                raise CorruptCheckpoint(self.uri, f"{what}:\n  " + "\n  ".join(lines))
        return {name: found[name] for name in sorted(found)}


class _File:
    """One file, its header read; its descriptor is shared by threads."""

    def __init__(self, path: epath.Path):
        self._path = path
        self.name = path.name
        self._remote = "://" in os.fspath(path)
        self._descriptor = None
        with _reading(path):
            self.size = path.stat().length
            if not self._remote:
                self._descriptor = os.open(path, os.O_RDONLY)
        first = self.read(0, 8)
        length = headers.header_length(path, first, self.size)
        text = self.read(8, length)
        self.tensors = headers.parse(path, first, text, self.size)
        self.header_bytes = first + text

    def __del__(self):
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)

    def read(self, at: int, length: int) -> bytes:
        """Return bytes; fewer at the file's end."""
        with _reading(self._path):
            if self._descriptor is not None:
                return os.pread(self._descriptor, length, at)
            with self._path.open("rb") as file:
                file.seek(at)
                return file.read(length)

    def read_into(self, at: int, out: np.ndarray, leaf: str) -> None:
        """Fill `out`, bytes, from position `at`."""
        done = 0
        with _reading(self._path, leaf):
            while done < len(out):
                if self._descriptor is not None:
                    got = os.preadv(self._descriptor, [out[done:]], at + done)
                else:
                    part = self.read(at + done, len(out) - done)
                    got = len(part)
                    out[done : done + got] = np.frombuffer(part, np.uint8)
                if not got:
                    raise CorruptCheckpoint(
                        self._path, f"{leaf} ends {len(out) - done} bytes too early"
                    )
                done += got


def auxiliary_files(uri: str) -> dict[str, Path]:
    """Return {name: path} of the config, tokenizer and generation files in a folder.

    Regular files of the folder itself only, and nothing that could be executed.
    """
    folder = Path(uri)
    if "://" in uri or not folder.is_dir():
        return {}
    inside = folder.resolve()
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if _is_auxiliary(path.name)
        and path.is_file()
        and path.resolve().parent == inside
        and path.stat().st_size <= _LARGEST_AUXILIARY
    }


def holds_safetensors(path: epath.Path) -> bool:
    """Return whether a path is a safetensors file, or a folder of some."""
    if path.suffix == ".safetensors":
        return True
    if not path.is_dir():
        return False
    names = (SINGLE, INDEX)
    return any((path / n).exists() for n in names) or bool(_loose(path))


def _is_auxiliary(name: str) -> bool:
    if name in _AUXILIARY:
        return True
    return name.startswith(_AUXILIARY_STEMS) and name.endswith(_AUXILIARY_ENDS)


def _listed(path: epath.Path) -> dict[epath.Path, set[str] | None]:
    """Return the weight files, with the tensors that the index expects in each."""
    if path.suffix == ".safetensors":
        return {path: None}
    if (path / INDEX).exists():
        return _indexed(path)
    if (path / SINGLE).exists():
        return {path / SINGLE: None}
    loose = _loose(path)
    if len(loose) == 1:
        return {loose[0]: None}
    raise CorruptCheckpoint(
        path, f"{len(loose)} safetensors files, and no {INDEX} that says what is where"
    )


def _loose(path: epath.Path) -> list[epath.Path]:
    return sorted(p for p in path.iterdir() if p.suffix == ".safetensors")


def _indexed(folder: epath.Path) -> dict[epath.Path, set[str] | None]:
    index = folder / INDEX
    with _reading(index):
        if index.stat().length > LARGEST_INDEX:
            raise CorruptCheckpoint(index, "it is larger than any index")
        text = index.read_text()
    try:
        where = json.loads(text)["weight_map"]
        if not isinstance(where, dict) or not where:
            raise ValueError("its weight_map is no object")
        if not all(isinstance(name, str) for name in where.values()):
            raise ValueError("its weight_map names things that are no files")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(index, f"it is no index: {error!r}") from None
    outside = sorted({n for n in where.values() if not _is_plain(folder, n)})
    if outside:
        raise UserError(
            f"{index} names files outside its folder, which are not read: "
            + ", ".join(map(repr, outside))
        )
    gone = sorted({name for name in where.values() if not (folder / name).exists()})
    if gone:
        raise CorruptCheckpoint(folder, f"missing shards: {', '.join(gone)}")
    found: dict[epath.Path, set[str] | None] = {}
    for file in sorted(set(where.values())):
        found[folder / file] = {name for name, at in where.items() if at == file}
    return found


def _is_plain(folder: epath.Path, name: str) -> bool:
    """Return whether a name is a file's in this very folder.

    A link may lead elsewhere only as the Hugging Face cache has it: its snapshots
    link into `blobs` of the same cache entry.
    """
    if not name or name != os.path.basename(name) or name in (".", ".."):
        return False
    if "://" in os.fspath(folder):
        return True
    here, target = Path(folder).resolve(), (Path(folder) / name).resolve()
    blobs = here.parent.parent / "blobs" if here.parent.name == "snapshots" else None
    return target.parent in (here, blobs)


@contextlib.contextmanager
def _reading(path: object, leaf: str = "") -> Iterator[None]:
    """Name the file (and leaf) that the system could not read."""
    try:
        yield
    except (PermissionError, UserError):
        raise
    except OSError as error:
        of = f" while reading {leaf}" if leaf else ""
        raise CorruptCheckpoint(path, f"{error.strerror or error}{of}") from error
