"""What a merge has done so far, kept beside its output: a stopped one goes on.

Everything lies in the folder `.merge` of the unfinished output and goes when it is
published. A line is written after the bytes it speaks of, so after a kill a line that
is there tells the truth, and one that was cut in half is no line. After a power cut
the bytes may be gone although the line is there: so a line has their checksum, and who
goes on reads them back and holds them against it (`blocks.verified`).

In an object store, which appends to nothing, each line is an object.
"""

import contextlib
import itertools
import json
import threading
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.checkpoints import errors
from merging.checkpoints.unfinished import JOURNAL
from merging.runtime import objects, processes, storage
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder

# Of what a merge depends on: when its inputs were changed last.
STAMPS = "inputs' files"
_MERGE = "merge.json"


class Elected(NamedTuple):
    """The votes on a block's signs, and what it would be under the other majority.

    Attributes:
      positive: the majority under which the block was merged.
      ballot: elements elected positive less those elected negative.
      positions: uint32, in the block: elements whose votes cancel.
      values: the output's dtype: what they are under the other majority.
    """

    positive: bool = True
    ballot: int = 0
    positions: np.ndarray = np.zeros(0, np.uint32)
    values: np.ndarray = np.zeros(0, np.uint32)


class Guessed(NamedTuple):
    """Under which states a block was merged while the pass to find them went on.

    Attributes:
      states: their digest (`speculation.digest`); "" if they had been found.
      counted: of each search of the pass, by its number, what the block adds: elements
        in its window, and above it.
    """

    states: str = ""
    counted: Sequence[Sequence[int]] = ()


class Done(NamedTuple):
    """A block that was merged and written.

    Attributes:
      number: its place in the plan.
      checksum: of the bytes written.
      positive, ballot: as `Elected` has them.
      ties: how many elements wait for the model's majority.
      file, start: where those are kept.
      ties_checksum: of what is kept of them.
      states, counted: as `Guessed` has them.
    """

    number: int
    checksum: int
    positive: bool
    ballot: int
    ties: int
    file: str
    start: int
    ties_checksum: int
    states: str = ""
    counted: Sequence[Sequence[int]] = ()


