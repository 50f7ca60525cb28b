"""The border to disk: Orbax folders in and out, nothing inside knows the format."""

from merging.checkpoints.faults import CorruptCheckpoint, MissingCheckpoint
from merging.checkpoints.orbax import exists, restore, save
from merging.checkpoints.source import Source, open_checkpoint

__all__ = [
    "CorruptCheckpoint",
    "MissingCheckpoint",
    "Source",
    "exists",
    "open_checkpoint",
    "restore",
    "save",
]
