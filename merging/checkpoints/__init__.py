"""The border to disk: checkpoints in and out; nothing inside knows a file format."""

import importlib
from typing import TYPE_CHECKING

from merging.checkpoints.errors import (
    CorruptCheckpoint,
    MissingCheckpoint,
    NotStored,
)
from merging.checkpoints.formats import FORMATS, create, granularity, open_checkpoint
from merging.checkpoints.gguf import is_gguf
from merging.checkpoints.names import tensor_names
from merging.checkpoints.safetensors import auxiliary_files
from merging.checkpoints.source import Source, SourceFile
from merging.checkpoints.view import Origin, View
from merging.checkpoints.writer import Writer, require_free_output

if TYPE_CHECKING:
    from merging.checkpoints.orbax import exists, restore, save

__all__ = [
    "FORMATS",
    "CorruptCheckpoint",
    "MissingCheckpoint",
    "NotStored",
    "Origin",
    "Source",
    "SourceFile",
    "View",
    "Writer",
    "auxiliary_files",
    "create",
    "exists",
    "granularity",
    "is_gguf",
    "open_checkpoint",
    "require_free_output",
    "restore",
    "save",
    "tensor_names",
]


def __getattr__(name: str) -> object:
    # Orbax is slow to import, and a merge of safetensors does without.
    if name in ("exists", "restore", "save"):
        return getattr(importlib.import_module("merging.checkpoints.orbax"), name)
    raise AttributeError(f"module 'merging.checkpoints' has no attribute {name!r}")
