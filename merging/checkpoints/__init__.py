"""The border to disk: checkpoints in and out; nothing inside knows a file format."""

import importlib
from typing import TYPE_CHECKING

from merging.checkpoints.adapter import Adapter, is_adapter
from merging.checkpoints.auxiliary import auxiliary_files, read_auxiliary_files
from merging.checkpoints.digests import (
    changed_at,
    content,
    of_beginning,
    require_unchanged,
    stamps,
)
from merging.checkpoints.errors import (
    CorruptCheckpoint,
    MissingCheckpoint,
    NotStored,
)
from merging.checkpoints.formats import (
    FORMATS,
    PEFT,
    begin_safetensors,
    clear,
    create,
    granularity,
    locked,
    only_writer,
    open_checkpoint,
    open_stored,
)
from merging.checkpoints.gguf import is_gguf
from merging.checkpoints.location import split, split_adapter
from merging.checkpoints.names import require_tensor_names
from merging.checkpoints.rows import Rows
from merging.checkpoints.runs import RunStep, run_steps, step_number
from merging.checkpoints.source import Source, SourceFile
from merging.checkpoints.tied import forget_head, repeats_embedding, stored_head
from merging.checkpoints.view import Origin, View
from merging.checkpoints.writer import Writer, recorded, require_free_output

if TYPE_CHECKING:
    from merging.checkpoints.orbax import exists, open_saved, restore, save

__all__ = [
    "FORMATS",
    "PEFT",
    "Adapter",
    "CorruptCheckpoint",
    "MissingCheckpoint",
    "NotStored",
    "Origin",
    "Rows",
    "RunStep",
    "Source",
    "SourceFile",
    "View",
    "Writer",
    "auxiliary_files",
    "begin_safetensors",
    "changed_at",
    "clear",
    "content",
    "create",
    "exists",
    "forget_head",
    "granularity",
    "is_adapter",
    "is_gguf",
    "locked",
    "only_writer",
    "of_beginning",
    "open_checkpoint",
    "open_saved",
    "open_stored",
    "read_auxiliary_files",
    "recorded",
    "repeats_embedding",
    "require_free_output",
    "require_tensor_names",
    "require_unchanged",
    "restore",
    "run_steps",
    "save",
    "split",
    "split_adapter",
    "stamps",
    "step_number",
    "stored_head",
]


def __getattr__(name: str) -> object:
    # Orbax is slow to import, and a merge of safetensors does without.
    if name in ("exists", "open_saved", "restore", "save"):
        return getattr(importlib.import_module("merging.checkpoints.orbax"), name)
    raise AttributeError(f"module 'merging.checkpoints' has no attribute {name!r}")
