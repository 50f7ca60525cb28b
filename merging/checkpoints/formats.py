"""Which format a checkpoint has, and what reads and writes it.

Orbax and TensorStore take a second to import, and are only where they are needed.
"""

import os
from collections.abc import Mapping

import jax
from etils import epath

from merging.checkpoints import safetensors
from merging.checkpoints.source import Source
from merging.checkpoints.writer import Writer
from merging.runtime.errors import UserError, nearest

FORMATS = ("orbax", "safetensors")
_NOT_READ = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")


def open_checkpoint(uri: str | os.PathLike) -> Source:
    """Open a checkpoint, whatever its format, and read its abstract tree.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: its metadata can't be read.
      UserError: its format is not read here.
    """
    uri = os.fspath(uri)
    path = epath.Path(uri)
    if safetensors.holds_safetensors(path):
        return safetensors.SafetensorsSource(uri)
    _refuse_other_formats(path)
    from merging.checkpoints.orbax_source import OrbaxSource

    return OrbaxSource(uri)


def create(
    uri: str,
    format: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    *,
    shard_bytes: int = 5 * 10**9,
) -> Writer:
    """Begin a checkpoint, or go on with one; called by all processes.

    Args:
      uri: what it will be called.
      format: `orbax` or `safetensors`.
      abstract: {path: shape and dtype}, in the order to store them.
      shard_bytes: the most in one safetensors file.

    Raises:
      UserError: an unknown format, no space, or another layout has been begun there.
    """
    if format == "safetensors":
        from merging.checkpoints.safetensors_writer import SafetensorsWriter

        return SafetensorsWriter(uri, abstract, shard_bytes)
    if format == "orbax":
        from merging.checkpoints.orbax_writer import OrbaxWriter

        return OrbaxWriter(uri, abstract)
    raise nearest("format", format, FORMATS)


def _refuse_other_formats(path: epath.Path) -> None:
    files = list(path.iterdir()) if path.is_dir() else [path]
    found = sorted(f.name for f in files if f.suffix in _NOT_READ)
    if found:
        raise UserError(
            f"{path} holds {', '.join(found)}; safetensors and Orbax are read here. "
            "PyTorch's files are pickles, which can run code when they are opened: "
            "save the model as safetensors first (save_pretrained of transformers "
            "does). A llama in a GGUF file is imported by merging convert."
        )


def granularity(
    format: str, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, int]:
    """Return {path: of how many elements the starts of pieces should be multiples}."""
    if format != "orbax":
        return dict.fromkeys(abstract, 1)
    from merging.checkpoints import orbax_writer

    return {path: orbax_writer.granularity(leaf) for path, leaf in abstract.items()}
