"""Arrays on disk as .npz: written atomically, read without pickle."""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np


def key(*parts: object) -> str:
    """Return a short hash of JSON-able parts, for the name of a file."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file, or None where there is none that can be read.

    A file that is cut short or not ours is reported and then counts as absent, since
    everything in a cache can be made again.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is not readable, making it again: {error}", stacklevel=2)
        return None


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees the whole file or none.

    Raises:
      ValueError: an array of Python objects, which only pickle could store.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
