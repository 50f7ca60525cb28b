"""Writing safetensors folders piece by piece, in any order, from any process.

All files are made at their full size, with their headers, before the first piece: a
full disk is noticed before any work, and a piece has one place, so the bytes do not
depend on who writes it or when. Where they lie until they are published says
`merging.checkpoints.unfinished`. Of however many files, a few are open at a time.
"""

import errno
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.checkpoints import errors, unfinished
from merging.checkpoints import safetensors_header as headers
from merging.checkpoints.auxiliary import write_auxiliary_files
from merging.checkpoints.descriptors import Descriptors
from merging.checkpoints.location import PARTIAL
from merging.checkpoints.names import require_tensor_names
from merging.checkpoints.safetensors import INDEX, SINGLE
from merging.checkpoints.writer import recorded
from merging.runtime import processes, storage
from merging.runtime.errors import UserError

# Bytes written between two requests to store them.
STORE_AFTER = 2**24
# Systems allow 256 files or more, of which the inputs have 128.
MOST_OPEN = 32


class SafetensorsWriter:
    """A safetensors folder that is being written, in `uri` + ".partial".

    Args:
      uri: the folder that it will be.
      abstract: {path: shape and dtype}, in the order to store them.
      shard_bytes: the most data in one file; a larger leaf has a file of its own.
      one: the name of the one file, whatever its size; None names them as models are.

    Raises:
      UserError: the disk is full, or the folder holds another layout or what we did
        not make.
    """

    def __init__(
        self,
        uri: str,
        abstract: Mapping[str, jax.ShapeDtypeStruct],
        shard_bytes: int,
        one: str | None = None,
    ):
        # Without a slash, or the unfinished one would lie in the finished one.
        self.uri = os.fspath(uri).rstrip("/")
        self.folder = self.uri + PARTIAL
        self._content = Path(self.folder) / unfinished.CONTENT
        require_tensor_names(abstract)
        self._abstract, self._shards = abstract, shards(abstract, shard_bytes, one)
        self._places: dict[str, tuple[Path, int]] = {}
        self._dtypes = {path: np.dtype(leaf.dtype) for path, leaf in abstract.items()}
        begun: dict[Path, tuple[bytes, int]] = {}
        for shard in self._shards:
            file = self._content / shard.name
            begun[file] = (shard.header, shard.size)
            self._places |= {p: (file, start) for p, start in shard.starts.items()}
        processes.broadcast(lambda: self._make(begun))
        self._open = Descriptors(MOST_OPEN, _open, _flushed)
        self._disk, self._lock = ThreadPoolExecutor(1, "disk"), threading.Lock()
        self._unstored, self._stores = 0, list[Future]()

    atomic = False

    def granularity(self, path: str) -> int:
        """Return 1: any piece can be written by itself."""
        return 1

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write elements of a leaf, from `start` on; safe from several threads."""
        file, begin = self._places[path]
        at = begin + start * self._dtypes[path].itemsize
        rest = np.ascontiguousarray(values).view(np.uint8)
        with errors.writing(self.folder), self._open.of(file) as descriptor:
            while len(rest):
                done = os.pwrite(descriptor, rest, at)
                rest, at = rest[done:], at + done
        self._store(values.nbytes)

    def _store(self, written: int) -> None:
        """Have the disk store what is written, from time to time, beside the work."""
        with self._lock:
            self._unstored += written
            if self._unstored < STORE_AFTER:
                return
            self._unstored = 0
            done = [store for store in self._stores if store.done()]
            self._stores = [store for store in self._stores if not store.done()]
            for file in self._open.keys():
                stored = self._disk.submit(self._flush, file, os.fdatasync)
                self._stores.append(stored)
        self._require_stored(done)

    def _flush(self, file: Path, flush: Callable[[int], None]) -> None:
        with self._open.of(file) as descriptor:
            flush(descriptor)

    def _require_stored(self, stores: Sequence[Future]) -> None:
        """Raise if the disk failed: it says so once, to whoever asks first."""
        for store in stores:
            error = store.exception()
            if isinstance(error, OSError):
                raise errors.NotStored(self.folder, error.strerror) from error
            if error is not None:
                raise error

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Read back what was written."""
        file, begin = self._places[path]
        at = begin + start * self._dtypes[path].itemsize
        rest = out.view(np.uint8)
        with errors.reading(file, path), self._open.of(file) as descriptor:
            while len(rest):
                done = os.preadv(descriptor, [rest], at)
                if not done:
                    raise errors.CorruptCheckpoint(file, f"{path} was cut short")
                rest, at = rest[done:], at + done

    def own_files(self) -> dict[str, dict[str, Any]]:
        """Return what the shards' headers are, and their index."""
        return own_files(self._shards, self._abstract)

    def finish(self, extra_files: Mapping[str, bytes]) -> None:
        """Add files, flush everything, and give the folder its name; all processes."""
        files = [self._content / shard.name for shard in self._shards]
        last = [self._disk.submit(self._flush, file, os.fsync) for file in files]
        self._require_stored([*self._stores, *last])
        self.close()
        processes.barrier(f"{self.uri} is flushed")
        processes.broadcast(lambda: self._publish(extra_files))

    def close(self) -> None:
        """Stop the thread and close the files."""
        self._disk.shutdown(cancel_futures=True)
        self._open.close_all()

    def _make(self, begun: Mapping[Path, tuple[bytes, int]]) -> None:
        with errors.writing(self.folder):
            unfinished.begin(Path(self.folder), layout(self._shards))
            self._content.mkdir(exist_ok=True)
            for file, (first, size) in begun.items():
                if file.exists():
                    with open(file, "rb") as stream:
                        same = stream.read(len(first)) == first
                    if not same or file.stat().st_size != size:
                        raise UserError(
                            f"{file} is not what was begun here. Move {self.folder} "
                            "away to start anew, or choose another output."
                        )
                    continue
                fresh = file.with_suffix(".new")
                with open(fresh, "wb") as stream:
                    _allocate(stream.fileno(), size)
                    stream.write(first)
                    stream.flush()
                    # Before the rename: a power cut must not leave a name without it.
                    os.fsync(stream.fileno())
                fresh.rename(file)

    def _publish(self, extra_files: Mapping[str, bytes]) -> None:
        """Add files and rename; a kill after that leaves a remainder beside OUT."""
        files = dict(extra_files)
        if len(self._shards) > 1:
            files[INDEX] = index(self._shards, self._abstract)
        with errors.writing(self.folder):
            ours = [*files, *(shard.name for shard in self._shards)]
            unfinished.require_only(self._content, ours)
            write_auxiliary_files(self._content, files)
            storage.sync_folder(self._content)
            os.rename(self._content, self.uri)
            storage.sync_folder(Path(self.uri).absolute().parent)
            unfinished.remove(Path(self.folder))


