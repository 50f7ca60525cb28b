"""Training data: written to disk through seqio once, read by number ever after.

A mixture's tasks are written in parts, each a range of the source's own files (seqio's
`ShardInfo`) and each by one of the processes. How many parts there are follows from
the data alone, so example 17 is the same for any number of processes, and any process
can read it without the others: what a step trains on needs no position to be saved.
Texts lie end to end, unpadded; TensorFlow is imported to write them only.
"""

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.tasks import parts
from merging.tasks.sampling import MixtureSampler
from merging.tasks.suites import Suite


class TokenArrays(NamedTuple):
    """Sequences to train on.

    Attributes:
      tokens: int32 [N, T], without BOS, padded on the right with 0.
      loss_weights: [N, T]: 1 on the answer and its end mark, for pretraining on the
        whole text; elsewhere 0. bool, or float32 where they come from `Stored`.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray


class Stored:
    """A mixture on disk, its tasks one after the other.

    Args:
      name: of the mixture, for errors.
      folders: of each task's parts.
      rates: of the tasks.
      most: the length that no example exceeds.

    Attributes:
      count: examples.
      length: of their rows: the longest example's, rounded up to a multiple of 16.
      largest: the largest token id.
      digest: CRC-32 of all that was written, and of the rates.

    Raises:
      UserError: no examples, or a part that was cut short.
    """

    def __init__(
        self, name: str, folders: list[list[Path]], rates: list[float], most: int
    ):
        self._parts = [parts.opened(path) for paths in folders for path in paths]
        facts = [part.facts for part in self._parts]
        counts = [fact["count"] for fact in facts]
        if not sum(counts):
            raise UserError(f"dataset {name} is empty")
        first = np.cumsum([0, *map(len, folders)])
        sizes = [sum(counts[a:b]) for a, b in zip(first, first[1:], strict=False)]
        self._sampler = MixtureSampler(tuple(sizes), tuple(rates))
        self._ends = np.cumsum(counts)
        self.count = int(self._ends[-1])
        self.length = min(-(-max(f["longest"] for f in facts) // 16) * 16, most)
        self.largest = max(fact["largest"] for fact in facts)
        digests = [fact["digest"] for fact in facts]
        self.digest = zlib.crc32(repr((digests, rates)).encode())

    def draw(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return which examples are the mixture's start-th to the (stop - 1)-th."""
        return self._sampler.rows(seed, start, stop)

    def take(self, rows: np.ndarray) -> TokenArrays:
        """Return the examples ``rows`` [n], in their order, as arrays [n, length]."""
        tokens = np.zeros((len(rows), self.length), np.int32)
        weights = np.zeros((len(rows), self.length), np.float32)
        position = np.arange(self.length)
        for part, mine, begins, ends, prompts in self._bounds(rows):
            row, slot = np.nonzero(position < (ends - begins)[:, None])
            tokens[mine[row], slot] = part.tokens[begins[row] + slot]
            answer = position >= prompts[:, None]
            weights[mine] = answer & (position < (ends - begins)[:, None])
        return TokenArrays(tokens, weights)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return how many tokens each of the examples ``rows`` [n] has."""
        found = np.zeros(len(rows), np.int64)
        for _, mine, begins, ends, _ in self._bounds(rows):
            found[mine] = ends - begins
        return found

    def _bounds(self, rows: np.ndarray) -> Iterator[tuple]:
        """Yield each part, which rows are its, and their begins, ends and prompts."""
        places = np.searchsorted(self._ends, rows, side="right")
        for place in np.unique(places):
            part, mine = self._parts[place], np.flatnonzero(places == place)
            number = rows[mine] - (self._ends[place] - len(part.bounds))
            ends, prompts = part.bounds[number].T
            begins = np.where(number > 0, part.bounds[number - 1, 0], 0)
            yield part, mine, begins, ends, prompts


def store(
    suite: Suite, what: str, split: str, length: int, cache_dir: storage.Folder | str
) -> Stored:
    """Return training data of a suite, written now unless it is there.

    Called by all processes, each of which writes its share of what is missing; those
    that are stopped meanwhile leave whole parts, which are not written again. A part
    that is damaged is, with a warning.

    Args:
      suite: whose data.
      what: "pretrain", "instruct", "multitask", a held-in category or a dataset; its
        datasets under all their prompt templates are mixed by the suite's rates.
      split: "train", "validation" or "test" (the first two have no "test").
      length: the most tokens of an example; a longer one is an error, or where a
        suite's texts are real ones, loses tokens at its begin.
      cache_dir: where it is kept, on storage that all processes see; of an object
        store, each machine reads a copy (`storage.scratch`).

    Raises:
      UserError: an unknown name or split, no examples, an answer without a token, or
        a sequence longer than ``length``, with the examples' numbers.
    """
    from merging.runtime import processes  # JAX, which nothing else here needs

    rates = suite.mixture(what)
    key = storage.digest(suite.digest, split, length)
    root = storage.place(cache_dir) / "stored"
    here = storage.scratch(root)
    folders = {name: here / f"{name}-{split}-{key}" for name in rates}
    wanted = {folder.name for folder in folders.values()}
    storage.fetch(root, wanted)
    counts = processes.broadcast(
        lambda: [_plan(suite, n, split, f, root) for n, f in folders.items()]
    )
    planned = [
        [parts.Part(name, split, length, i, count, folder) for i in range(count)]
        for (name, folder), count in zip(folders.items(), counts, strict=True)
    ]
    every = [part for of_task in planned for part in of_task]
    for part in every[processes.index() :: processes.count()]:
        if not parts.is_whole(part.path):
            parts.write(suite, part)
            storage.keep(root, part.path)
    processes.barrier(f"{what} ({split}) is stored")
    storage.fetch(root, wanted)  # what other machines have written
    paths = [[part.path for part in of_task] for of_task in planned]
    return Stored(f"{what} ({split})", paths, list(rates.values()), length)


def _plan(
    suite: Suite, name: str, split: str, folder: Path, root: storage.Folder
) -> int:
    """Return the number of a task's parts, and keep it where they are."""
    known = (folder / parts.PLAN).exists()
    count = parts.plan(suite, name, split, folder)
    if not known:
        storage.keep(root, folder / parts.PLAN)
    return count


def materialise(
    suite: Suite,
    what: str,
    split: str,
    length: int,
    *,
    cache_dir: storage.Folder | str | None = None,
) -> TokenArrays:
    """Return training data of a suite in memory: every example of `store`, once.

    Args:
      suite, what, split: as `store` says.
      length: T, the most tokens of an example.
      cache_dir: where to keep the data; with it there, TensorFlow isn't imported.

    Raises:
      UserError: as `store`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = store(suite, what, split, length, cache_dir or scratch)
        tokens = np.zeros((found.count, length), np.int32)
        weights = np.zeros((found.count, length), bool)
        for start in range(0, found.count, parts.TOGETHER):
            rows = np.arange(start, min(start + parts.TOGETHER, found.count))
            some = found.take(rows)
            tokens[rows, : found.length] = some.tokens
            weights[rows, : found.length] = some.loss_weights
    return TokenArrays(tokens, weights)
