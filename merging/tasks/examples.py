"""Training data: written to disk through seqio once, read by number ever after.

A mixture's tasks are written in parts, each a range of the source's own files (seqio's
`ShardInfo`) and each by one of the processes. How many parts there are follows from
the data alone, so example 17 is the same for any number of processes, and any process
can read it without the others: what a step trains on needs no position to be saved.
Texts lie end to end, unpadded; TensorFlow is imported to write them only.
"""

import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.runtime import storage
from merging.runtime.errors import UserError, nearest
from merging.tasks.errors import require_none
from merging.tasks.sampling import MixtureSampler
from merging.tasks.suites import Suite

MOST_PARTS = 64  # of a task
TOGETHER = 4096  # examples that are read, written and checked at a time
_PART, _PLAN = "part.json", "plan.json"


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
        self._parts = [_opened(folder) for parts in folders for folder in parts]
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
        places = np.searchsorted(self._ends, rows, side="right")
        for place in np.unique(places):
            part, mine = self._parts[place], np.flatnonzero(places == place)
            number = rows[mine] - (self._ends[place] - len(part.bounds))
            ends, prompts = part.bounds[number].T[:, :, None]
            begins = np.where(number > 0, part.bounds[number - 1, 0], 0)[:, None]
            row, slot = np.nonzero(position < ends - begins)
            tokens[mine[row], slot] = part.tokens[begins[row, 0] + slot]
            weights[mine] = (position >= prompts) & (position < ends - begins)
        return TokenArrays(tokens, weights)


