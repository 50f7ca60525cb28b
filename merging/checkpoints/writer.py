"""A checkpoint as something to write to, piece by piece."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from merging.checkpoints.files import path_of
from merging.checkpoints.location import PARTIAL, split, split_adapter
from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath


class Writer(Protocol):
    """A checkpoint that is being written beside the name it will have.

    Attributes:
      uri: what it will be called.
      folder: where it is until then; what lies in it is kept when it is opened again.
      atomic: a piece that was written is there, whole, whatever happens to the machine.
    """

    uri: str
    folder: str
    atomic: bool

    def granularity(self, path: str) -> int:
        """Return of how many elements the starts of pieces should be multiples."""

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write elements [start, start + len) of a leaf; again replaces them.

        Several threads may write, and several processes other pieces of a leaf.
        """

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Read back what was written."""

    def own_files(self) -> dict[str, dict[str, Any]]:
        """Return what `recorded` says of the files that come with the leaves' bytes.

        Once all of these are written; of a file that holds leaves, its beginning.
        """

    def finish(self, extra_files: Mapping[str, bytes]) -> None:
        """Add small files, and publish it under its name; called by all processes.

        The last of the files is the last that is written, where not all appear at once.

        Raises:
          NotStored: the disk did not take something that was written.
        """

    def close(self) -> None:
        """Let go of files and threads, whether it is finished or not."""


def recorded(content: bytes, size: int | None = None) -> dict[str, Any]:
    """Return what is to be recorded of a file, as plain JSON.

    Args:
      content: of the whole file, or its beginning.
      size: of the whole file, if that is larger.

    Returns:
      Its `size`, and of how many of its first bytes (`hashed`) the `sha256` is.
    """
    return {
        "size": len(content) if size is None else size,
        "hashed": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def require_free_output(output: str, inputs: Sequence[str], last: str = "") -> None:
    """Refuse an output that exists, or that lies in an input.

    Args:
      output: where it is to be.
      inputs: the models.
      last: the file that is written last, where not all appear at once.

    Raises:
      UserError: it does.
    """
    place = storage.place(output, "output")
    path = Path(os.path.realpath(output))
    if isinstance(place, ObjectPath):
        path = place
        # It appears object by object, and not at all before it is begun.
        begun = place.with_name(place.name + PARTIAL).exists()
        taken = place.exists() and not begun or bool(last) and (place / last).exists()
    else:
        taken = os.path.lexists(output)
    if taken:
        raise UserError(
            f"the output {output} exists, and is not what this very command makes; "
            "choose another name."
        )
    parts = [part for uri in inputs for part in split_adapter(uri) if part]
    for uri in parts:
        where = split(uri)[0]
        where = path_of(where) if "://" in uri else Path(os.path.realpath(where))
        if path == where or where in path.parents:
            raise UserError(
                f"the output {output} lies in the input {uri}; choose a folder outside."
            )
