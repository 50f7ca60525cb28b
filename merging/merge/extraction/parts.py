"""What an extraction has done so far: a file for each matrix, beside the output.

Ranks are known only when all matrices are done, so nothing is written to its place
before. A part has its name when it is whole; who goes on does the others.
"""

import contextlib
import fnmatch
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merging import checkpoints
from merging.checkpoints import errors
from merging.merge.extraction.fit import Fit
from merging.runtime import foreign_json, processes, storage
from merging.runtime.errors import UserError

SUFFIX = ".parts"
_RECORD = "extraction.json"
_STAMPS = "inputs' files"
_PART = "[0-9]" * 6 + ".npz"


@contextlib.contextmanager
def parts_of(
    output: str, record: Mapping[str, Any], stamps: list[list]
) -> Iterator["Parts"]:
    """Give an extraction's parts to this program alone; called by all processes.

    Args:
      output: of the extraction.
      record: all that they depend on, as plain JSON.
      stamps: of the models' files (`checkpoints.stamps`).

    Raises:
      UserError: the folder holds another extraction's, or what we did not make; or
        another program works on it.
    """
    with checkpoints.locked(output.rstrip("/") + SUFFIX):
        yield Parts(output, record, stamps)


def clear_parts(output: str) -> None:
    """Remove what a kill left of an extraction that had its output; by one process."""
    folder = Path(output.rstrip("/") + SUFFIX)
    if folder.is_symlink() or not (folder / _RECORD).is_file():
        return
    with contextlib.suppress(ValueError):
        found = foreign_json.loads((folder / _RECORD).read_bytes())
        if isinstance(found, dict) and _STAMPS in found:
            # Unless another is at it.
            with contextlib.suppress(UserError), checkpoints.only_writer(str(folder)):
                _remove(folder)


class Parts:
    """The fits of an extraction that are done; arguments as `parts_of` has them."""

    def __init__(self, output: str, record: Mapping[str, Any], stamps: list[list]):
        self.folder = Path(output.rstrip("/") + SUFFIX)
        # Where the models are may be said otherwise the next time.
        wanted = {**record, _STAMPS: [when for _, *when in stamps]}
        processes.broadcast(lambda: self._begin(json.loads(json.dumps(wanted))))

    def _begin(self, wanted: Mapping[str, Any]) -> None:
        found = self._found()
        if found is not None:
            differ = {k for k in wanted if found.get(k) != wanted[k]}
            if found.keys() != wanted.keys() or differ - {_STAMPS}:
                raise UserError(
                    f"{self.folder} holds the unfinished output of another extraction. "
                    "Delete it to start anew, or choose another output."
                )
            if differ:
                text = "the models were written to since it was stopped: it begins anew"
                warnings.warn(f"{self.folder}: {text}", stacklevel=2)
                self.remove()
        with errors.writing(self.folder):
            storage.write_json(self.folder / _RECORD, wanted)

    def _found(self) -> dict[str, Any] | None:
        """Return the record of what is there; None if nothing is.

        Raises:
          UserError: it is none of ours.
        """
        if not os.path.lexists(self.folder):
            return None
        path, found = self.folder / _RECORD, None
        if self.folder.is_dir() and not self.folder.is_symlink():
            if not any(self._left()):
                return None
            with contextlib.suppress(ValueError):
                if path.is_file():
                    found = foreign_json.loads(path.read_bytes())
        if not isinstance(found, dict) or _STAMPS not in found:
            raise UserError(
                f"{self.folder} exists, and is no output that was begun here. Move it "
                "away, or choose another output."
            )
        return found

    def _left(self) -> Iterator[Path]:
        """Yield what lies there but what a kill left half written."""
        for path in self.folder.iterdir():
            if not fnmatch.fnmatch(path.name, f".{_RECORD}.*.tmp"):
                yield path

    def has(self, number: int) -> bool:
        """Return whether a matrix is done."""
        return self._path(number).exists()

    def keep(self, number: int, fit: Fit) -> None:
        """Keep a matrix's fit."""
        numbers = np.array([fit.norm, fit.error, fit.energy])
        stream = io.BytesIO()
        # As bytes: NumPy's files do not know bfloat16.
        np.savez(
            stream,
            a=np.ascontiguousarray(fit.a).view(np.uint8),
            b=np.ascontiguousarray(fit.b).view(np.uint8),
            numbers=numbers,
        )
        storage.write_bytes(self._path(number), stream.getvalue())

    def read(self, number: int, shape: tuple[int, ...], dtype: np.dtype) -> Fit:
        """Return a matrix's fit."""
        with np.load(self._path(number), allow_pickle=False) as found:
            a = found["a"].reshape(-1).view(dtype).reshape(-1, shape[1])
            b = found["b"].reshape(-1).view(dtype).reshape(shape[0], -1)
            return Fit(a, b, *map(float, found["numbers"]))

    def remove(self) -> None:
        """Remove them all, and nothing else."""
        _remove(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def _remove(folder: Path) -> None:
    """Remove all parts, and what says that they are ours last."""
    with contextlib.suppress(OSError):
        for pattern in (_PART, f".{_PART}.*.tmp", f".{_RECORD}.*.tmp", _RECORD):
            for path in list(folder.glob(pattern)):
                path.unlink()
        folder.rmdir()
