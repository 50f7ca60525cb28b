"""What an analysis has found so far, kept in its workdir: a stopped one goes on.

WORKDIR/unfinished/
  of.json         what the results depend on: inputs' digests, settings
  answers.0.jsonl thresholds' counts, as `merge.passes` asks for them
  spectra.I.jsonl a line for each matrix that process I has decomposed
  totals.npz      totals over the blocks that earlier runs finished
  totals.I.npz    those of process I of this run

A file of totals names the blocks that are in it, and appears whole or not at all, so a
block counts once whenever the run was killed. The folder goes when all is done.
"""

import io
import json
import shutil
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merging.analysis.totals import Totals
from merging.runtime import processes, storage

FOLDER = "unfinished"
_OF, _ANSWERS, _BEFORE = "of.json", "answers", "totals.npz"


class Kept:
    """Progress on disk.

    Args:
      workdir: the analysis' own.
      of: everything that its results depend on, as plain JSON. Where another is
        written down, all that was kept is of no use and goes.
    """

    def __init__(self, workdir: Path, of: Mapping[str, Any]):
        self._folder = workdir / FOLDER
        self._lock = threading.Lock()
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        processes.broadcast(lambda: self._begin(json.loads(json.dumps(of))))
        lines = processes.broadcast(lambda: self.records(_ANSWERS))
        self._answers = {line["name"]: line for line in lines}

    def answers(self, name: str, asked: Mapping[int, Any]) -> dict[int, Any] | None:
        """Return what the very same was answered before (`merge.passes`), or None."""
        found = self._answers.get(name)
        if found is None or found["asked"] != json.loads(json.dumps(asked)):
            return None
        return {int(expert): reply for expert, reply in found["answers"].items()}

    def keep_answers(
        self, name: str, asked: Mapping[int, Any], answers: Mapping[int, Any]
    ) -> None:
        """Write down what was asked in one turn, and its answers."""
        if asked and processes.is_first():
            record = {"name": name, "asked": asked, "answers": answers}
            self.keep_record(_ANSWERS, record)

    def resume(self, like: Totals) -> set[int]:
        """Return the blocks that earlier runs finished; keep their totals for `join`.

        Args:
          like: totals of the same shape.
        """

        def joined() -> list[int]:
            done: set[int] = set()
            sums, counts = np.zeros_like(like.sums), np.zeros_like(like.counts)
            for path in [self._folder / _BEFORE, *self._folder.glob("totals.*.npz")]:
                found = _load(path, like)
                # A part that is in the sum already was about to be removed.
                if found is not None and not set(found["blocks"].tolist()) & done:
                    done |= set(found["blocks"].tolist())
                    sums, counts = sums + found["sums"], counts + found["counts"]
            if done:
                self._write(_BEFORE, sums, counts, done)
                self._before = sums, counts
            for path in self._folder.glob("totals.*.npz"):
                path.unlink()
            return sorted(done)

        return set(processes.broadcast(joined))

    def join(self, totals: Totals) -> None:
        """Add what earlier runs found, and what the other processes did."""
        if self._before is not None:
            totals.sums += self._before[0]
            totals.counts += self._before[1]
        processes.all_reduce([totals.sums, totals.counts])

    def keep(self, totals: Totals, blocks: set[int]) -> None:
        """Write down this process's totals over the blocks that it finished."""
        if blocks:
            name = f"totals.{processes.index()}.npz"
            self._write(name, totals.sums, totals.counts, blocks)

    def records(self, name: str) -> list[Any]:
        """Return what all processes kept under a name, in this run and before."""
        paths = sorted(self._folder.glob(f"{name}.*.jsonl"))
        return [line for path in paths for line in _lines(path)]

    def keep_record(self, name: str, record: Any) -> None:
        """Write down a record, plain JSON, under a name."""
        path = self._folder / f"{name}.{processes.index()}.jsonl"
        with self._lock, open(path, "a") as file:
            file.write("\n" + json.dumps(record))  # after what a kill left

    def forget(self) -> None:
        """Remove everything: the results are published."""
        if processes.is_first():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, of: Mapping[str, Any]) -> None:
        path = self._folder / _OF
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            before = None
        if before != of:
            shutil.rmtree(self._folder, ignore_errors=True)
            storage.write_json(path, of)

    def _write(
        self, name: str, sums: np.ndarray, counts: np.ndarray, blocks: set[int]
    ) -> None:
        data, numbers = io.BytesIO(), np.array(sorted(blocks), np.int64)
        np.savez_compressed(data, blocks=numbers, sums=sums, counts=counts)
        storage.write_bytes(self._folder / name, data.getvalue())


class Unkept:
    """Progress that is kept nowhere, of models in memory."""

    def answers(self, name: str, asked: Mapping[int, Any]) -> None:
        """Know nothing."""

    def keep_answers(self, name: str, asked: Any, answers: Any) -> None:
        """Keep nothing."""

    def records(self, name: str) -> list[Any]:
        """Know nothing."""
        return []

    def keep_record(self, name: str, record: Any) -> None:
        """Keep nothing."""

    def resume(self, like: Totals) -> set[int]:
        """Have nothing to go on from."""
        return set()

    def join(self, totals: Totals) -> None:
        """Add what the other processes found."""
        processes.all_reduce([totals.sums, totals.counts])

    def keep(self, totals: Totals, blocks: set[int]) -> None:
        """Keep nothing."""


def _load(path: Path, like: Totals) -> dict[str, np.ndarray] | None:
    """Return a file's arrays; None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("blocks", "sums", "counts")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None
    shapes = found["sums"].shape, found["counts"].shape
    return found if shapes == (like.sums.shape, like.counts.shape) else None


def _lines(path: Path) -> list[Any]:
    """Return a file's whole lines."""
    found = []
    for line in path.read_text().split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:  # empty, or cut short
            continue
    return found