class Shard(NamedTuple):
    """A file of weights: its name, leaves and where they begin, header and bytes."""

    name: str
    starts: dict[str, int]
    header: bytes
    size: int


def shards(
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    shard_bytes: int,
    one: str | None = None,
) -> list[Shard]:
    """Return the files that leaves are stored in; arguments as `SafetensorsWriter`."""
    cut = [list(abstract)] if one else _cut(abstract, shard_bytes)
    found = []
    for number, paths in enumerate(cut):
        header, starts = headers.build({p: abstract[p] for p in paths})
        size = len(header) + sum(_bytes(abstract[p]) for p in paths)
        name = one or _file_name(number, len(cut))
        found.append(Shard(name, starts, header, size))
    return found


def layout(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return what tells these files from those of another output."""
    return {
        "format": "safetensors",
        "files": {
            shard.name: [hashlib.sha256(shard.header).hexdigest(), shard.size]
            for shard in shards
        },
    }


def own_files(
    shards: Sequence[Shard], abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, dict[str, Any]]:
    """Return {file: what `recorded` says} of headers, and of the index of several."""
    found = {shard.name: recorded(shard.header, shard.size) for shard in shards}
    if len(shards) > 1:
        found[INDEX] = recorded(index(shards, abstract))
    return found


def index(
    shards: Sequence[Shard], abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> bytes:
    """Return the file that says which shard each leaf is in."""
    places = {path: shard.name for shard in shards for path in shard.starts}
    found = {
        "metadata": {"total_size": sum(map(_bytes, abstract.values()))},
        "weight_map": dict(sorted(places.items())),
    }
    return (json.dumps(found, indent=2) + "\n").encode()


def _cut(
    abstract: Mapping[str, jax.ShapeDtypeStruct], shard_bytes: int
) -> list[list[str]]:
    cut: list[list[str]] = [[]]
    room = shard_bytes
    for path, leaf in abstract.items():
        size = _bytes(leaf)
        if size > room and cut[-1]:
            cut.append([])
            room = shard_bytes
        cut[-1].append(path)
        room -= size
    return cut


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _file_name(number: int, count: int) -> str:
    if count == 1:
        return SINGLE
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_NOFOLLOW)


def _flushed(file: Path, descriptor: int) -> None:
    """Store a file that is closed: of what fails later, nobody would be told."""
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise errors.NotStored(file, os.strerror(error.errno or 0)) from error


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the bytes, so that a full disk is noticed now."""
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)
