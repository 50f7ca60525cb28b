"""What a merge has done so far, kept beside its output: a stopped one goes on.

Everything lies in the folder `.merge` of the unfinished output and goes when it is
published. A line is written after the bytes it speaks of, so a line that is there
tells the truth; one that a kill cut in half is no line.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.runtime import processes
from merging.runtime.errors import UserError

FOLDER = ".merge"


class Done(NamedTuple):
    """A block that was merged and written.

    Attributes:
      number: its place in the plan.
      checksum: of the bytes written.
      ballot: elements elected positive less those elected negative.
      ties: how many elements wait for the model's majority.
      file, start: where those are kept.
    """

    number: int
    checksum: int
    ballot: int
    ties: int
    file: str
    start: int


class Journal:
    """The journal of one merge; all its processes write, each in files of its own.

    Args:
      output: the unfinished output's folder.
      merge: everything that the result's bytes depend on, as plain JSON.

    Raises:
      UserError: the folder holds the unfinished output of another merge.
    """

    def __init__(self, output: str | Path, merge: Mapping[str, Any]):
        self._folder = Path(output) / FOLDER
        self._process = processes.index()
        self._lock = threading.Lock()
        processes.broadcast(lambda: self._begin(merge))
        lines = processes.broadcast(lambda: _lines(self._folder / "answers.jsonl"))
        self._answers = {line["name"]: line for line in lines}
        self._ties_name = f"ties.{self._process}.bin"

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

    def done(self) -> dict[int, Done]:
        """Return the finished blocks of all processes, of this run and before."""
        found = {}
        for path in sorted(self._folder.glob("blocks.*.jsonl")):
            for line in _lines(path):
                record = Done(**line)
                found[record.number] = record
        return found

    def keep_block(
        self,
        number: int,
        checksum: int,
        ballot: int,
        positions: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Write down a finished block, and what to put where the majority is negative.

        Args:
          number: its place in the plan.
          checksum: of its bytes.
          ballot: its elements elected positive less negative.
          positions: uint32, in the block.
          values: the output's dtype, one for each position.
        """
        start = 0
        if len(positions):
            with self._lock, open(self._folder / self._ties_name, "ab") as file:
                start = file.tell()
                file.write(positions.tobytes() + values.tobytes())
        done = Done(number, checksum, ballot, len(positions), self._ties_name, start)
        self._append(f"blocks.{self._process}.jsonl", done._asdict())

    def ties(self, done: Done, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions and values that `keep_block` was given."""
        with open(self._folder / done.file, "rb") as file:
            file.seek(done.start)
            positions = np.frombuffer(file.read(4 * done.ties), np.uint32)
            return positions, np.frombuffer(
                file.read(dtype.itemsize * done.ties), dtype
            )

    def keep_negative(self, methods: Sequence[int]) -> None:
        """Write down which methods' majority is negative; blocks change once more."""
        if processes.is_first():
            self._append("negative.jsonl", list(methods))
        processes.barrier("the majority is written")

    def negative(self) -> list[int] | None:
        """Return what `keep_negative` was given, if an earlier run got as far."""
        lines = processes.broadcast(lambda: _lines(self._folder / "negative.jsonl"))
        return lines[-1] if lines else None

    def keep_digests(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Put this process's digests together with the others'."""
        name = f"digests.{self._process}.json"
        (self._folder / name).write_text(json.dumps(dict(digests)))
        processes.barrier("digests are written")
        found: dict[str, str] = {}
        for process in range(processes.count()):
            text = (self._folder / f"digests.{process}.json").read_text()
            found |= json.loads(text)
        return found

    def _begin(self, merge: Mapping[str, Any]) -> None:
        path = self._folder / "merge.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(merge, indent=1))
            fresh.rename(path)
            return
        before = json.loads(path.read_text())
        changed = sorted(
            key
            for key in merge.keys() | before.keys()
            if merge.get(key) != before.get(key)
        )
        if changed:
            raise UserError(
                f"{self._folder.parent} holds the unfinished output of another merge: "
                f"{', '.join(changed)} differ. Delete that folder to start anew, give "
                "the same settings to go on with it, or choose another output."
            )

    def _append(self, name: str, record: Any) -> None:
        line = (json.dumps(record) + "\n").encode()
        with self._lock, open(self._folder / name, "a+b", buffering=0) as file:
            size = file.seek(0, 2)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # a kill left half a line
            file.write(line)


def _as_json(record: Any) -> Any:
    """Return a record as reading its JSON gives it."""
    return json.loads(json.dumps(record))


def _lines(path: Path) -> list[Any]:
    """Return a file's whole lines; none if there is no file."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:  # empty, or cut short
            continue
    return found
