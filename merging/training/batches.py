"""Examples, which of them make up the batch of a step, and reading those in time."""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from merging.runtime import sharding
from merging.runtime.errors import UserError
from merging.tasks.sampling import permuted
from merging.training import packing

TOGETHER = 2**16  # sequences whose rows are counted at a time, before training


class Examples(NamedTuple):
    """Sequences to learn from.

    Attributes:
      tokens: ids [N, T] without BOS, rows padded on the right with 0.
      loss_weights: [N, T], the weight of predicting each token; 0 on padding.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray


class Batches(NamedTuple):
    """What several steps learn from, over the mesh.

    Attributes:
      tokens: ids [K, R, T], as `Examples` has them.
      loss_weights: [K, R, T].
      segments: int32 [K, R, T], which sequence of its row a token belongs to, -1 for
        padding; None where each row is one.
    """

    tokens: Any
    loss_weights: Any
    segments: Any = None


class Source(Protocol):
    """Examples that are read when their turn comes, as those of `tasks.store`.

    Attributes:
      count: N.
      length: T, a multiple of 16 where the examples' length allows it.
      largest: the largest token id.
      digest: a number of 32 bits that tells these examples from others.
    """

    count: int
    length: int
    largest: int
    digest: int

    def draw(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return which examples are the start-th to the (stop - 1)-th to learn from.

        A pure function of its arguments, so that a step needs no other to be known.
        """

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return after how many tokens nothing matters, of the examples ``rows``."""

    def take(self, rows: np.ndarray) -> Examples:
        """Return the examples ``rows`` [n]; all three may run in another thread."""


class InMemory(NamedTuple):
    """A source whose examples are all in memory.

    Attributes:
      examples: they.
      ends: [N], where the last token that is learned ends.
      digest: as of any source.
    """

    examples: Examples
    ends: np.ndarray
    digest: int

    @property
    def count(self) -> int:
        """N."""
        return len(self.examples.tokens)

    @property
    def length(self) -> int:
        """T."""
        return self.examples.tokens.shape[1]

    def draw(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return examples of permutations of all, one for each epoch."""
        return permuted(seed, 0, self.count, start, stop)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return where the last token that is learned ends, of each: [n]."""
        return self.ends[rows]

    def take(self, rows: np.ndarray) -> Examples:
        """Return the examples ``rows`` [n]."""
        return Examples(*(array[rows] for array in self.examples))


def opened(examples: Examples | Source, vocab_size: int) -> Source:
    """Return examples as a source; arrays are cut to the longest row's multiple of 16.

    Raises:
      UserError: no examples, shapes that differ, ids outside the vocabulary, or
        nothing to learn.
    """
    if isinstance(examples, tuple):
        return _in_memory(examples, vocab_size)
    _require_ids(0, examples.largest, vocab_size)
    return examples


def _in_memory(examples: Examples, vocab_size: int) -> InMemory:
    tokens = np.asarray(examples.tokens, np.int32)
    weights = np.asarray(examples.loss_weights, np.float32)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape != weights.shape:
        raise UserError(
            "examples need tokens and loss_weights of one shape [N, T] with N > 0, got "
            f"{tokens.shape} and {weights.shape}."
        )
    _require_ids(tokens.min(), tokens.max(), vocab_size)
    if not (weights.any() and np.isfinite(weights).all()):
        raise UserError("loss weights must be finite, and not all of them 0.")
    # Tokens after the last one that is learned influence nothing.
    after = np.argmax(weights[:, ::-1] != 0, axis=1)
    ends = np.where(weights.any(axis=1), weights.shape[1] - after, 0)
    length = min(-(-int(ends.max()) // 16) * 16, tokens.shape[1])
    kept = Examples(*(np.ascontiguousarray(x[:, :length]) for x in (tokens, weights)))
    digest = zlib.crc32(kept.loss_weights, zlib.crc32(kept.tokens))
    return InMemory(kept, ends, digest)


def _require_ids(smallest: int, largest: int, vocab_size: int) -> None:
    if smallest < 0 or largest >= vocab_size:
        raise UserError(
            f"token ids run from {smallest} to {largest}, but the model's "
            f"vocabulary from 0 to {vocab_size - 1}."
        )


class Loader:
    """The batches of coming steps, of which this process reads its own rows.

    Which examples a batch has depends on the seed and the step only, so that it is the
    same for any number of processes, and a resumed run needs no more than its step.
    Short ones share rows (`packing`), if that saves any.

    Args:
      source: the examples.
      batch_size: sequences a step, of all processes together.
      seed: of their order.
      mesh: the devices that share a batch's rows.
      steps: how many there are; 0 if `batches` is not asked for.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        mesh: Mesh | None,
        steps: int = 0,
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._mesh, self._mine = mesh, sharding.rows_here(mesh, batch_size)
        self._thread = ThreadPoolExecutor(1, "examples")
        self._coming: dict[tuple[int, int], Any] = {}
        self._rows = self._rows_of(steps)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def prepare(self, start: int, stop: int) -> None:
        """Begin to read the batches of steps start … stop - 1, while others train."""
        if start < stop and (start, stop) not in self._coming:
            self._coming[start, stop] = self._thread.submit(self._read, start, stop)

    def batches(self, start: int, stop: int, room: int) -> Batches:
        """Return the batches of these steps, padded to ``room``, over the mesh."""
        self.prepare(start, stop)
        found = self._coming.pop((start, stop)).result()
        self._coming.clear()
        pad = ((0, room - (stop - start)), (0, 0), (0, 0))

        def put(array: np.ndarray) -> Any:
            return sharding.place_rows(self._mesh, np.pad(array, pad), self._rows, 1)

        return Batches(*(None if array is None else put(array) for array in found))

    @property
    def whole(self) -> int:
        """How many batches `in_order` yields."""
        return -(-self._source.count // self._batch_size)

    def in_order(self) -> Iterator[Examples]:
        """Yield all examples in full batches, the last filled with weightless rows."""
        for start in range(0, self._source.count, self._batch_size):
            wanted = start + self._mine
            real = wanted < self._source.count
            tokens, weights = self._source.take(np.where(real, wanted, 0))
            found = tokens, weights * real[:, None]
            rows = self._batch_size
            yield Examples(*(sharding.place_rows(self._mesh, x, rows) for x in found))

    def _rows_of(self, steps: int) -> int:
        """Return the rows of a step's batch: fewer than its sequences, or as many.

        All steps are looked at, some at a time, until one needs a row for each.
        """
        parts = 1 if self._mesh is None else sharding.batch_parts(self._mesh)
        rows, some = parts, max(TOGETHER // self._batch_size, 1)
        for start in range(0, steps, some):
            drawn = self._drawn(start, min(start + some, steps))
            lengths = self._source.lengths(drawn.reshape(-1)).reshape(drawn.shape)
            needed = packing.rows_needed(lengths, self._source.length)
            rows = max(rows, -(-needed // parts) * parts)
            if rows >= self._batch_size:
                break
        return min(rows, self._batch_size)

    def _drawn(self, start: int, stop: int) -> np.ndarray:
        """Return the examples of these steps' batches: [K, B]."""
        size = self._batch_size
        drawn = self._source.draw(self._seed, start * size, stop * size)
        return drawn.reshape(-1, size)

    def _read(self, start: int, stop: int) -> Batches:
        drawn = self._drawn(start, stop)
        if self._rows < self._batch_size:
            return self._packed(drawn)
        rows = drawn[:, self._mine]
        found = self._source.take(rows.reshape(-1))
        return Batches(*(array.reshape(*rows.shape, -1) for array in found))

    def _packed(self, drawn: np.ndarray) -> Batches:
        """Return the batches of steps whose sequences share rows."""
        length, mine = self._source.length, sharding.rows_here(self._mesh, self._rows)
        shape = (len(drawn), len(mine), length)
        tokens, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        segments = np.full(shape, -1, np.int32)
        for step, batch in enumerate(drawn):
            sizes = self._source.lengths(batch)
            places = packing.placed(sizes, length)
            here = np.flatnonzero(np.isin(places[:, 0], mine))
            found = self._source.take(batch[here])
            for i, sequence in enumerate(here):
                size, (row, begin) = sizes[sequence], places[sequence]
                where = step, np.searchsorted(mine, row), slice(begin, begin + size)
                tokens[where] = found.tokens[i, :size]
                weights[where] = found.loss_weights[i, :size]
                segments[where] = sequence
        return Batches(tokens, weights, segments)