def store(
    suite: Suite, what: str, split: str, length: int, cache_dir: Path | str
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
      cache_dir: where it is kept, on storage that all processes see.

    Raises:
      UserError: an unknown name or split, no examples, an answer without a token, or
        a sequence longer than ``length``, with the examples' numbers.
    """
    from merging.runtime import processes  # JAX, which nothing else here needs

    rates = suite.mixture(what)
    key = storage.digest(suite.digest, split, length)
    root = Path(cache_dir) / "stored"
    parts = processes.broadcast(
        lambda: [_plan(suite, n, split, root / f"{n}-{split}-{key}") for n in rates]
    )
    every = [
        _Part(name, split, length, number, count, root / f"{name}-{split}-{key}")
        for name, count in zip(rates, parts, strict=True)
        for number in range(count)
    ]
    for part in every[processes.index() :: processes.count()]:
        if not _is_whole(part.path):
            _write(suite, part)
    processes.barrier(f"{what} ({split}) is stored")
    folders = [[part.path for part in every if part.name == name] for name in rates]
    return Stored(f"{what} ({split})", folders, list(rates.values()), length)


def materialise(
    suite: Suite,
    what: str,
    split: str,
    length: int,
    *,
    cache_dir: Path | str | None = None,
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
        for start in range(0, found.count, TOGETHER):
            rows = np.arange(start, min(start + TOGETHER, found.count))
            tokens[rows, : found.length], weights[rows, : found.length] = found.take(
                rows
            )
    return TokenArrays(tokens, weights)


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


def _is_whole(path: Path) -> bool:
    """Return whether a part is there with the bytes that were written; warn if not."""
    if not (path / _PART).exists():
        return False
    try:
        part, digest, begin = _opened(path), 0, 0
        for start in range(0, len(part.bounds), TOGETHER):
            rows = part.bounds[start : start + TOGETHER]
            digest = zlib.crc32(part.tokens[begin : rows[-1, 0]], digest)
            digest, begin = zlib.crc32(rows, digest), int(rows[-1, 0])
        if digest != part.facts["digest"]:
            raise ValueError("other bytes than were written")
    except (ValueError, OSError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is not readable, making it again: {error}", stacklevel=2)
        return False
    return True


def _plan(suite: Suite, name: str, split: str, folder: Path) -> int:
    """Return the number of parts: the source's files, if they are several."""
    path = folder / _PLAN
    if path.exists():
        return json.loads(path.read_text())["parts"]
    from merging.tasks.registration import register, seqio

    register(suite)
    task = seqio.TaskRegistry.get(name)
    if split not in task.splits:
        raise nearest(f"split of {_shown(suite, name)}", split, task.splits)
    count = min(len(task.source.list_shards(split)), MOST_PARTS)
    storage.write_json(path, {"parts": count})
    return count


def _write(suite: Suite, part: _Part) -> None:
    fresh = part.path.with_suffix(f".{os.getpid()}.tmp")
    for stale in (fresh, part.path):
        shutil.rmtree(stale, ignore_errors=True)
    fresh.mkdir(parents=True)
    end = count = longest = largest = digest = 0
    with open(fresh / "tokens", "wb") as tokens, open(fresh / "bounds", "wb") as bounds:
        for text, sizes, prompts in _read(suite, part):
            ends = end + np.cumsum(sizes)
            rows = np.stack([ends, prompts], axis=1).astype(np.int64)
            tokens.write(text.tobytes())
            bounds.write(rows.tobytes())
            digest = zlib.crc32(rows, zlib.crc32(text, digest))
            end, count = int(ends[-1]), count + len(sizes)
            longest = max(longest, int(sizes.max()))
            largest = max(largest, int(text.max()))
        for file in (tokens, bounds):
            file.flush()
            os.fsync(file.fileno())
    facts = dict(count=count, longest=longest, largest=largest, digest=digest)
    storage.write_json(fresh / _PART, facts)
    try:
        os.rename(fresh, part.path)
    except OSError:
        # A process that shares the folder was quicker, with the same bytes.
        if not (part.path / _PART).exists():
            raise
        shutil.rmtree(fresh)


def _read(suite: Suite, part: _Part) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield a part's examples, some at a time: texts end to end, sizes, prompts' sizes.

    Raises:
      UserError: an example that is longer than ``part.length``, unless the suite's
        texts are cut; an answer without a token; with their numbers.
    """
    from merging.tasks.registration import as_written, register, seqio

    register(suite)
    task = seqio.TaskRegistry.get(part.name)
    several = part.count > 1
    shard = seqio.ShardInfo(part.number, part.count) if several else None
    read = as_written(task.get_dataset)(
        split=part.split, shuffle=False, seed=0, num_epochs=1, shard_info=shard
    )
    where = f", part {part.number} of {part.count}" if several else ""
    name = f"{_shown(suite, part.name)} ({part.split}{where})"
    first = 0
    for batch in read.ragged_batch(TOGETHER):
        inputs, prompts = _ragged(batch["inputs"])
        targets, answers = _ragged(batch["targets"])
        if suite.source.truncates:
            inputs, prompts = _cut(inputs, prompts, part.length - answers)
        sizes = prompts + answers
        errors = [
            f"example {first + i}: {sizes[i]} tokens, more than the {part.length} "
            "allowed"
            for i in np.flatnonzero(sizes > part.length)
        ]
        # The end mark is one of the target's tokens.
        errors += [
            f"example {first + i}: empty answer" for i in np.flatnonzero(answers < 2)
        ]
        require_none(errors, name)
        yield _interleaved(inputs, prompts, targets, answers), sizes, prompts
        first += len(sizes)


def _ragged(values: Any) -> tuple[np.ndarray, np.ndarray]:
    return values.flat_values.numpy(), values.row_lengths().numpy()


def _cut(values, sizes, room) -> tuple[np.ndarray, np.ndarray]:
    """Cut every sequence from the left to the room that there is."""
    kept = np.minimum(sizes, np.maximum(room, 0))
    first = np.repeat(np.cumsum(sizes) - kept, sizes)
    return values[np.arange(len(values)) >= first], kept


def _interleaved(inputs, prompts, targets, answers) -> np.ndarray:
    """Return prompt, answer, prompt, answer, … as int32."""
    runs = np.stack([prompts, answers], axis=1).reshape(-1)
    in_answer = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    text = np.empty(len(in_answer), np.int32)
    text[~in_answer], text[in_answer] = inputs, targets
    return text


def _shown(suite: Suite, name: str) -> str:
    """Return what the user calls a seqio Task of the suite."""
    return name.removeprefix(f"{suite.prefix}_")
