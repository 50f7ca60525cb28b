"""Writing safetensors folders into an object store piece by piece, from any process.

Nothing is written into the middle of an object. So each piece is an object of its own
until the end, when the store joins them into the shards, without moving a byte. Whoever
goes on, on whatever machine, finds the pieces that are there, and no machine holds more
than those it is writing.

    OUT.partial/layout.json           what the pieces are pieces of
    OUT.partial/pieces/LEAF/START     a piece: its leaf's number and its first element
    OUT/                              made at the end; its last file says it is whole
"""

import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from merging.checkpoints import errors, unfinished
from merging.checkpoints.auxiliary import write_auxiliary_files
from merging.checkpoints.location import PARTIAL
from merging.checkpoints.names import require_tensor_names
from merging.checkpoints.safetensors import INDEX
from merging.checkpoints.safetensors_writer import (
    Shard,
    index,
    layout,
    own_files,
    shards,
)
from merging.runtime import objects, processes, storage
from merging.runtime.objects import ObjectPath

_THREADS = 16


class ObjectWriter:
    """A safetensors folder that is being written, as objects below `uri` + ".partial".

    Args:
      uri: the folder that it will be, in an object store.
      abstract: {path: shape and dtype}, in the order to store them.
      shard_bytes: the most data in one file; a larger leaf has a file of its own.
      one: the name of the one file, whatever its size; None names them as models are.

    Raises:
      UserError: the folder holds another layout, or what we did not make.
    """

    atomic = True

    def __init__(
        self,
        uri: str,
        abstract: Mapping[str, jax.ShapeDtypeStruct],
        shard_bytes: int,
        one: str | None = None,
    ):
        self.uri = uri.rstrip("/")
        self.folder = self.uri + PARTIAL
        require_tensor_names(abstract)
        self._shards = shards(abstract, shard_bytes, one)
        self._abstract = dict(abstract)
        self._numbers = {path: f"{n:06d}" for n, path in enumerate(abstract)}
        self._partial = storage.place(self.folder)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "pieces")
        # {leaf's number: {first element: elements}}
        self._pieces: dict[str, dict[int, int]] = {}
        processes.broadcast(self._make)
        self._look()

    def granularity(self, path: str) -> int:
        """Return 1: any piece can be written by itself."""
        return 1

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write elements of a leaf, from `start` on, as pieces of earlier runs were."""
        if not len(values):
            return
        number = self._numbers[path]
        self._piece(number, start).write_bytes(values.tobytes())
        with self._lock:
            self._pieces.setdefault(number, {})[start] = len(values)

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Read back what was written, by whichever process.

        Raises:
          CorruptCheckpoint: some of it was not.
        """
        number, size = self._numbers[path], out.dtype.itemsize
        if not self._covers(number, start, len(out)):
            self._look(number)
        if not self._covers(number, start, len(out)):
            raise errors.CorruptCheckpoint(self.folder, f"{path} was cut short")
        flat = out.view(np.uint8)

        def read(part: tuple[int, int, int]) -> None:
            first, skip, take = part
            got = self._piece(number, first).read_range(skip * size, take * size)
            at = (first + skip - start) * size
            flat[at : at + take * size] = np.frombuffer(got, np.uint8)

        list(self._threads.map(read, self._parts(number, start, len(out))))

    def own_files(self) -> dict[str, dict[str, Any]]:
        """Return what the shards' headers are, and their index."""
        return own_files(self._shards, self._abstract)

    def finish(self, extra_files: Mapping[str, bytes]) -> None:
        """Join the pieces and add files, the last of them at the end; all processes."""
        processes.barrier(f"{self.uri} is written")
        processes.broadcast(lambda: self._publish(extra_files))

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _make(self) -> None:
        unfinished.begin(self._partial, layout(self._shards))

    def _piece(self, number: str, start: int) -> ObjectPath:
        return self._partial / unfinished.PIECES / number / f"{start:015d}"

    def _look(self, only: str = "") -> None:
        """Find what pieces there are: of all leaves, or of one."""
        sizes = {self._numbers[p]: _itemsize(of) for p, of in self._abstract.items()}
        found: dict[str, dict[int, int]] = {}
        for path, length in (self._partial / unfinished.PIECES / only).find().items():
            number = path.parent.name
            found.setdefault(number, {})[int(path.name)] = length // sizes[number]
        with self._lock:
            self._pieces.update(found)

    def _parts(
        self, number: str, start: int, length: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (its start, elements to skip, to take) of each piece in a range."""
        with self._lock:  # other pieces of the leaf are being written
            pieces = sorted(self._pieces.get(number, {}).items())
        for first, count in pieces:
            begin, end = max(first, start), min(first + count, start + length)
            if begin < end:
                yield first, begin - first, end - begin

    def _covers(self, number: str, start: int, length: int) -> bool:
        return sum(take for *_, take in self._parts(number, start, length)) == length

    def _publish(self, extra_files: Mapping[str, bytes]) -> None:
        """Make the folder: small files, shards, and the last of all.

        The index before the shards, which it misses until the last of them is there.
        Stopped in between, all of it is made again.
        """
        self._look()
        place = storage.place(self.uri)
        *small, last = extra_files.items()
        write_auxiliary_files(place, dict(small))
        if len(self._shards) > 1:
            storage.write_bytes(place / INDEX, index(self._shards, self._abstract))
        for shard in self._shards:
            self._join(place, shard)
        name, content = last
        storage.write_bytes(place / name, content)
        unfinished.remove(self._partial)

    def _join(self, place: ObjectPath, shard: Shard) -> None:
        """Have the store make a shard's file of its header and its pieces."""
        header = self._partial / unfinished.JOINED / shard.name / "header"
        header.write_bytes(shard.header)
        parts = [header]
        for path in shard.starts:
            number, length = self._numbers[path], math.prod(self._abstract[path].shape)
            starts = sorted(self._pieces.get(number, {}).items())
            ends = [0, *(first + count for first, count in starts)]
            if ends != [*(first for first, _ in starts), length]:
                text = f"pieces of {path} are missing or overlap"
                raise errors.NotStored(self.folder, text)
            parts += [self._piece(number, first) for first, _ in starts]
        level = 0
        while len(parts) > objects.MOST_COMPOSED:
            parts = self._joined(parts, header.parent / str(level))
            level += 1
        (place / shard.name).compose(parts)
        if (size := (place / shard.name).stat().length) != shard.size:
            text = f"{shard.name} has {size} bytes instead of {shard.size}"
            raise errors.NotStored(self.folder, text)

    def _joined(self, parts: list[ObjectPath], folder: ObjectPath) -> list[ObjectPath]:
        """Return fewer objects of the same bytes."""
        step = objects.MOST_COMPOSED
        groups = [parts[at : at + step] for at in range(0, len(parts), step)]
        made = [folder / f"{n:06d}" for n in range(len(groups))]
        list(self._threads.map(ObjectPath.compose, made, groups))
        return made


def _itemsize(leaf: Any) -> int:
    return np.dtype(leaf.dtype).itemsize
