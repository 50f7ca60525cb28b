"""Hugging Face safetensors folders: one file, or shards with an index.

Nothing is mapped into memory: ranges are read straight into the caller's buffers, so
that what is in memory is what was asked for, on any file system.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from merging.checkpoints import files
from merging.checkpoints import safetensors_header as headers
from merging.checkpoints.errors import CorruptCheckpoint, MissingCheckpoint
from merging.checkpoints.json_scanner import Scanner
from merging.checkpoints.source import SourceFile, read_leaves, sampled_digest
from merging.runtime.errors import UserError, listed, nearest

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
LARGEST_INDEX = 100_000_000
# A message lists so many offenders, a line each.
_MOST, _LINE = 50, "\n  "


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
        path = files.path_of(uri) if files.is_remote(uri) else epath.Path(uri)
        if not path.exists():
            raise MissingCheckpoint(uri)
        shards = _shards(path)
        self._files = [_File(file) for file in shards]
        self._leaves = self._collect(shards)
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
        return read_leaves(self, paths, shardings)

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

    def paths(self) -> dict[str, epath.Path]:
        """Return where the weight files are, by name."""
        return {file.name: file.path for file in self._files}

    def forget(self, path: str) -> None:
        """Leave a leaf out from now on."""
        del self._leaves[path], self.abstract[path]

    def _collect(self, shards: Mapping[epath.Path, set[str] | None]):
        """Return {name: place} of all files, as the index has them."""
        found: dict[str, _Where] = {}
        twice, missing, extra = [], [], []
        for number, (file, expected) in enumerate(
            zip(self._files, shards.values(), strict=True)
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
                shown = listed(lines, most=_MOST, mark=_LINE)
                raise CorruptCheckpoint(self.uri, f"{what}:\n  {shown}")
        return {name: found[name] for name in sorted(found)}


class _File(files.RangeFile):
    """One file, its header read."""

    def __init__(self, path: epath.Path):
        super().__init__(path)
        self.name = path.name
        first = self.read(0, 8)
        length = headers.header_length(path, first, self.size)
        text = self.read(8, length)
        self.tensors = headers.parse(path, first, text, self.size)
        self.header_bytes = first + text


def holds_safetensors(path: epath.Path) -> bool:
    """Return whether a path is a safetensors file, or a folder of some."""
    if not path.is_dir():
        return path.suffix == SUFFIX
    names = (SINGLE, INDEX)
    return any((path / n).exists() for n in names) or bool(_loose(path))


def _shards(path: epath.Path) -> dict[epath.Path, set[str] | None]:
    """Return the weight files, with the tensors that the index expects in each."""
    if not path.is_dir():
        return {path: None}
    if (path / INDEX).exists():
        return _indexed(path)
    loose = [SINGLE] if (path / SINGLE).exists() else _loose(path)
    if len(loose) != 1:
        raise CorruptCheckpoint(
            path,
            f"{len(loose)} safetensors files, and no {INDEX} that says what is where",
        )
    _require_inside(path, loose, "holds a link to a file")
    return {path / loose[0]: None}


def _loose(path: epath.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.suffix == SUFFIX)


def _indexed(folder: epath.Path) -> dict[epath.Path, set[str] | None]:
    """Return the shards of an index; it is a stranger's, and so are its names."""
    index = folder / INDEX
    _require_inside(folder, [INDEX], "holds a link to a file")
    found: dict[str, set[str]] = {}
    try:
        scanner = Scanner(files.read_small(index, LARGEST_INDEX).decode())
        for member in scanner.members():
            if member != "weight_map":
                scanner.skip()
                continue
            for tensor in scanner.members():
                if not headers.is_name(tensor):
                    raise ValueError(f"{tensor!r} is no tensor's name")
                found.setdefault(scanner.text(), set()).add(tensor)
        scanner.finish()
        if not found:
            raise ValueError("it names no tensors (weight_map)")
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(index, f"it is no index: {error}") from None
    _require_inside(folder, found, f"has an {INDEX} that names a file")
    gone = sorted(name for name in found if not (folder / name).exists())
    if gone:
        raise CorruptCheckpoint(folder, f"missing shards: {listed(gone)}")
    return {folder / file: found[file] for file in sorted(found)}


def _require_inside(folder: epath.Path, names: Iterable[str], what: str) -> None:
    outside = sorted(n for n in names if "/" in n or not files.lies_in(folder, n))
    if outside:
        shown = listed(map(repr, outside), most=_MOST, mark=_LINE)
        raise UserError(
            f"{folder} {what} outside its folder, which is not read. Copy it there, or "
            f"name its own folder:\n  {shown}"
        )
