"""A part of a task's examples on disk: written through seqio, checked, opened.

A part is a folder: ``tokens`` (int32) has the examples end to end, ``bounds`` (int64)
of each its end there and the length of its prompt, and ``part.json`` the facts.
TensorFlow is imported to write one only.
"""

import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.runtime import storage
from merging.runtime.errors import UserError, nearest
from merging.tasks.errors import require_none
from merging.tasks.suites import Suite

MOST_PARTS = 64  # of a task
TOGETHER = 4096  # examples that are read, written and checked at a time
PLAN, _FACTS = "plan.json", "part.json"


class Part(NamedTuple):
    """Part `number` of `count` of a seqio Task's split."""

    name: str
    split: str
    length: int
    number: int
    count: int
    folder: Path

    @property
    def path(self) -> Path:
        """Its own folder."""
        return self.folder / f"part-{self.number:05d}-of-{self.count:05d}"


class Opened(NamedTuple):
    """A part on disk.

    Attributes:
      tokens: int32, all examples end to end.
      bounds: int64 [n, 2]: where each ends in `tokens`, and its prompt's length.
      facts: its count, longest, largest and digest.
    """

    tokens: np.ndarray
    bounds: np.ndarray
    facts: dict[str, int]


def plan(suite: Suite, name: str, split: str, folder: Path) -> int:
    """Return the number of a task's parts: the source's files, if they are several.

    Raises:
      UserError: an unknown split.
    """
    path = folder / PLAN
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


def is_whole(path: Path) -> bool:
    """Return whether a part is there with the bytes that were written; warn if not."""
    if not (path / _FACTS).exists():
        return False
    try:
        part, digest, begin = opened(path), 0, 0
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


def write(suite: Suite, part: Part) -> None:
    """Write a part, which nobody sees before it is whole.

    Raises:
      UserError: an example that is too long, or has an empty answer.
    """
    # A name that no other process has, on whatever machine it runs.
    fresh = part.path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    fresh.mkdir(parents=True)
    try:
        _fill(fresh, suite, part)
        _publish(fresh, part.path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fill(fresh: Path, suite: Suite, part: Part) -> None:
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
    storage.write_json(fresh / _FACTS, facts)


def _publish(fresh: Path, path: Path) -> None:
    """Give a part its name, unless a process that shares the folder was quicker.

    What is there and whole is never removed, as others may be reading it.
    """
    try:
        os.rename(fresh, path)
    except OSError:
        if not path.exists():
            raise
        if not is_whole(path):
            os.rename(path, fresh / "damaged")
            os.rename(fresh, path)
            shutil.rmtree(path / "damaged")


def opened(path: Path) -> Opened:
    """Open a part.

    Raises:
      UserError: it was cut short.
    """
    facts = json.loads((path / _FACTS).read_text())
    tokens, bounds = np.zeros(0, np.int32), np.zeros((0, 2), np.int64)
    if facts["count"]:
        tokens = np.memmap(path / "tokens", np.int32, "r")
        bounds = np.memmap(path / "bounds", np.int64, "r").reshape(-1, 2)
    last = bounds[-1, 0] if len(bounds) else 0
    if len(bounds) != facts["count"] or len(tokens) != last:
        raise UserError(f"{path} was cut short; start again, and it is written again.")
    return Opened(tokens, bounds, facts)


def _read(suite: Suite, part: Part) -> Iterator[tuple[np.ndarray, ...]]:
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
