"""Training data too large for memory: written to disk once, read by number ever after.

A mixture's tasks are written in parts, each a range of the source's own files (seqio's
`ShardInfo`) and each by one of the processes. How many parts there are follows from
the data alone, so example 17 is the same for any number of processes, and any process
can read it without the others: what a step trains on needs no position to be saved.
Texts lie end to end, unpadded; TensorFlow is imported to write them only.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merging.runtime.errors import UserError, nearest
from merging.tasks import arrays, cache
from merging.tasks.sampling import Drawing
from merging.tasks.suites import Suite

MOST_PARTS = 64  # of a task
_PART, _PLAN = "part.json", "plan.json"


class Stored:
    """A mixture on disk, its tasks one after the other.

    Args:
      folders: of each task's parts.
      rates: of the tasks.
      most: the length that no example exceeds.

    Attributes:
      count: examples.
      length: of their rows: the longest example's, rounded up to a multiple of 16.
      largest: the largest token id.
      digest: CRC-32 of all that was written, and of the rates.
    """

    def __init__(self, folders: list[list[Path]], rates: list[float], most: int):
        self._parts = [_opened(folder) for parts in folders for folder in parts]
        facts = [part.facts for part in self._parts]
        counts = [fact["count"] for fact in facts]
        first = np.cumsum([0, *map(len, folders)])
        sizes = [sum(counts[a:b]) for a, b in zip(first, first[1:], strict=False)]
        self._drawing = Drawing(tuple(sizes), tuple(rates))
        self._ends = np.cumsum(counts)
        self.count = int(self._ends[-1])
        self.length = min(-(-max(f["longest"] for f in facts) // 16) * 16, most)
        self.largest = max(fact["largest"] for fact in facts)
        digests = [fact["digest"] for fact in facts]
        self.digest = zlib.crc32(repr((digests, rates)).encode())

    def draw(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return which examples are the mixture's start-th to the (stop - 1)-th."""
        return self._drawing.rows(seed, start, stop)

    def take(self, rows: np.ndarray) -> arrays.TokenArrays:
        """Return the examples ``rows`` [n], in their order, as arrays [n, length]."""
        tokens = np.zeros((len(rows), self.length), np.int32)
        weights = np.zeros((len(rows), self.length), np.float32)
        places = np.searchsorted(self._ends, rows, side="right")
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            part = self._parts[place]
            row -= self._ends[place - 1] if place else 0
            start = part.bounds[row - 1, 0] if row else 0
            end, prompt = part.bounds[row]
            tokens[i, : end - start] = part.tokens[start:end]
            weights[i, prompt : end - start] = 1
        return arrays.TokenArrays(tokens, weights)


def store(
    suite: Suite, what: str, split: str, length: int, cache_dir: Path | str
) -> Stored:
    """Return training data of a suite, written now unless it is there.

    Called by all processes, each of which writes its share of what is missing; those
    that are stopped meanwhile leave whole parts, which are not written again.

    Args:
      suite: whose data.
      what: "pretrain", "instruct", "multitask", a held-in category or a dataset; its
        datasets under all their wordings are mixed by the suite's rates.
      split: "train", "validation" or "test" (the first two have no "test").
      length: the most tokens of an example, see `materialise`.
      cache_dir: where it is kept, on storage that all processes see.

    Raises:
      UserError: an unknown name or split, no examples, an answer without a token, or
        a sequence longer than ``length``.
    """
    from merging.runtime import processes  # JAX, which nothing else here needs

    rates = _tasks(suite, what)
    key = cache.key(suite.digest, split, length)
    folders = [Path(cache_dir) / "stored" / f"{name}-{split}-{key}" for name in rates]
    planned = processes.broadcast(
        lambda: [_plan(suite, n, split, f) for n, f in zip(rates, folders, strict=True)]
    )
    parts = [
        [_Part(name, split, length, number, count, folder) for number in range(count)]
        for name, folder, count in zip(rates, folders, planned, strict=True)
    ]
    every = [part for of_task in parts for part in of_task]
    for part in every[processes.index() :: processes.count()]:
        if not (part.path / _PART).exists():
            _write(suite, part)
    processes.barrier(f"{what} ({split}) is stored")
    paths = [[part.path for part in of_task] for of_task in parts]
    return Stored(paths, list(rates.values()), length)


