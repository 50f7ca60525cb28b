"""What an extraction has done so far: a file for each matrix, beside the output.

Ranks are known only when all matrices are done, so nothing is written to its place
before. A part has its name when it is whole; who goes on does the others.
"""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merging.checkpoints import errors
from merging.merge.extraction.fit import Fit
from merging.runtime import processes, storage
from merging.runtime.errors import UserError

SUFFIX = ".parts"
_RECORD = "extraction.json"


class Parts:
    """The fits of an extraction that are done.

    Args:
      output: of the extraction.
      record: all that they depend on, as plain JSON.

    Raises:
      UserError: the folder holds another extraction's.
    """

    def __init__(self, output: str, record: Mapping[str, Any]):
        self.folder = Path(output.rstrip("/") + SUFFIX)
        processes.broadcast(lambda: self._begin(json.dumps(record, sort_keys=True)))

    def _begin(self, record: str) -> None:
        path = self.folder / _RECORD
        with errors.writing(self.folder):
            if self.folder.exists() and not (
                path.is_file() and path.read_text() == record
            ):
                raise UserError(
                    f"{self.folder} holds the unfinished output of another extraction. "
                    "Delete it to start anew, or choose another output."
                )
            storage.write_bytes(path, record.encode())

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
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"