class Journal:
    """The journal of one merge; all its processes write, each in files of its own.

    Attributes:
      done: this process's finished blocks, by number: those of this run, and of
        earlier ones those that were found whole.

    Args:
      output: the unfinished output's folder.
      merge: everything that the result's bytes depend on, as plain JSON.

    Raises:
      UserError: the folder holds the unfinished output of another merge.
    """

    def __init__(self, output: str, merge: Mapping[str, Any]):
        self._folder = storage.place(output) / JOURNAL
        self._process = processes.index()
        self._lock = threading.Lock()
        processes.broadcast(lambda: self._begin(merge))
        self._numbers = itertools.count()
        lines = processes.broadcast(lambda: self._lines("answers.jsonl"))
        self._answers = {line["name"]: line for line in lines}
        self._ties_name = f"ties.{self._process}.bin"
        self.done: dict[int, Done] = {}

    def answers(self, name: str, asked: Mapping[int, Any]) -> dict[int, Any] | None:
        """Return what the very same was answered before, by expert, or None.

        Args:
          name: of the stage and turn.
          asked: {expert: what, as plain JSON}.
        """
        kept = self._answers.get(name)
        if kept is None or kept["asked"] != _as_json(asked):
            return None
        return {int(expert): reply for expert, reply in kept["answers"].items()}

    def keep_answers(
        self, name: str, asked: Mapping[int, Any], answers: Mapping[int, Any]
    ) -> None:
        """Write down what was asked in one turn, and its answers."""
        if asked and processes.is_first():
            record = {"name": name, "asked": asked, "answers": answers}
            self._append("answers.jsonl", record)

    def records(self) -> list[Done]:
        """Return what all processes wrote down of finished blocks, in earlier runs."""
        return [Done(**line) for line in self._lines("blocks.*.jsonl")]

    def keep_block(
        self,
        number: int,
        checksum: int,
        elected: Elected,
        guessed: Guessed = Guessed(),  # noqa: B008
    ) -> None:
        """Write down a finished block, and what to put under the other majority.

        Args:
          number: its place in the plan.
          checksum: of its bytes.
          elected: its votes.
          guessed: what it was merged under, if that was not known yet.
        """
        positive, ballot, positions, values = elected
        start, kept = 0, positions.tobytes() + values.tobytes()
        name, ties = self._ties_name, len(positions)
        if kept:
            name, start = self._add(self._ties_name, kept)
        votes = positive, ballot, ties
        where = name, start, zlib.crc32(kept)
        done = Done(number, checksum, *votes, *where, *guessed)
        self._append(f"blocks.{self._process}.jsonl", done._asdict())
        self.done[number] = done

    def ties(self, done: Done, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the positions and values that `keep_block` was given; None if lost."""
        size = (4 + dtype.itemsize) * done.ties
        kept = b""
        if size:
            with contextlib.suppress(FileNotFoundError):
                kept = _range(self._folder / done.file, done.start, size)
        if len(kept) != size or zlib.crc32(kept) != done.ties_checksum:
            return None
        positions = np.frombuffer(kept[: 4 * done.ties], np.uint32)
        return positions, np.frombuffer(kept[4 * done.ties :], dtype)

    def keep_settled(self, number: int, checksum: int) -> None:
        """Write down a block's checksum after the majority was applied to it."""
        self._append(f"settled.{self._process}.jsonl", [number, checksum])

    def settled(self) -> dict[int, int]:
        """Return {number: checksum} of what all processes wrote down of those."""
        return {number: sum_ for number, sum_ in self._lines("settled.*.jsonl")}

    def forget_blocks(self) -> None:
        """Have all blocks done over: of what was written, the disk has lost some."""
        for path in self._files("blocks.*.jsonl"):
            path.unlink(missing_ok=True)

    def keep_negative(self, methods: Sequence[int]) -> None:
        """Write down which methods' majority is negative; blocks change once more."""
        if processes.is_first():
            self._append("negative.jsonl", list(methods))
        processes.barrier("the majority is written")

    def negative(self) -> list[int] | None:
        """Return what `keep_negative` was given, if an earlier run got as far."""
        lines = processes.broadcast(lambda: self._lines("negative.jsonl"))
        return lines[-1] if lines else None

    def keep_digests(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Put this process's digests together with the others'."""
        name = f"digests.{self._process}.json"
        storage.write_bytes(self._folder / name, json.dumps(dict(digests)).encode())
        processes.barrier("digests are written")
        found: dict[str, str] = {}
        for process in range(processes.count()):
            text = (self._folder / f"digests.{process}.json").read_text()
            found |= json.loads(text)
        return found

    def _begin(self, merge: Mapping[str, Any]) -> None:
        path = self._folder / _MERGE
        with errors.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            storage.write_json(path, merge)
            return
        before = json.loads(path.read_text())
        merge = _as_json(merge)
        changed = sorted(
            key
            for key in merge.keys() | before.keys()
            if merge.get(key) != before.get(key)
        )
        if changed == [STAMPS]:
            self._begin_anew(merge)
        elif changed:
            raise UserError(
                f"{self._folder.parent} holds the unfinished output of another merge: "
                f"{', '.join(changed)} differ. Delete that folder to start anew, give "
                "the same settings to go on with it, or choose another output."
            )

    def _begin_anew(self, merge: Mapping[str, Any]) -> None:
        """Forget all that was done: of which bytes of the inputs, nobody can say."""
        text = "the inputs were written to since this merge was stopped: it begins anew"
        warnings.warn(f"{self._folder.parent}: {text}", stacklevel=2)
        for kept in self._folder.iterdir():
            if kept.name != _MERGE:
                kept.unlink()
        storage.write_json(self._folder / _MERGE, merge)

    def _append(self, name: str, record: Any) -> None:
        self._add(name, (json.dumps(record) + "\n").encode(), line=True)

    def _add(self, name: str, data: bytes, line: bool = False) -> tuple[str, int]:
        """Write at a file's end; return the file, and where in it that is."""
        path = self._folder / name
        if isinstance(path, ObjectPath):
            # In the order of their names they were written, by whichever run.
            name += f".{time.time_ns():020d}.{next(self._numbers)}"
            (self._folder / name).write_bytes(data)
            return name, 0
        with errors.writing(path), self._lock, open(path, "a+b") as file:
            start = file.seek(0, 2)
            if line and start:
                file.seek(start - 1)
                if file.read(1) != b"\n":
                    data = b"\n" + data  # a kill left half a line
            file.write(data)
            return name, start

    def _files(self, pattern: str) -> list[Folder]:
        """Return the files of lines under a name, in order."""
        several = f"{pattern}.*" if isinstance(self._folder, ObjectPath) else pattern
        return sorted(self._folder.glob(several))

    def _lines(self, pattern: str) -> list[Any]:
        """Return the whole lines of files; none if there are none."""
        paths = self._files(pattern)
        if isinstance(self._folder, ObjectPath):
            contents = objects.read_all(paths)
        else:
            contents = [path.read_bytes() for path in paths]
        found = []
        for line in b"\n".join(contents).split(b"\n"):
            try:
                found.append(json.loads(line))
            except ValueError:  # empty, or cut short
                continue
        return found


def _range(path: Folder, start: int, size: int) -> bytes:
    if isinstance(path, ObjectPath):
        return path.read_range(start, size)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _as_json(record: Any) -> Any:
    """Return a record as reading its JSON gives it."""
    return json.loads(json.dumps(record))


def checksum_of(part: np.ndarray, before: int) -> int:
    """Return a sum over 64-bit words: enough to notice pages that were never stored."""
    words = part.view(np.uint8)
    whole = len(words) // 8 * 8
    found = int(np.add.reduce(words[:whole].view(np.uint64), dtype=np.uint64))
    rest = int.from_bytes(words[whole:].tobytes(), "little")
    return (before * 3 + found + rest + 1) % 2**64