class _Part(NamedTuple):
    """Part `number` of `count` of a seqio Task's split."""

    name: str
    split: str
    length: int
    number: int
    count: int
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"part-{self.number:05d}-of-{self.count:05d}"


class _Opened(NamedTuple):
    """A part on disk.

    Attributes:
      tokens: int32, all examples end to end.
      bounds: int64 [n, 2]: where each ends in `tokens`, and its prompt's length.
      facts: its count, longest, largest and digest.
    """

    tokens: np.ndarray
    bounds: np.ndarray
    facts: dict[str, int]


def _opened(path: Path) -> _Opened:
    facts = json.loads((path / _PART).read_text())
    tokens, bounds = np.zeros(0, np.int32), np.zeros((0, 2), np.int64)
    if facts["count"]:
        tokens = np.memmap(path / "tokens", np.int32, "r")
        bounds = np.memmap(path / "bounds", np.int64, "r").reshape(-1, 2)
    last = bounds[-1, 0] if len(bounds) else 0
    if len(bounds) != facts["count"] or len(tokens) != last:
        raise UserError(f"{path} was cut short; delete it, and it is written again.")
    return _Opened(tokens, bounds, facts)


def _tasks(suite: Suite, what: str) -> dict[str, float]:
    """Return the seqio Tasks that are mixed, and the rate of each."""
    datasets = suite.members(what)
    if what in {d.name for d in suite.datasets}:
        datasets = (what,)
    if not datasets:
        return {suite.training(what): 1.0}
    return {
        suite.task(dataset, prompt): suite.material.rate(dataset, prompt)
        for dataset in datasets
        for prompt in suite.material.prompts(dataset)
    }


def _plan(suite: Suite, name: str, split: str, folder: Path) -> int:
    """Return the number of parts: the source's files, if they are several."""
    path = folder / _PLAN
    if path.exists():
        return json.loads(path.read_text())["parts"]
    from merging.tasks.registration import register, seqio

    register(suite)
    task = seqio.TaskRegistry.get(name)
    if split not in task.splits:
        raise nearest(f"split of {name}", split, task.splits)
    count = min(len(task.source.list_shards(split)), MOST_PARTS)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"parts": count}))
    os.replace(fresh, path)
    return count


def _write(suite: Suite, part: _Part) -> None:
    fresh = part.path.with_suffix(f".{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    end = count = longest = largest = digest = 0
    with open(fresh / "tokens", "wb") as tokens, open(fresh / "bounds", "wb") as bounds:
        for found in _read(suite, part):
            lengths = found.starts + found.sizes
            ends = end + np.cumsum(lengths)
            text = _interleaved(found)
            rows = np.stack([ends, found.starts], axis=1).astype(np.int64)
            tokens.write(text.tobytes())
            bounds.write(rows.tobytes())
            digest = zlib.crc32(rows, zlib.crc32(text, digest))
            end, count = int(ends[-1]), count + len(lengths)
            longest = max(longest, int(lengths.max()))
            largest = max(largest, int(text.max()))
        for file in (tokens, bounds):
            file.flush()
            os.fsync(file.fileno())
    facts = dict(count=count, longest=longest, largest=largest, digest=digest)
    (fresh / _PART).write_text(json.dumps(facts))
    shutil.rmtree(part.path, ignore_errors=True)
    os.rename(fresh, part.path)


def _interleaved(found: arrays.Pairs) -> np.ndarray:
    """Return prompt, answer, prompt, answer, … as int32."""
    runs = np.stack([found.starts, found.sizes], axis=1).reshape(-1)
    in_answer = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    text = np.empty(len(in_answer), np.int32)
    text[~in_answer], text[in_answer] = found.inputs, found.targets
    return text


def _read(suite: Suite, part: _Part) -> Iterator[arrays.Pairs]:
    """Yield the part's examples, some at a time."""
    from merging.tasks.registration import as_written, register, seqio

    register(suite)
    task = seqio.TaskRegistry.get(part.name)
    shard = seqio.ShardInfo(part.number, part.count) if part.count > 1 else None
    read = as_written(task.get_dataset)(
        split=part.split, shuffle=False, seed=0, num_epochs=1, shard_info=shard
    )
    for batch in read.ragged_batch(4096):
        yield arrays.pairs(suite, [batch], part.length, f"{part.name} ({part.split})")
